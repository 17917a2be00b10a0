"""Runs the experiment that a config describes, as `fedavg-jax run` does.

python -m fedavg_jax.main --config configs/quickstart.py
"""

import sys

from fedavg_jax.cli import dispatch

if __name__ == '__main__':
  dispatch.start('run', sys.argv[1:])
