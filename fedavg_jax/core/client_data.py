"""The clients' examples, back to back in two arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# At positions of a sequence that have no label.
NO_LABEL = -1


class Examples(NamedTuple):
  """Inputs and labels in their smallest dtypes.

  Attributes:
    x: [n, ...], uint8 pixels for images, int32 tokens [n, T] for sequences.
    y: [n] int32 labels, of sequences [n, T], `NO_LABEL` where there is none.
  """

  x: np.ndarray
  y: np.ndarray


class Clients(NamedTuple):
  """K clients' examples: client k holds rows offsets[k] : offsets[k + 1].

  Attributes:
    x: [n, ...] inputs.
    y: [n] labels.
    offsets: [K + 1] int64, ascending from 0 to n.
  """

  x: np.ndarray
  y: np.ndarray
  offsets: np.ndarray

  @property
  def num_clients(self) -> int:
    """K."""
    return len(self.offsets) - 1

  @property
  def num_examples(self) -> np.ndarray:
    """n_k of every client, [K]."""
    return np.diff(self.offsets)


def build_clients(examples: Examples, parts: Sequence[np.ndarray]) -> Clients:
  """Lays the examples of each part of a partition back to back."""
  sizes = [len(part) for part in parts]
  rows = np.concatenate(parts)
  return Clients(
    x=examples.x[rows],
    y=examples.y[rows],
    offsets=np.concatenate([[0], np.cumsum(sizes)]),
  )


def join(parts: Sequence[Examples]) -> Examples:
  """Examples of several, one behind another."""
  return Examples(*map(np.concatenate, zip(*parts, strict=True)))


def first(clients: Clients, number: int) -> Clients:
  """The first clients of a population, their labels in memory."""
  offsets = clients.offsets[: number + 1]
  stop = int(offsets[-1])
  return Clients(clients.x[:0], clients.y[:stop], offsets)


def stack(clients: Clients, ids: Sequence[int]) -> tuple[np.ndarray, ...]:
  """Some clients as padded arrays, for reading and for `reference.py`.

  Args:
    clients: the population.
    ids: m client numbers.

  Returns:
    x [m, N, ...], y [m, N, ...] and mask [m, N], where N is the largest of them
    and mask is True on real examples; padding is zero.
  """
  sizes = clients.num_examples[list(ids)]
  mask = np.arange(sizes.max()) < sizes[:, None]
  x = np.zeros(mask.shape + clients.x.shape[1:], clients.x.dtype)
  y = np.zeros(mask.shape + clients.y.shape[1:], clients.y.dtype)
  for row, k in enumerate(ids):
    mine = slice(clients.offsets[k], clients.offsets[k + 1])
    x[row, : sizes[row]] = clients.x[mine]
    y[row, : sizes[row]] = clients.y[mine]
  return x, y, mask
