"""How a partition by label deals examples once it knows how many of each."""

from collections.abc import Sequence

import numpy as np


def rows_by_class(
  labels: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
  """Returns the examples of every label that there is, in random order."""
  return [
    rng.permutation(np.flatnonzero(labels == label))
    for label in np.unique(labels)
  ]


def deal(
  by_class: Sequence[np.ndarray],
  counts: np.ndarray,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """Returns parts with so many examples of every class, counts [classes, K].

  Examples of a class beyond the sum of its counts are in no part.
  """
  pieces = [
    np.split(rows[: own.sum()], np.cumsum(own)[:-1])
    for rows, own in zip(by_class, counts, strict=True)
  ]
  return [
    rng.permutation(np.concatenate(mine)) for mine in zip(*pieces, strict=True)
  ]
