"""Reproduces Figure 9: CIFAR-10, test accuracy against minibatch gradients.

What the paper claims: measured by computation instead of rounds SGD is best,
and FedAvg with small E needs a small multiple of its minibatches; C = 0 (one
client per round) even competes in the beginning.

What to look for: the order of the curves by E, and C = 1 far to the right.

python -m experiments.paper.figure9 --cells 1 --rounds 100

B = 50, and the learning rates are the paper's, which mentions no decay. A round
of m clients and E epochs is 10 m E minibatches. 300,000 minibatches take a day
on two CPU cores for each curve: the figure is meant for a GPU.
"""

from experiments.paper import cells
from experiments.paper import figures

_MINIBATCHES = 300_000
_PER_CLIENT = 10  # 500 images in minibatches of 50.


def panels() -> list[figures.Panel]:
  """Returns one panel with seven curves."""
  curves = []
  for C, epochs, rate in (
    (0.0, 5, 0.05),
    (0.1, 1, 0.30),
    (0.1, 5, 0.17),
    (0.1, 10, 0.17),
    (0.1, 20, 0.15),
    (1.0, 5, 0.50),
  ):
    each = max(int(C * 100), 1) * epochs * _PER_CLIENT
    curves.append(
      figures.Curve(
        label=f'FedAvg C = {C:g}, E = {epochs}, lr = {rate}',
        cell=_cell('FedAvg', 'iid', C, epochs, rate, _MINIBATCHES // each),
        paper=f'FedAvg C={C} E={epochs} eta={rate:.2f}',
        scale=each,
      )
    )
  epoch = 100 * _PER_CLIENT
  curves.append(
    figures.Curve(
      label='SGD, lr = 0.15',
      cell=_cell('SGD', 'centralized', 0.0, 1, 0.15, _MINIBATCHES // epoch),
      paper='SGD eta=0.15',
      scale=epoch,
    )
  )
  return [
    figures.Panel(
      title='CIFAR-10, B = 50',
      curves=curves,
      x=('minibatch gradients', 0, _MINIBATCHES),
      y=('test accuracy', 0.3333, 0.9),
      paper='fig9_cifar_minibatches.csv',
    )
  ]


def _cell(algorithm, partition, C, epochs, rate, rounds) -> cells.Cell:
  return cells.Cell(
    table='figure 9',
    model='cifar_cnn',
    dataset='cifar10',
    partition=partition,
    C=C,
    E=epochs,
    B=50,
    algorithm=algorithm,
    target_accuracy=0.0,
    rounds=rounds,
    learning_rate=rate,
  )


if __name__ == '__main__':
  figures.main('figure9', __doc__, panels)
