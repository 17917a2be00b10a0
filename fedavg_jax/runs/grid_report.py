"""Writes the tables and the picture of a sweep."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import write_text
from fedavg_jax.runs import compare
from fedavg_jax.runs import plots
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
  statistics = seed_statistics.settings(runs, target)
  choice = _choose(runs, rows, target, measure, choose_on)
  text = f'{_table(rows, target, choice.best, measure)}\n\n' + (
    _chosen(choice, statistics, measure)
    if choice.best
    else f'Best: none is chosen, because {choice.why}'
  )
  say(text)
  write_text(workdir / 'table.md', text + '\n')
  for suffix, form in results_table.FORMATS.items():
    content = form(statistics, target, measure, choice.best)
    write_text(workdir / f'results{suffix}', content)
  shown = [name for name in rows if name in choice.order[:_MOST_CURVES]]
  with atomic_write(workdir / 'sweep.png') as part:
    curves = {name: runs[name] for name in shown}
    compare.draw(part, curves, target, plots.SWEEP)
  few = f' (the best {len(shown)} of {len(rows)} settings)'
  say(
    f'{workdir}/table.md, {workdir}/sweep.png{few * (len(shown) < len(rows))};'
    f' {workdir}/results{{.csv,.md,.tex}}: mean and standard deviation'
  )


class _Choice(NamedTuple):
  """Holds which setting is chosen.

  Attributes:
    order: the names of all settings, best first.
    best: the name of the one that is chosen; '' is none.
    why: the reason for it, or for choosing none.
  """

  order: list[str]
  best: str
  why: str


def _choose(
  runs: Mapping[str, Sequence[compare.Run]],
  rows: Mapping[str, Sequence[dict[str, Any]]],
  target: float,
  measure: Measure,
  choose_on: str,
) -> _Choice:
  """Chooses a setting by the seeds that all settings have.

  Args:
    runs: the runs of each setting.
    rows: their rows of `compare.row`, in the same order.
    target: the target of the runs; 0 is none.
    measure: their measure.
    choose_on: the set on which a setting is chosen.
  """
  seeds = set.intersection(
    *({run.seed for run in own} for own in runs.values())
  )
  judged = {
    name: [
      row
      for row, run in zip(rows[name], own, strict=True)
      if run.seed in seeds or not seeds
    ]
    for name, own in runs.items()
  }
  order = sorted(judged, key=lambda name: _merit(judged[name], target, measure))
  best = order[0]
  if measure.on != choose_on:
    return _Choice(order, '', _NO_VALIDATION)
  if not seeds:
    return _Choice(order, '', _no_common_seed(runs))
  over = ''
  if len(seeds) < max(map(len, runs.values())):
    over = f', over the seeds of all settings, {_join(sorted(seeds))}'
  if all(row['status'] == 'diverged' for row in judged[best]):
    return _Choice(order, '', f'every run has diverged{over}')
  return _Choice(order, best, _why(judged, best, target, measure) + over)


_NO_VALIDATION = (
  'the runs have no validation set; give them one with'
  ' --config.validation_fraction=0.1, or choose on the test set with'
  ' --choose_on=test'
)


def _no_common_seed(runs: Mapping[str, Sequence[compare.Run]]) -> str:
  """Returns why none is chosen, with the first seeds that are missing."""
  every = {run.seed for own in runs.values() for run in own}
  name, missing = next(
    (name, missing)
    for name, own in runs.items()
    if (missing := sorted(every - {run.seed for run in own}))
  )
  return (
    f'no seed has runs of all settings; {name} has none of the seed'
    f' {_join(missing)}'
  )


def _join(seeds: Sequence[int]) -> str:
  return ', '.join(map(str, seeds))


def _why(rows, best: str, target, measure: Measure) -> str:
  """Returns the reason for which a setting was chosen.

  Args:
    rows: the rows of each setting, of the seeds that decide.
    best: the setting.
    target: the target of the runs; 0 is none.
    measure: the measure of the runs.
  """
  merits = {name: _merit(own, target, measure) for name, own in rows.items()}
  diverged, rounds, _ = merits[best]
  few = any(merit[0] != diverged for merit in merits.values())
  first = 'fewest diverged seeds, then ' if few else ''
  if np.isfinite(rounds) and target:
    return f'{first}fewest rounds to {target:g}'
  most = 'lowest' if measure.lower_is_better else 'highest'
  return f'{first}{most} mean of the best {measure.name}'


def _chosen(
  choice: _Choice,
  statistics: Sequence[seed_statistics.Setting],
  measure: Measure,
) -> str:
  """Returns the line about the chosen setting, with its final test."""
  text = f'Best: {choice.best}, {choice.why}; chosen on the {measure.on} set'
  if not any(row.stopped for row in statistics):
    most = 'minimum' if measure.lower_is_better else 'maximum'
    text += f', of which the best {measure.name} is the {most} over the rounds'
  (final,) = (
    row.moments.final for row in statistics if row.name == choice.best
  )
  if final is None or measure.on == 'test':
    return text
  cell = results_table.cell(final, measure.show)
  return f'{text}; final {measure.name} on the test set {cell} (n = {final.n})'


def _merit(rows, target, measure: Measure) -> tuple[float, float, float]:
  """Returns a sort key, best first: diverged seeds, rounds to target, best.

  The best is the mean over the seeds that have not diverged, and the last if
  all have.
  """
  values = [row['best'] for row in rows if row['status'] != 'diverged']
  diverged = float(len(rows) - len(values))
  best = -measure.score(float(np.mean(values))) if values else np.inf
  reached = [
    np.inf if row['to_target'] is None else row['to_target'] for row in rows
  ]
  return diverged, float(np.median(reached)) if target else 0.0, best


def _table(rows, target, best, measure: Measure) -> str:
  """Formats the settings as a table in Markdown, and marks the best one."""
  head = ['setting', 'seeds']
  # Runs that end at the target have no comparable best values.
  stopped = any(
    row['status'] == 'target reached'
    for seeds in rows.values()
    for row in seeds
  )
  if not stopped:
    head += [f'best {measure.name}: mean', 'lowest', 'highest']
  if target:
    head += [f'rounds to {target:g}: median', 'reached by']
  head += ['diverged', '']
  lines = [head, ['---'] * len(head)]
  for name, seeds in rows.items():
    diverged = sum(row['status'] == 'diverged' for row in seeds)
    cells = [name, f'{len(seeds)}']
    if not stopped:
      values = [row['best'] for row in seeds]
      cells += (
        ['—'] * 3
        if diverged
        else map(
          measure.show, (float(np.mean(values)), min(values), max(values))
        )
      )
    if target:
      median = _merit(seeds, target, measure)[1]
      reached = sum(row['to_target'] is not None for row in seeds)
      cells += [f'{median:g}' if np.isfinite(median) else '—', f'{reached}']
    cells += [f'{diverged}' if diverged else '', '*' if name == best else '']
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
