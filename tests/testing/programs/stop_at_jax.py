"""Starts a command, and ends where it imports JAX.

stop_at_jax.py COMMAND ARGUMENTS

"""

import sys


class Stop:
  """Prints a line and ends the process at an import of JAX."""

  def find_spec(self, name, path=None, target=None):
    """Finds no module."""
    if name == 'jax':
      print('imports JAX', flush=True)
      raise SystemExit(0)


sys.meta_path.insert(0, Stop())

from fedavg_jax.cli import dispatch  # noqa: E402

dispatch.start(sys.argv[1], sys.argv[2:])
