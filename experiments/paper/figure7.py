"""Reproduces Figure 7: test accuracy of the 2NN against rounds, C = 0.1.

What the paper claims: as in Figure 2, for a smaller model: every row of Table 4
beats FedSGD, by much with IID clients and by less with two digits per client.

What to look for: with IID clients the curves rise in the order of their local
updates and end within a few tenths of a percent of each other; the non-IID
curves are rougher.

python -m experiments.paper.figure7 --show
python -m experiments.paper.figure7 --cells 1-9 --learning-rates 0.215

Every curve is tuned over learning rates; 2,000 rounds at one of them take 40 s
(E = 1) to 17 minutes (E = 20, B = 10) on two CPU cores. The runs of Table 4,
which end at their target, are drawn too.
"""

import dataclasses

from experiments.paper import figures
from experiments.paper import table4


def panels() -> list[figures.Panel]:
  """Returns two panels: IID and non-IID."""
  found = []
  for title, partition in (('IID', 'iid'), ('non-IID', 'noniid')):
    cells = [
      dataclasses.replace(
        cell, table='figure 7', rounds=2000, target_accuracy=0.0
      )
      for cell in table4.table()
      if cell.partition == partition
    ]
    found.append(
      figures.Panel(
        title=f'MNIST 2NN, {title}',
        curves=[figures.tuned(cell) for cell in cells],
        x=('communication rounds', 0, 2000),
        y=('test accuracy', 0.9, 1.0),
        target=0.97,
      )
    )
  return found


if __name__ == '__main__':
  figures.main('figure7', __doc__, panels)
