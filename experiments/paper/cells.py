"""Defines a cell, one setting of the paper, and builds its federation.

Learning rates are on the paper's grid, powers of 10^(1/3) or 10^(1/6) around a
centre for each setting. The paper prints no learning rates for the cells of its
tables: the centres are ours, chosen so that the best rate is inside the grid.

Shape letter: G learning rates.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import optax

from experiments.paper import published
import fedavg_jax as fa
from fedavg_jax.runs import checkpoint

# Folder of each data set inside the data folder.
DATASETS = {
  'digits': '',
  'mnist': 'mnist',
  'mnist_writers': '',  # Its files are in mnist/ and qmnist_writers/.
  'leaf': 'femnist_leaf',
  'cifar10': 'cifar-10-batches-bin',
  'shakespeare': 'shakespeare',
  'words': 'words',
}
# Exponents of ten at the centre of the grid, by model, partition and whether B
# is infinite: full batches allow larger rates, two digits per client smaller.
_MIDDLES = {
  ('2nn', 'iid', False): -2 / 3,
  ('2nn', 'iid', True): -1 / 3,
  ('2nn', 'noniid', False): -2 / 3,
  ('2nn', 'noniid', True): -1 / 3,
  ('cnn', 'iid', False): -2 / 3,
  ('cnn', 'iid', True): -1 / 3,
  ('cnn', 'noniid', False): -1,
  ('cnn', 'noniid', True): -2 / 3,
  ('char_lstm', 'iid', False): 1 / 6,
  ('char_lstm', 'iid', True): 1 / 3,
  ('char_lstm', 'noniid', False): 1 / 6,
  ('char_lstm', 'noniid', True): 1 / 3,
  ('cifar_cnn', 'iid', False): -5 / 6,
  ('cifar_cnn', 'iid', True): -1 / 6,
  ('cifar_cnn', 'centralized', False): -5 / 6,
  ('word_lstm', 'noniid', False): 5 / 6,
  ('word_lstm', 'noniid', True): 7 / 6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """Describes one setting; letters are the paper's.

  Attributes:
    table: the table or figure, such as '4' or 'figure 8'.
    model: a name of `choices.MODELS`.
    dataset: a key of `DATASETS`.
    partition: 'iid', 'noniid', or 'centralized' for plain SGD with one client.
    C: the fraction of the clients in a cohort; 0 is one client.
    E: local epochs.
    B: examples per minibatch; inf is all examples of a client.
    algorithm: the paper's name of the row: FedAvg, FedSGD or SGD.
    target_accuracy: the accuracy that ends the sweep once a learning rate has
      reached it; 0 for none.
    rounds: the largest number of rounds.
    paper_rounds: the paper's number of rounds, None where it prints none.
    u: the mean local updates per client and round, as the paper prints them.
    middle: the centre of the learning rate grid, as an exponent of ten.
    decay: the factor of the learning rate every `decay_rounds`.
    decay_rounds: rounds from one decay to the next.
    measured: the examples that the model is evaluated on, 'test' or 'train'.
    eval_every: rounds from one evaluation to the next.
    learning_rate: the only learning rate, where the paper prints it; None for a
      grid.
    cohort: clients per round, where the paper prints it instead of C.
    counted: updates that one round counts as; 1 but for SGD, whose round is an
      epoch.
  """

  table: str
  model: str
  dataset: str
  partition: str
  C: float
  E: int
  B: float
  algorithm: str
  target_accuracy: float
  rounds: int
  paper_rounds: int | None = None
  u: float | None = None
  middle: float = 0.0
  decay: float = 1.0
  decay_rounds: int = 1
  measured: str = 'test'
  eval_every: int = 1
  learning_rate: float | None = None
  cohort: int | None = None
  counted: int = 1

  def setting(self) -> dict[str, Any]:
    """Returns what determines a curve, except learning rate and seed; JSON."""
    names = ('model', 'dataset', 'partition', 'C', 'E', 'B')
    names += ('cohort', 'decay', 'decay_rounds', 'measured', 'eval_every')
    values = {name: getattr(self, name) for name in names}
    values['B'] = 'inf' if math.isinf(self.B) else int(self.B)
    return values

  def describe(self) -> str:
    """Returns one line in the paper's letters."""
    B = self.setting()['B']
    cohort = f'C={self.C:g}' if self.cohort is None else f'm={self.cohort}'
    return (
      f'{self.algorithm} {self.model} {self.dataset} {self.partition}'
      f' {cohort} E={self.E} B={B}'
    )

  def grid(self, values: int, ratio: int) -> tuple[float, ...]:
    """Returns G learning rates around the centre, or the printed one alone.

    Args:
      values: G; with an odd number the grid is symmetric.
      ratio: 3 for steps of 10^(1/3), 6 for 10^(1/6).
    """
    if self.learning_rate is not None:
      return (self.learning_rate,)
    first = self.middle - (values - 1) // 2 / ratio
    return tuple(
      float(f'{10 ** (first + i / ratio):.3g}') for i in range(values)
    )


def of_table(
  table: int, settle: Callable[[Cell], dict[str, Any]]
) -> list[Cell]:
  """Returns the cells that the paper prints in a table, in its order.

  Args:
    table: the number of the table, 1 to 4.
    settle: a function from a cell to the fields that the table does not print,
      at least `rounds`.
  """
  cells = []
  for row in published.cells(table):
    if row['algorithm'] == 'SGD':  # One client has all the data.
      row |= {'C': '0', 'E': '1'}
    infinite = math.isinf(float(row['B']))
    cell = Cell(
      table=row['table'],
      model=row['model'],
      dataset=row['dataset'],
      partition=row['partition'],
      C=float(row['C']),
      E=int(row['E']),
      B=float(row['B']),
      algorithm=row['algorithm'],
      target_accuracy=float(row['target_accuracy']),
      rounds=0,
      paper_rounds=int(row['rounds']) if row['rounds'] else None,
      u=float(row['u']) if row['u'] else None,
      middle=_MIDDLES[row['model'], row['partition'], infinite],
    )
    cells.append(dataclasses.replace(cell, **settle(cell)))
  return cells


@functools.cache
def load(dataset: str, data: str) -> fa.Dataset:
  """Loads a data set from its folder in `data`; '' downloads it if possible."""
  folder = f'{data}/{DATASETS[dataset]}' if data else ''
  return fa.load_dataset(dataset, folder)


@functools.cache
def digest(dataset: str, data: str) -> str:
  """Returns the first 16 digits of the SHA-256 of a data set."""
  loaded = load(dataset, data)
  owners = [] if loaded.owners is None else [loaded.owners]
  return checkpoint.digest([*loaded.train, *loaded.test, *owners])[:16]


def divide(partition: str, dataset: fa.Dataset, seed: int) -> list[np.ndarray]:
  """Partitions the training examples as the paper does.

  Returns:
    [K] arrays of indices, one for each client.
  """
  number = len(dataset.train.y)
  if partition == 'centralized':
    return [np.arange(number)]
  natural = dataset.owners
  if natural is not None:
    parts = fa.partition.by_owner(natural)
    if partition == 'noniid':
      return parts
    return fa.partition.iid(number, num_clients=len(parts), seed=seed)
  if partition == 'noniid':
    return fa.partition.shards(
      dataset.train.y, num_clients=100, shards_per_client=2, seed=seed
    )
  return fa.partition.iid(number, num_clients=100, seed=seed)


def build(
  cell: Cell,
  learning_rates: Sequence[float],
  seed: int,
  dataset: fa.Dataset,
) -> fa.Simulation:
  """Builds and compiles the sweep of a cell over learning rates.

  Args:
    cell: the setting.
    learning_rates: the learning rates, [G].
    seed: the seed of partition, initial weights, cohorts and example orders.
    dataset: the data set of `load`.
  """

  def algorithm(learning_rate: jax.Array) -> fa.Algorithm:
    return fa.fedavg(
      fa.decayed_sgd(learning_rate, cell.decay, cell.decay_rounds),
      optax.sgd(1.0),
    )

  clients = fa.build_clients(
    dataset.train, divide(cell.partition, dataset, seed)
  )
  fraction = cell.C
  if cell.cohort is not None:
    fraction = min(cell.cohort / clients.num_clients, 1.0)
  pipeline = {}
  if cell.model == 'cifar_cnn':
    pipeline = {'pixels': 'image', 'augmentation': 'tutorial'}
  federation = fa.Federation(
    clients,
    dataset.test if cell.measured == 'test' else dataset.train,
    client_fraction=fraction,
    epochs=cell.E,
    batch_size=0 if math.isinf(cell.B) else int(cell.B),
    seed=seed,
  )
  model = fa.build_model(cell.model, dataset, **pipeline)
  return fa.build_sweep(model, federation, algorithm, learning_rates)
