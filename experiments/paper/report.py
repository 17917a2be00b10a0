"""Writes the results into the two READMEs, between their markers.

python -m experiments.paper.report

Every block between `<!-- NAME -->` and `<!-- end -->` is generated from the
files of results; the text around the blocks is not changed. It takes a second
and needs no data.
"""

from collections.abc import Sequence
import importlib
import pathlib
import re
from typing import Any

from experiments.paper import figure1
from experiments.paper import figures
from experiments.paper import results
from experiments.paper import tables

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (ROOT / 'README.md', pathlib.Path(__file__).parent / 'README.md')
_BLOCK = re.compile(r'(<!-- (\w+) -->\n).*?(<!-- end -->)', re.S)
# (table, cell) of the rows that the front page shows.
_FRONT = (
  *((2, n) for n in (5, 3, 8, 6, 9, 14)),
  *((4, n) for n in (1, 5, 9, 10, 14, 18)),
)


def block(name: str, store: results.Results) -> str:
  """Returns the content of the block of a name."""
  if name == 'provenance':
    return provenance(store)
  if name == 'figure1':
    return figure1.summarize(figure1.results_in(figure1.RESULTS).rows)
  if name == 'front':
    return front(store)
  module: Any = importlib.import_module(f'experiments.paper.{name}')
  if name.startswith('figure'):
    cells = figures.cells_of(module.panels())
    return _folded(figures.missing(name, cells, store))
  printed, *missing = tables.render(name, module.table(), store).split(
    '\n\nMissing: '
  )
  if not missing:
    return printed
  return f'{printed}\n\n{_folded("Missing: " + missing[0])}'


def front(store: results.Results) -> str:
  """Returns the front page's table, which has a few cells of the tables."""
  lines = [
    "| | C | E | B | paper | ours | ours, on the paper's grid |",
    f'|{"---|" * 7}',
  ]
  for table, number in _FRONT:
    module: Any = importlib.import_module(f'experiments.paper.table{table}')
    cells: Sequence[tables.Cell] = module.table()
    cell = cells[number - 1]
    counts = tables.counts(cell, store)
    lines.append(
      f'| {cell.algorithm} {cell.model.upper()}, {cell.partition}, to'
      f' {100 * cell.target_accuracy:g} % | {cell.C:g} | {cell.E} |'
      f' {cell.setting()["B"]} | {cell.paper_rounds} | {counts.shown[0]} |'
      f' {counts.shown[1]} |'
    )
  return '\n'.join(lines)


def provenance(store: results.Results) -> str:
  """Returns the origin of the rows, one line for each kind of machine."""
  seen = {}
  for row in store.rows:
    versions = row['versions']
    where = (
      f'{row["num_devices"]} device(s) of kind {row["device"]}'
      f' ({row["processor"]}), jax {versions["jax"]}, flax {versions["flax"]}'
    )
    seen.setdefault(where, []).append(row['date'])
  return '\n'.join(
    f'- {len(dates):,} runs on {where}, {min(dates)} to {max(dates)}'
    for where, dates in sorted(seen.items())
  )


def _folded(text: str) -> str:
  first, _, rest = text.partition('\n')
  if not rest:
    return text
  return (
    f'<details><summary>{first.removeprefix("- ")}</summary>\n\n'
    f'{rest.strip()}\n\n</details>'
  )


def page(text: str, store: results.Results) -> str:
  """Returns the text of a page with every block generated again."""
  return _BLOCK.sub(
    lambda match: f'{match[1]}\n{block(match[2], store)}\n\n{match[3]}', text
  )


if __name__ == '__main__':
  of_all = results.Results(results.DEFAULT)
  for path in PAGES:
    path.write_text(page(path.read_text('utf-8'), of_all), 'utf-8')
