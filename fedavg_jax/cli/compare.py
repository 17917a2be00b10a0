"""Compares finished runs in a table and in a picture of their curves.

fedavg-jax compare outputs/fedavg outputs/fedprox --target 0.95
"""

from collections.abc import Sequence
import math
import pathlib

from absl import flags

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write_new
from fedavg_jax.runs.compare import check_same_data
from fedavg_jax.runs.compare import check_target
from fedavg_jax.runs.compare import draw
from fedavg_jax.runs.compare import read_run
from fedavg_jax.runs.compare import row
from fedavg_jax.runs.compare import table
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.progress import show


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_float(
    'target',
    0.0,
    'Test accuracy, or value of another first metric, to which rounds are'
    ' counted.',
  )
  flags.DEFINE_string(
    'picture', None, 'PNG file to write; default compare.png.'
  )


def _run(folders: Sequence[str]) -> None:
  target = float(flags.FLAGS['target'].value or 0.0)
  if not math.isfinite(target):
    raise InputError(f'--target {target}: must be finite')
  if not folders:
    raise InputError('give the folders of the runs to compare')
  path = command.new_file('picture', 'compare.png')
  names = [folder.rstrip('/') for folder in folders]
  for name in names:
    if names.count(name) > 1:
      raise InputError(f'{name}: duplicate value')
  runs = [read_run(pathlib.Path(name)) for name in names]
  check_same_data(runs)
  measure = runs[0].measure
  check_target('--target', target, measure)
  show(table([row(run, target) for run in runs], target, measure))
  with atomic_write_new(path) as part:
    draw(part, {run.name: [run] for run in runs}, target)
  say(f'Saved {path}')


def main(argv: Sequence[str]) -> int:
  """Compares the given folders; returns the exit code."""
  return command.run(lambda: _run(argv[1:]), argv[:1])
