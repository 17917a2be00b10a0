"""Partitions of any data, and what clients hold out."""

from collections.abc import Sequence

import numpy as np

from fedavg_jax.data.partition.checks import check_clients
from fedavg_jax.data.partition.checks import check_sizes

# A stream of random numbers; planning.py has 1 and 2, sizes.py 4.
_HOLD_OUT = 3


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
  order = np.random.default_rng(seed).permutation(num_examples)
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
  order = np.argsort(owners, kind='stable')
  return np.split(order, np.cumsum(np.bincount(owners))[:-1])


def hold_out(
  parts: Sequence[np.ndarray], *, fraction: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Takes int(fraction * n_k) random examples of every client out of training.

  Returns:
    What every client keeps, at least one example, because fraction < 1; and
    what it holds out, maybe none.
  """
  kept, held = [], []
  for client, part in enumerate(parts):
    # Apart from the stream `seed` of the division, and those of planning.py;
    # never a trailing zero, which a short seed is padded with.
    rng = np.random.default_rng([seed, _HOLD_OUT, client + 1])
    number = int(round(fraction * len(part), 6))
    part = rng.permutation(part)
    held.append(part[:number])
    kept.append(part[number:])
  return kept, held


def label_counts(
  labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
  """Examples of each label at each client, [K, num_classes]."""
  return np.stack(
    [np.bincount(labels[part], minlength=num_classes) for part in parts]
  )
