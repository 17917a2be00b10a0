"""Writes the tables and the picture of a sweep."""

from collections.abc import Sequence
import pathlib

import numpy as np

from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import write_text
from fedavg_jax.runs import compare
from fedavg_jax.runs import results_table
from fedavg_jax.runs import seed_statistics
from fedavg_jax.runs.grid_jobs import Job
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.targets import Measure

_MOST_CURVES = 20  # More are not distinguishable in one picture.


def report(
  jobs: Sequence[Job], workdir: pathlib.Path, choose_on: str = 'validation'
) -> None:
  """Prints the table, and writes the tables and the picture of the sweep.

  Args:
    jobs: all runs of the sweep, which have ended.
    workdir: the folder of the sweep.
    choose_on: the set on which the best setting is chosen; where the runs were
      tested on the other one, none is chosen.
  """
  runs: dict[str, list[compare.Run]] = {}
  for job in jobs:
    runs.setdefault(job.name, []).append(compare.read_run(job.folder))
  target = jobs[0].cfg.ends_at
  measure = runs[jobs[0].name][0].measure
  rows = {
    name: [compare.row(run, target) for run in seeds]
    for name, seeds in runs.items()
  }
  order = sorted(rows, key=lambda name: _merit(rows[name], target, measure))
  best = order[0] if measure.on == choose_on else ''
  statistics = seed_statistics.settings(runs, target)
  why = _why(rows[best], target, measure) if best else ''
  text = f'{_table(rows, target, best, measure)}\n\n' + (
    _chosen(best, why, statistics, measure) if best else _NONE_CHOSEN
  )
  say(text)
  write_text(workdir / 'table.md', text + '\n')
  for suffix, form in results_table.FORMATS.items():
    content = form(statistics, target, measure, best)
    write_text(workdir / f'results{suffix}', content)
  shown = [name for name in rows if name in order[:_MOST_CURVES]]
  with atomic_write(workdir / 'sweep.png') as part:
    compare.draw(part, {name: runs[name] for name in shown}, target)
  say(
    f'{workdir}/table.md, {workdir}/sweep.png;'
    f' {workdir}/results{{.csv,.md,.tex}}: mean and standard deviation'
  )


_NONE_CHOSEN = (
  'Best: none is chosen, because the runs have no validation set; give them one'
  ' with --config.validation_fraction=0.1, or choose on the test set with'
  ' --choose_on=test'
)


def _why(rows, target, measure: Measure) -> str:
  """Returns the reason for which a setting was chosen."""
  if np.isfinite(_merit(rows, target, measure)[1]) and target:
    return f'fewest rounds to {target:g}'
  most = 'lowest' if measure.lower_is_better else 'highest'
  return f'{most} mean of the best {measure.name}'


def _chosen(
  best: str,
  why: str,
  statistics: Sequence[seed_statistics.Setting],
  measure: Measure,
) -> str:
  """Returns the line about the chosen setting, with its final test."""
  most = 'minimum' if measure.lower_is_better else 'maximum'
  text = (
    f'Best: {best}, {why}; chosen on the {measure.on} set, of which the best'
    f' {measure.name} is the {most} over the rounds'
  )
  (final,) = (row.moments.final for row in statistics if row.name == best)
  if final is None or measure.on == 'test':
    return text
  cell = results_table.cell(final, measure.show)
  return f'{text}; final {measure.name} on the test set {cell} (n = {final.n})'


def _merit(rows, target, measure: Measure) -> tuple[float, float, float]:
  """Returns a sort key, best first: diverged seeds, rounds to target, best."""
  diverged = float(sum(row['status'] == 'diverged' for row in rows))
  best = -measure.score(float(np.mean([row['best'] for row in rows])))
  reached = [
    np.inf if row['to_target'] is None else row['to_target'] for row in rows
  ]
  return diverged, float(np.median(reached)) if target else 0.0, best


def _table(rows, target, best, measure: Measure) -> str:
  """Formats the settings as a table in Markdown, and marks the best one."""
  head = ['setting', 'seeds', f'best {measure.name}: mean', 'lowest', 'highest']
  if target:
    head += [f'rounds to {target:g}: median', 'reached by']
  head += ['diverged', '']
  lines = [head, ['---'] * len(head)]
  for name, seeds in rows.items():
    values = [row['best'] for row in seeds]
    cells = [
      name,
      f'{len(seeds)}',
      measure.show(float(np.mean(values))),
      measure.show(min(values)),
      measure.show(max(values)),
    ]
    if target:
      median = _merit(seeds, target, measure)[1]
      reached = sum(row['to_target'] is not None for row in seeds)
      cells += [f'{median:g}' if np.isfinite(median) else '—', f'{reached}']
    diverged = sum(row['status'] == 'diverged' for row in seeds)
    cells += [f'{diverged}' if diverged else '', '*' if name == best else '']
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
