"""Deals the examples of each class to clients, at given counts."""

from collections.abc import Sequence

import numpy as np


def rows_by_class(
  labels: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
  """Returns the examples of every label that occurs, in random order."""
  return [
    rng.permutation(np.flatnonzero(labels == label))
    for label in np.unique(labels)
  ]


def deal(
  by_class: Sequence[np.ndarray],
  counts: np.ndarray,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """Deals the first examples of every class to K parts, shuffled.

  Args:
    by_class: examples of every class; those beyond the sum of its counts are
      in no part.
    counts: [classes, K] examples of each class for each part.
    rng: the generator that shuffles the parts.

  Returns:
    K index arrays.
  """
  pieces = [
    np.split(rows[: sizes.sum()], np.cumsum(sizes)[:-1])
    for rows, sizes in zip(by_class, counts, strict=True)
  ]
  return [
    rng.permutation(np.concatenate(mine)) for mine in zip(*pieces, strict=True)
  ]
