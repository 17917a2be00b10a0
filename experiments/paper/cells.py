"""One setting of the paper, and the federation that it describes.

Learning rates lie on the paper's grid, powers of 10^(1/3) or 10^(1/6) around a
middle that belongs to the setting. The paper prints no rate of a table's cell:
the middles are ours, found by looking where the best one lies.

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

# Where each data set lies under the data folder.
DATASETS = {
  'digits': '',
  'mnist': 'mnist',
  'mnist_writers': '',  # In mnist/ and qmnist_writers/.
  'leaf': 'femnist_leaf',
  'cifar10': 'cifar-10-batches-bin',
  'shakespeare': 'shakespeare',
  'words': 'words',
}
# Exponents of ten in the middle of the grid, by model, partition and whether
# B is infinite: a full batch bears larger steps, two digits a client smaller.
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
  """One setting; letters as in the paper.

  Attributes:
    table: who asks for it, such as '4' or 'figure 8'.
    model: one of `choices.MODELS`.
    dataset: a key of `DATASETS`.
    partition: 'iid', 'noniid', or 'centralized' for plain SGD: one client.
    C: fraction of the clients in a cohort, 0 is one client.
    E: local epochs.
    B: examples of a minibatch, inf for all of a client.
    algorithm: FedAvg, FedSGD or SGD, as the paper names the row.
    target_accuracy: ends the sweep once a rate has reached it; 0 is none.
    rounds: at most.
    paper_rounds: the paper's number, None where it prints none.
    u: local updates of a client in a round on average, as the paper prints it.
    middle: of the grid, exponent of ten.
    decay: factor of the learning rate every `decay_rounds`.
    decay_rounds: rounds from one decay to the next.
    measured: whether the model is tested on the 'test' or the 'train' examples.
    eval_every: rounds from one test to the next.
    learning_rate: the only one, where the paper prints it; None for a grid.
    cohort: clients of a round, where the paper says that instead of C.
    counted: what a round counts for; SGD's is an epoch, of so many updates.
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
    """What decides a curve, but for learning rate and seed; JSON."""
    names = ('model', 'dataset', 'partition', 'C', 'E', 'B')
    names += ('cohort', 'decay', 'decay_rounds', 'measured', 'eval_every')
    values = {name: getattr(self, name) for name in names}
    values['B'] = 'inf' if math.isinf(self.B) else int(self.B)
    return values

  def describe(self) -> str:
    """One line, in the paper's letters."""
    B = self.setting()['B']
    cohort = f'C={self.C:g}' if self.cohort is None else f'm={self.cohort}'
    return (
      f'{self.algorithm} {self.model} {self.dataset} {self.partition}'
      f' {cohort} E={self.E} B={B}'
    )

  def grid(self, values: int, ratio: int) -> tuple[float, ...]:
    """Learning rates around the middle.

    Args:
      values: G, an odd number keeps the middle in the middle.
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
  """The cells that the paper prints in a table, in its order.

  Args:
    table: 1 to 4.
    settle: cell -> what the table does not say of it, `rounds` at least.
  """
  cells = []
  for row in published.cells(table):
    if row['algorithm'] == 'SGD':  # One client with all the data.
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
  """A data set from its folder under `data`; '' downloads what can be."""
  folder = f'{data}/{DATASETS[dataset]}' if data else ''
  return fa.load_dataset(dataset, folder)


@functools.cache
def digest(dataset: str, data: str) -> str:
  """SHA-256 of a data set, short."""
  own = load(dataset, data)
  owners = [] if own.owners is None else [own.owners]
  return checkpoint.digest([*own.train, *own.test, *owners])[:16]


def divide(partition: str, dataset: fa.Dataset, seed: int) -> list[np.ndarray]:
  """Indices of every client's training examples, as the paper divides them."""
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
  """The sweep of a cell, compiled.

  Args:
    cell: the setting.
    learning_rates: [G].
    seed: of the division, the first weights, the cohorts and the orders.
    dataset: from `load`.
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
