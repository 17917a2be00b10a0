"""Defines the cells of Flower's baseline `fedavg_mnist`.

100 clients with two shards of MNIST each, all in every round, with the CNN of
`configs/flower_mnist.py`. The published histories have one run of each setting.
"""

from collections.abc import Iterator

from configs import flower_mnist
from experiments.gallery import cell as cell_lib
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Published
from experiments.gallery.cell import Source
from fedavg_jax.runs import run_config

SOURCE = Source(
  key='flower_mnist',
  title='Flower, MNIST with all 100 clients',
  published='Flower, `baselines/flwr_baselines/fedavg_mnist`: one saved history'
  ' for each setting.',
  inside='within 0.3 points at the round of the cell',
  differences='The baseline weights a client by its minibatches; its shards and'
  ' held-out tenths are other draws.',
)
# E, B, the round of the comparison, its accuracy; 99 % was reached before or is
# reached soon after it.
_POINTS = (
  (5, 10, 100, 0.9897),
  (1, 10, 200, 0.9910),
  (1, 50, 200, 0.9835),
  (5, 50, 200, 0.9890),
)
_SPEED = 2_500  # Examples per second of training on one core.


def _cells() -> Iterator[Cell]:
  for epochs, batch_size, number, accuracy in _POINTS:
    rounds = {100: 130, 200: 300}[number]
    config = run_config.read(flower_mnist.get_config()).replace(
      {
        'client.epochs': epochs,
        'client.batch_size': batch_size,
        'rounds': rounds,
      }
    )
    yield Cell(
      f'{SOURCE.key}/E_{epochs}_B_{batch_size}',
      SOURCE,
      config,
      cell_lib.at_round(number),
      minutes=rounds * epochs * 54_000 / _SPEED / 60,
      published=Published(accuracy, margin=0.003),
    )


CELLS = tuple(_cells())
