"""Writes the gallery's page and its list of missing cells.

python -m experiments.gallery --report

Every block between `<!-- NAME -->` and `<!-- end -->` of docs/gallery.md is
generated from the files of results; the text around the blocks is not changed.
It takes seconds and needs no data.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import re
import statistics
from typing import Any
from typing import NamedTuple

import numpy as np

from experiments.gallery import catalog
from experiments.gallery import training
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Claim
from experiments.gallery.cell import Source
from fedavg_jax.runs.progress import duration

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'results'
PAGE = HERE.parents[1] / 'docs' / 'gallery.md'
MISSING = HERE / 'missing.md'
_BLOCK = re.compile(r'(<!-- (\w+) -->\n).*?(<!-- end -->)', re.S)
_VERDICTS = {True: 'inside', False: 'outside', None: 'no verdict'}
_LAST = 20  # Rounds of the means that stand for a curve without a number.


class Outcome(NamedTuple):
  """Holds the finished seeds of a cell.

  Attributes:
    cell: the cell.
    rows: seed -> row of results.
  """

  cell: Cell
  rows: Mapping[int, dict[str, Any]]

  @property
  def mean(self) -> float:
    """Returns the mean of our numbers over the seeds."""
    return statistics.fmean(row['value'] for row in self.rows.values())

  @property
  def is_inside(self) -> bool | None:
    """Returns whether the mean is inside; None if there is no verdict."""
    if self.cell.published is None or not self.rows:
      return None
    return self.cell.published.has_inside(self.mean)


def outcomes(folder: pathlib.Path, source: Source) -> list[Outcome]:
  """Returns the outcomes of all cells of a source, finished or not."""
  store = training.opened(folder, source)
  return [
    Outcome(cell, training.rows_of(cell, store)) for cell in catalog.of(source)
  ]


def table(folder: pathlib.Path) -> str:
  """Returns a line for each source: cells, done, inside, command."""
  lines = ['| source | cells | done | inside | command |', f'|{"---|" * 5}']
  for source in catalog.sources():
    found = outcomes(folder, source)
    done = [outcome for outcome in found if outcome.rows]
    marks = [o.is_inside for o in done if o.is_inside is not None]
    what = ''
    if source.claims:
      counts = [holds(claim, found) for claim in source.claims]
      marks = [number == seeds for number, seeds in counts if seeds]
      what = ' claims'
    lines.append(
      f'| {source.title} | {len(found)} | {len(done)} |'
      f' {sum(marks)} of {len(marks)}{what} | `--run {source.key}` |'
    )
  return '\n'.join(lines)


def detail(folder: pathlib.Path) -> str:
  """Returns a folded part for each source that has finished cells."""
  parts = []
  for source in catalog.sources():
    found = outcomes(folder, source)
    done = [outcome for outcome in found if outcome.rows]
    if done:
      if source.claims:
        rows = f'{_claims(source, found)}\n\n{_curves(done)}'
      else:
        rows = _numbers(done)
      parts.append(
        f'<details><summary>{source.title}</summary>\n\n'
        f'Published: {source.published} Inside: {source.inside}.'
        f' Differences: {source.differences}\n\n{rows}\n\n'
        f'{_origin(done)}\n\n</details>'
      )
  return '\n\n'.join(parts)


def _numbers(done: Sequence[Outcome]) -> str:
  """Returns a table of our numbers beside the published ones, in percent."""
  lines = [
    '| cell | number | published | ours | seeds | |',
    f'|{"---|" * 6}',
  ]
  for outcome in done:
    cell, rows = outcome
    assert cell.published is not None
    published = cell.published.words or f'{100 * cell.published.value:g}'
    if cell.published.spread is not None:
      published += f' ± {100 * cell.published.spread:g}'
    each = [f'{100 * rows[seed]["value"]:.2f}' for seed in sorted(rows)]
    lines.append(
      f'| {_short(cell)} | {cell.reading.name} | {published} |'
      f' {100 * outcome.mean:.2f} | {", ".join(each)} |'
      f' {_VERDICTS[outcome.is_inside]} |'
    )
  return '\n'.join(lines)


def holds(claim: Claim, found: Sequence[Outcome]) -> tuple[int, int]:
  """Returns in how many seeds a claim holds, and how many have both cells."""
  rows = {_short(outcome.cell): outcome.rows for outcome in found}
  lower, higher = rows[claim.lower], rows[claim.higher]
  both = sorted(set(lower) & set(higher))
  ends = [
    [_end(r[seed], claim.curve) for r in (lower, higher)] for seed in both
  ]
  return sum(low < high for low, high in ends), len(both)


def _claims(source: Source, found: Sequence[Outcome]) -> str:
  """Returns a table of the claims, and in how many seeds each holds."""
  lines = ['| what a figure shows | holds |', '|---|---|']
  for claim in source.claims:
    number, seeds = holds(claim, found)
    if seeds:
      lines.append(f'| {claim.text} | in {number} of {seeds} seeds |')
  return '\n'.join(lines)


def _curves(done: Sequence[Outcome]) -> str:
  """Returns a table of the ends of all curves, means over seeds."""
  names = list(next(iter(done[0].rows.values()))['curves'])
  lines = [
    f'Means of the last {_LAST} rounds and of the seeds:',
    '',
    f'| cell | {" | ".join(names).replace("_", " ")} | seeds |',
    f'|{"---|" * (len(names) + 2)}',
  ]
  for cell, rows in done:
    ends = [
      f'{statistics.fmean(_end(row, name) for row in rows.values()):.4g}'
      for name in names
    ]
    lines.append(f'| {_short(cell)} | {" | ".join(ends)} | {len(rows)} |')
  return '\n'.join(lines)


def _end(row: dict[str, Any], name: str) -> float:
  return statistics.fmean(row['curves'][name][-_LAST:])


def _short(cell: Cell) -> str:
  """Returns a cell's name without its source."""
  return cell.name.partition('/')[2]


def _origin(done: Sequence[Outcome]) -> str:
  """Returns where and when the rows were computed, a line for each place."""
  seen: dict[str, list[str]] = {}
  for row in (row for outcome in done for row in outcome.rows.values()):
    versions = row['versions']
    where = (
      f'{row["num_devices"]} device(s) of kind {row["device"]}'
      f' ({row["processor"]}), jax {versions["jax"]}, commit {row["commit"]}'
    )
    seen.setdefault(where, []).append(row['date'])
  return '\n'.join(
    f'- {len(dates)} runs on {where}, {min(dates)} to {max(dates)}'
    for where, dates in sorted(seen.items())
  )


def missing(folder: pathlib.Path) -> str:
  """Returns the commands of the cells without a result, with their times."""
  lines = [
    '# Missing cells',
    '',
    'Cells without a result, and the time of one seed on one CPU core, as'
    ' `python -m experiments.gallery --report` estimates it:',
    '',
  ]
  total = 0.0
  for source in catalog.sources():
    for cell, rows in outcomes(folder, source):
      if not rows:
        total += cell.minutes
        lines.append(
          f'- `python -m experiments.gallery --run {cell.name}`: about'
          f' {duration(60 * cell.minutes)}'
        )
  return '\n'.join([*lines, '', f'Together about {duration(60 * total)}.', ''])


def listing(folder: pathlib.Path) -> str:
  """Returns a line of plain text for each cell, and how to run it."""
  lines = []
  for source in catalog.sources():
    lines.append(f'{source.title} (inside: {source.inside})')
    for outcome in outcomes(folder, source):
      cell = outcome.cell
      published = cell.published
      text = 'figure'
      if published is not None:
        text = published.words or f'{published.value:.4f}'
      state = f'about {duration(60 * cell.minutes)} a seed'
      if outcome.rows:
        state = f'{outcome.mean:.4f}, {len(outcome.rows)} seed(s)'
        if published is not None:
          state += f', {_VERDICTS[outcome.is_inside]}'
      lines.append(f'  {cell.name:46} {text:>8}  {state}')
  return '\n'.join(lines)


def page(text: str, folder: pathlib.Path) -> str:
  """Returns the text of the page with every block generated again."""
  blocks = {'table': table, 'detail': detail}
  return _BLOCK.sub(
    lambda match: f'{match[1]}{blocks[match[2]](folder)}\n{match[3]}', text
  )


def curves_of_seeds(outcome: Outcome, name: str) -> np.ndarray:
  """Returns a curve of each seed, [S, T]."""
  return np.array([row['curves'][name] for row in outcome.rows.values()])
