"""Reads the numbers that McMahan et al. 2017 print in their tables.

`published_tables.csv` has every cell of Tables 1 to 4 of arXiv 1602.05629v3.
"""

import csv
import pathlib

_TABLES = pathlib.Path(__file__).parent / 'published_tables.csv'


def cells(table: int) -> list[dict[str, str]]:
  """Returns the cells of Table 1, 2, 3 or 4, in the order of the file."""
  return [row for row in _cells() if row['table'] == str(table)]


def _cells() -> list[dict[str, str]]:
  with open(_TABLES, encoding='utf-8') as file:
    return list(csv.DictReader(file))
