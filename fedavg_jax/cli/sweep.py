"""Runs a grid of settings, each with several seeds: a table and a picture.

fedavg-jax sweep quickstart --seeds 3 --workdir outputs/grid
  --grid client.learning_rate=0.03,0.1,0.3 --grid client.epochs=1,5

Values that hold commas stand between semicolons: --grid "sizes=equal;600,900".
Settings that differ only in numbers such as the learning rate are trained
together, in the same compiled calls; the others in turn. Every run is a folder
of its own, as `fedavg-jax run` leaves one. The same command resumes where it
was stopped; with further values or seeds it runs what is missing, and the table
has all of them.
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
  """'key=a,b' of every --grid."""
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, equals, values = text.partition('=')
    separated = values.split(';' if ';' in values else ',')
    if not equals or not all(separated):
      raise InputError(f'--grid {text}: must be key=value,value,...')
    if key in grid:
      raise InputError(f'--grid {key}: named twice')
    grid[key] = separated
  return grid


def define_flags() -> None:
  """Defines the flags of the command."""
  command.define_config()
  flags.DEFINE_multi_string('grid', None, 'key=value,value; once per key.')
  flags.DEFINE_integer('seeds', 1, 'Seeds of each setting.')
  flags.DEFINE_string(
    'workdir',
    None,
    'New folder, or that of a sweep, which resumes; default outputs/...',
  )


def main(argv: Sequence[str]) -> int:
  """Runs the sweep that the flags describe. Returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(f'{name}_sweep'))
  values = _parse(flags.FLAGS['grid'].value or [])
  seeds: Any = flags.FLAGS['seeds'].value
  grid.run_sweep(config, values, seeds, workdir)
