"""The numbers that McMahan et al. 2017 printed, to stand beside ours.

`published_tables.csv` holds every cell of Tables 1 to 4 of arXiv 1602.05629v3.
"""

import csv
import pathlib

_TABLES = pathlib.Path(__file__).parent / 'published_tables.csv'


def cells(table: int) -> list[dict[str, str]]:
  """The cells of Table 1, 2, 3 or 4 as they stand in the file."""
  return [row for row in _cells() if row['table'] == str(table)]


def _cells() -> list[dict[str, str]]:
  with open(_TABLES, encoding='utf-8') as file:
    return list(csv.DictReader(file))
