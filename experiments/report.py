"""Puts the results into experiments/README.md, between its markers.

python -m experiments.report

Every block between `<!-- NAME -->` and `<!-- end -->` is made anew from the
files of results; the words around them stay. A second; needs no data.
"""

import json
import pathlib
import re

from experiments import figure1
from experiments import figure2
from experiments import figure3
from experiments import figure4
from experiments import figure5
from experiments import figure6
from experiments import figure7
from experiments import figure8
from experiments import figure9
from experiments import figure10
from experiments import figures
from experiments import results
from experiments import table1
from experiments import table2
from experiments import table3
from experiments import table4
from experiments import tables

PAGE = pathlib.Path(__file__).parent / 'README.md'
_TABLES = {
  'table1': table1,
  'table2': table2,
  'table3': table3,
  'table4': table4,
}
_FIGURES = {
  'figure2': figure2,
  'figure3': figure3,
  'figure4': figure4,
  'figure5': figure5,
  'figure6': figure6,
  'figure7': figure7,
  'figure8': figure8,
  'figure9': figure9,
  'figure10': figure10,
}
_BLOCK = re.compile(r'(<!-- (\w+) -->\n).*?(<!-- end -->)', re.S)


def block(name: str, store: results.Results) -> str:
  """What stands between the markers of a name."""
  if name in _TABLES:
    table = tables.render(name, _TABLES[name].table(), store)
    printed, *missing = table.split('\n\nMissing: ')
    if not missing:
      return printed
    return f'{printed}\n\n{_folded("Missing: " + missing[0])}'
  if name in _FIGURES:
    panels = _FIGURES[name].panels()
    return _folded(figures.missing(name, figures.cells_of(panels), store))
  if name == 'figure1':
    with open(figure1.RESULTS, encoding='utf-8') as file:
      return figure1.summarize([json.loads(line) for line in file])
  if name == 'provenance':
    return provenance(store)
  raise ValueError(f'{PAGE}: has an unknown block {name}')


def provenance(store: results.Results) -> str:
  """Where the rows were made, one line for each kind of machine."""
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
  """The page with every block made anew."""
  return _BLOCK.sub(
    lambda match: f'{match[1]}\n{block(match[2], store)}\n\n{match[3]}', text
  )


if __name__ == '__main__':
  PAGE.write_text(
    page(PAGE.read_text('utf-8'), results.Results(results.DEFAULT)), 'utf-8'
  )
