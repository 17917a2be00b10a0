"""Reproduces Figure 6: training loss of the MNIST CNN against rounds, C = 0.1.

What the paper claims: the results of Figure 2 for test accuracy also hold for
the training loss: local updates lower it faster, in both partitions.

What to look for: on the logarithmic axis, the distance between FedSGD and the
curves with B = 10; the non-IID curves are rough. The paper's own curves were
not read off.

python -m experiments.paper.figure6 --cells 5 --rounds 50

Every curve is tuned over learning rates. 6,000 rounds are meant for a GPU;
every round computes the loss of all 60,000 training images, which takes 6 s on
two CPU cores.
"""

import dataclasses

from experiments.paper import figures
from experiments.paper import table2


def panels() -> list[figures.Panel]:
  """Returns two panels: IID and non-IID."""
  found = []
  for title, partition in (('IID', 'iid'), ('non-IID', 'noniid')):
    cells = [
      dataclasses.replace(
        cell,
        table='figure 6',
        rounds=6000,
        target_accuracy=0.0,
        measured='train',
      )
      for cell in table2.table()
      if (cell.model, cell.partition) == ('cnn', partition)
    ]
    found.append(
      figures.Panel(
        title=f'MNIST CNN, {title}',
        curves=[figures.tuned(cell) for cell in cells],
        x=('communication rounds', 0, 6000),
        y=('training loss', 1e-6, 1.0),
        loss=True,
      )
    )
  return found


if __name__ == '__main__':
  figures.main('figure6', __doc__, panels)
