"""Partitions any data, and holds out examples of clients."""

from collections.abc import Sequence

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core import exact
from fedavg_jax.core import rules
from fedavg_jax.data.partition.checks import check_clients
from fedavg_jax.data.partition.checks import check_sizes


def iid(
  num_examples: int,
  *,
  num_clients: int,
  seed: int,
  sizes: np.ndarray | None = None,
) -> list[np.ndarray]:
  """Shuffles the examples and splits them into K parts.

  It is the IID partition of McMahan et al. 2017, section 3.

  Args:
    num_examples: n, the number of examples.
    num_clients: K, the number of clients.
    seed: the seed of the order.
    sizes: [K] sizes of the parts, from `sizes` or custom ones, which add up to
      n; by default they differ by at most one.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule.

  >>> import fedavg_jax as fa
  >>> parts = fa.partition.iid(10, num_clients=3, seed=0)
  >>> [len(part) for part in parts], sorted(np.concatenate(parts).tolist())
  ([4, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  """
  check_clients(num_examples, num_clients)
  order = np.random.default_rng(rules.check_seed(seed)).permutation(
    num_examples
  )
  if sizes is None:
    return np.array_split(order, num_clients)
  sizes = check_sizes(sizes, num_examples, num_clients)
  return np.split(order, np.cumsum(sizes)[:-1])


def by_owner(owners: np.ndarray) -> list[np.ndarray]:
  """Partitions examples by their natural clients, in their order.

  Args:
    owners: [n] integers, the client of every example.

  Returns:
    K index arrays; K is the largest owner plus one.

  Raises:
    InputError: the owners are not whole numbers from 0.

  >>> import fedavg_jax as fa
  >>> [part.tolist() for part in fa.partition.by_owner(np.array([1, 0, 1]))]
  [[1], [0, 2]]
  """
  owners = exact.class_numbers(owners, 'owners')
  order = np.argsort(owners, kind='stable')
  return np.split(order, np.cumsum(np.bincount(owners))[:-1])


def hold_out(
  parts: Sequence[np.ndarray], *, fraction: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Holds out int(fraction * n_k) random examples of every client.

  Args:
    parts: K index arrays.
    fraction: the fraction of a client's examples to hold out, in [0, 1).
    seed: the seed of the draws.

  Returns:
    K index arrays for training, each with at least one example because
    fraction < 1; and K of the held-out examples, which may be empty.

  Raises:
    InputError: the fraction is not in [0, 1), or the seed breaks its rule.

  >>> import fedavg_jax as fa
  >>> train, held_out = fa.partition.hold_out(
  ...   [np.arange(10), np.arange(10, 13)], fraction=0.2, seed=0)
  >>> [len(part) for part in train], [len(part) for part in held_out]
  ([8, 3], [2, 0])
  """
  rules.check_fraction('fraction', fraction)
  rules.check_seed(seed)
  training, held_out = [], []
  for client, part in enumerate(parts):
    number = int(round(fraction * len(part), 6))
    part = client_data.in_random_order(part, seed, client)
    held_out.append(part[:number])
    training.append(part[number:])
  return training, held_out


def label_counts(
  labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
  """Counts the examples of each label at each client.

  Args:
    labels: [n] class numbers of any dtype.
    parts: K index arrays.
    num_classes: the number of labels, 0 .. num_classes - 1.

  Returns:
    [K, num_classes] integers.

  Raises:
    InputError: a label is not in [0, num_classes - 1].

  >>> import fedavg_jax as fa
  >>> fa.partition.label_counts(
  ...   np.array([0, 1, 1, 2]), [[0, 1], [2, 3]], num_classes=3).tolist()
  [[1, 1, 0], [0, 1, 1]]
  """
  labels = exact.class_numbers(labels, 'labels', num_classes=num_classes)
  return np.stack(
    [np.bincount(labels[part], minlength=num_classes) for part in parts]
  )
