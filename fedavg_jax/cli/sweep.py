"""Runs a grid of settings with several seeds each; writes a table, a picture.

fedavg-jax sweep quickstart --seeds 3 --workdir outputs/grid
  --grid client.learning_rate=0.03,0.1,0.3 --grid client.epochs=1,5

Values that contain commas are separated by semicolons:
--grid "sizes=equal;600,900". Settings that differ only in numbers such as the
learning rate are trained together, in the same compiled calls; others in turn.
Every run has its own folder, like those of `fedavg-jax run`. The same command
resumes an interrupted sweep; with further values or seeds it runs those that
are missing, and the table lists all of them.

What XLA compiles is kept in $XDG_CACHE_HOME/fedavg_jax or ~/.cache/fedavg_jax;
the environment variable JAX_ENABLE_COMPILATION_CACHE=0 turns this off.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epy

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.run_dir import default_workdir

with epy.lazy_imports():  # It imports JAX.
  from fedavg_jax.runs import grid


def _parse(texts: Sequence[str]) -> dict[str, list[str]]:
  """Returns key -> values of all --grid flags, each 'key=a,b'."""
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, equals, values = text.partition('=')
    separated = values.split(';' if ';' in values else ',')
    if not equals or not all(separated):
      raise InputError(f'--grid {text}: must be key=value,value,...')
    if key in grid:
      raise InputError(f'--grid {key}: duplicate key')
    grid[key] = separated
  return grid


def define_flags() -> None:
  """Defines the flags of the command."""
  command.define_config()
  flags.DEFINE_multi_string(
    'grid', None, 'An option and its values, key=value,value; once per option.'
  )
  flags.DEFINE_integer('seeds', 1, 'Number of seeds per setting.')
  flags.DEFINE_string(
    'workdir',
    None,
    'New folder, or that of an interrupted sweep, which resumes; default'
    ' outputs/<date>/<time>_<config>_sweep.',
  )


def main(argv: Sequence[str]) -> int:
  """Executes the sweep that the flags describe; returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(f'{name}_sweep'))
  values = _parse(flags.FLAGS['grid'].value or [])
  seeds: Any = flags.FLAGS['seeds'].value
  grid.run_sweep(config, values, seeds, workdir)
