"""Partitions of any data, and what clients hold out."""

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
  """Shuffles, then cuts into K parts.

  Args:
    num_examples: n.
    num_clients: K.
    seed: of the order.
    sizes: [K] of the parts, from `sizes` or your own, which add up to n; left
      out, they differ by at most one.

  Returns:
    K index arrays.
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
  """Natural clients: each has its own examples, in their order.

  Args:
    owners: [n] integers, the client of every example.

  Returns:
    K index arrays; K is the largest owner and one.
  """
  owners = exact.class_numbers(owners, 'owners')
  order = np.argsort(owners, kind='stable')
  return np.split(order, np.cumsum(np.bincount(owners))[:-1])


def hold_out(
  parts: Sequence[np.ndarray], *, fraction: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Takes int(fraction * n_k) random examples of every client out of training.

  Returns:
    What every client keeps, at least one example, because fraction < 1; and
    what it holds out, maybe none.

  Raises:
    InputError: the fraction is not in [0, 1), or the seed breaks its rule.
  """
  rules.check_fraction('fraction', fraction)
  rules.check_seed(seed)
  kept, held = [], []
  for client, part in enumerate(parts):
    number = int(round(fraction * len(part), 6))
    part = client_data.in_random_order(part, seed, client)
    held.append(part[:number])
    kept.append(part[number:])
  return kept, held


def label_counts(
  labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
  """Examples of each label at each client, [K, num_classes]."""
  labels = exact.class_numbers(labels, 'labels', num_classes=num_classes)
  return np.stack(
    [np.bincount(labels[part], minlength=num_classes) for part in parts]
  )
