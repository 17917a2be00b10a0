"""The numbers that McMahan et al. 2017 printed, to stand beside ours.

`paper_tables.csv` holds every cell of Tables 1 to 4 of arXiv 1602.05629v3.
"""

import csv
from importlib import resources


def cells(table: int) -> list[dict[str, str]]:
  """The cells of Table 1, 2, 3 or 4 as they stand in the file."""
  return [row for row in _cells() if row['table'] == str(table)]


def rounds_in_paper(
  *,
  model: str,
  dataset: str,
  partition: str,
  client_fraction: float,
  epochs: int,
  batch_size: int,
  target_accuracy: float,
) -> list[int]:
  """Rounds to the target that the paper prints for a setting.

  Args:
    model: '2nn' or 'cnn'.
    dataset: 'mnist'.
    partition: 'iid' or 'noniid'.
    client_fraction: C.
    epochs: E.
    batch_size: B, 0 for infinity.
    target_accuracy: as a fraction.

  Returns:
    Ascending, one entry for each table that has the cell; empty where the
    paper has no such setting or did not reach the target.
  """
  wanted = {
    'model': model,
    'dataset': dataset,
    'partition': partition,
    'C': client_fraction,
    'E': epochs,
    'B': batch_size or float('inf'),
    'target_accuracy': target_accuracy,
  }

  def same(cell: str, value: str | float) -> bool:
    if isinstance(value, str):
      return cell == value
    return bool(cell) and float(cell) == value

  return sorted(
    int(row['rounds'])
    for row in _cells()
    if row['rounds'] and all(same(row[key], v) for key, v in wanted.items())
  )


def _cells() -> list[dict[str, str]]:
  table = resources.files('fedavg_jax').joinpath('paper_tables.csv')
  with table.open(encoding='utf-8') as file:
    return list(csv.DictReader(file))
