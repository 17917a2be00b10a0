"""Compares finished runs and sweeps in tables and in a picture of their curves.

fedavg-jax compare outputs/fedavg outputs/fedprox --target 0.95
fedavg-jax compare outputs/sweep --picture curves.pdf --table results.tex

Runs that differ only in their seed are one curve, and one line of a table with
means, standard deviations and differences to the first line.
"""

from collections.abc import Sequence
import math

from absl import flags

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import atomic_write_new
from fedavg_jax.runs import plots
from fedavg_jax.runs import results_table
from fedavg_jax.runs import run_groups
from fedavg_jax.runs import seed_statistics
from fedavg_jax.runs.compare import check_same_data
from fedavg_jax.runs.compare import check_target
from fedavg_jax.runs.compare import draw
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
    'picture',
    None,
    'PNG, PDF or SVG file to write, by its ending; default compare.png. A'
    ' picture of this command is replaced.',
  )
  flags.DEFINE_string(
    'table',
    None,
    'New CSV, Markdown or LaTeX file, by its ending (.csv, .md, .tex), with'
    ' means and standard deviations over seeds; default none.',
  )


def _run(folders: Sequence[str]) -> None:
  target = float(flags.FLAGS['target'].value or 0.0)
  if not math.isfinite(target):
    raise InputError(f'--target {target}: must be finite')
  if not folders:
    raise InputError('give the folders of the runs or sweeps to compare')
  picture = command.output_file(
    'picture', 'compare.png', plots.SUFFIXES, is_own=plots.is_own
  )
  path = None
  if flags.FLAGS['table'].value is not None:
    path = command.output_file('table', '', tuple(results_table.FORMATS))
  names = [folder.rstrip('/') for folder in folders]
  for name in names:
    if names.count(name) > 1:
      raise InputError(f'{name}: duplicate value')
  groups = run_groups.read_groups(names)
  runs = [run for group in groups.values() for run in group]
  check_same_data(runs)
  measure = runs[0].measure
  check_target('--target', target, measure)
  if alone := [run for run in runs if run.name in names]:
    show(table([row(run, target) for run in alone], target, measure))
  settings = seed_statistics.settings(groups, target)
  if len(groups) < len(runs) or not alone:
    show(results_table.to_markdown(settings, target, measure).rstrip())
  if path is not None:
    with atomic_write_new(path) as part:
      content = results_table.FORMATS[path.suffix](settings, target, measure)
      part.write_text(content, encoding='utf-8')
    say(f'Saved {path}')
  write = atomic_write if picture.exists() else atomic_write_new
  with write(picture) as part:
    draw(part, groups, target)
  say(f'Saved {picture}')


def main(argv: Sequence[str]) -> int:
  """Compares the given folders; returns the exit code."""
  return command.run(lambda: _run(argv[1:]), argv[:1])
