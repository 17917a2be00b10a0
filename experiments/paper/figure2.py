"""Reproduces Figure 2: test accuracy against rounds, CNN and LSTM.

What the paper claims: with C = 0.1, local epochs and small minibatches (E = 5
or 20, B = 10) reach the target in a fraction of FedSGD's rounds (E = 1, B =
inf), on both partitions of both tasks.

What to look for: the order of the curves where they cross the grey line, the
target, and the flatter curves of large E in later rounds.

python -m experiments.paper.figure2 --show
python -m experiments.paper.figure2 --cells 5 --minutes 60

Every curve is tuned over learning rates. The runs of Table 2, which end at
their target, are drawn too; complete curves (1,000 and 4,000 rounds) are meant
for a GPU.
"""

import dataclasses

from experiments.paper import figures
from experiments.paper import table2


def panels() -> list[figures.Panel]:
  """Returns four panels: CNN IID and non-IID, LSTM IID and by role."""
  found = []
  for title, model, partition, rounds, target, y in (
    ('MNIST CNN, IID', 'cnn', 'iid', 1000, 0.99, (0.969, 1.001)),
    ('MNIST CNN, non-IID', 'cnn', 'noniid', 1000, 0.99, (0.969, 1.001)),
    ('Shakespeare, IID', 'char_lstm', 'iid', 4000, 0.54, (0.2, 0.63)),
    ('Shakespeare, by role', 'char_lstm', 'noniid', 4000, 0.54, (0.2, 0.63)),
  ):
    cells = [
      dataclasses.replace(
        cell, table='figure 2', rounds=rounds, target_accuracy=0.0
      )
      for cell in table2.table()
      if (cell.model, cell.partition) == (model, partition)
    ]
    found.append(
      figures.Panel(
        title=title,
        curves=[figures.tuned(cell) for cell in cells],
        x=('communication rounds', 0, rounds),
        y=('test accuracy', *y),
        target=target,
      )
    )
  return found


if __name__ == '__main__':
  figures.main('figure2', __doc__, panels)
