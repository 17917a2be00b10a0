"""Writes the table and the picture of a sweep."""

from collections.abc import Sequence
import pathlib

import numpy as np

from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import write_text
from fedavg_jax.runs import compare
from fedavg_jax.runs.grid_jobs import Job
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.targets import Measure

_MOST_CURVES = 20  # More are not distinguishable in one picture.


def report(jobs: Sequence[Job], workdir: pathlib.Path) -> None:
  """Prints the table, and writes it and the picture to the sweep's folder."""
  runs: dict[str, list[compare.Run]] = {}
  for job in jobs:
    runs.setdefault(job.name, []).append(compare.read_run(job.folder))
  target = jobs[0].cfg.ends_at
  measure = runs[jobs[0].name][0].measure
  rows = {
    name: [compare.row(run, target) for run in seeds]
    for name, seeds in runs.items()
  }
  best = min(rows, key=lambda name: _merit(rows[name], target, measure))
  if np.isfinite(_merit(rows[best], target, measure)[1]) and target:
    why = f'fewest rounds to {target:g}'
  else:
    why = f'highest mean of the best {measure.name}'
    if measure.lower_is_better:
      why = f'lowest mean of the best {measure.name}'
  most = 'minimum' if measure.lower_is_better else 'maximum'
  text = (
    f'{_table(rows, target, best, measure)}\n\nBest: {best}, {why}; chosen on'
    f' the {measure.on} set, of which the best {measure.name} is the {most}'
    ' over the rounds'
  )
  say(text)
  write_text(workdir / 'table.md', text + '\n')
  shown = sorted(rows, key=lambda name: _merit(rows[name], target, measure))
  shown = [name for name in rows if name in shown[:_MOST_CURVES]]
  with atomic_write(workdir / 'sweep.png') as part:
    compare.draw(part, {name: runs[name] for name in shown}, target)
  say(f'{workdir}/table.md, {workdir}/sweep.png')


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
