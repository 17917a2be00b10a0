"""Defines two cells of a table on digits, and runs them as a script."""

from experiments.paper import cells
from experiments.paper import tables


def table():
  return [
    cells.Cell(
      table='test',
      model='2nn',
      dataset='digits',
      partition=partition,
      C=0.1,
      E=2,
      B=10,
      algorithm='FedAvg',
      target_accuracy=target,
      rounds=60,
      paper_rounds=20,
      middle=-2 / 3,
    )
    for partition, target in (('iid', 0.9), ('noniid', 0.99))
  ]


if __name__ == '__main__':
  tables.main('table0', __doc__, table)
