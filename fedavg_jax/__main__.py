"""Runs the command `fedavg-jax` as `python -m fedavg_jax`."""

from fedavg_jax.cli import dispatch

if __name__ == '__main__':
  dispatch.main()
