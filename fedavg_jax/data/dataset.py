"""A data set in memory, or opened on disk."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples


class Dataset(NamedTuple):
  """A supervised data set of images, or of sequences of tokens.

  Attributes:
    name: one of `choices.DATASETS`.
    train: x [n, H, W, C] uint8, y [n] int32; of sequences x [n, T] int32 and
      y [n, T] int32, the token that follows, `losses.NO_LABEL` for none.
    test: the same of the test set.
    num_classes: labels are 0 .. num_classes - 1; 1 where they are no classes.
    max_value: the largest value that a pixel can have.
    owners: [n] int32, whose each training example is where the data have
      natural clients 0 .. K - 1, else None.
    padding: token behind the end of a sequence, None where all are full.
    clients: natural clients of a federation on disk, whose `train` is theirs.
    statistics: mean and standard deviation of all its pixels, in [0, 1].
    sha256: of all its files, in hexadecimal.
    client_names: of the natural clients, in their order; () where unknown.
    classes: names of the labels, in their order; () where unknown.
  """

  name: str
  train: Examples
  test: Examples
  num_classes: int
  max_value: float
  owners: np.ndarray | None = None
  padding: int | None = None
  clients: Clients | None = None
  statistics: tuple[float, float] | None = None
  sha256: str = ''
  client_names: tuple[str, ...] = ()
  classes: tuple[str, ...] = ()

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of one example."""
    return self.train.x.shape[1:]

  def pixel_statistics(self) -> tuple[float, float]:
    """Mean and standard deviation of all training pixels, scaled to [0, 1]."""
    if self.statistics is not None:
      return self.statistics
    if self.train.x.dtype != np.uint8:
      scaled = self.train.x.astype(np.float64) / self.max_value
      return float(scaled.mean()), float(scaled.std())
    values = np.arange(256) / self.max_value
    weights = np.bincount(self.train.x.ravel(), minlength=256)
    weights = weights / weights.sum()
    mean = float(weights @ values)
    return mean, float(np.sqrt(weights @ (values - mean) ** 2))


def in_memory(dataset: Dataset) -> Dataset:
  """A data set whose clients are on disk, read into memory: as all others."""
  if dataset.clients is None:
    return dataset
  sizes = dataset.clients.num_examples
  return dataset._replace(
    train=Examples(*map(np.asarray, dataset.train)),
    owners=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
    clients=None,
  )


def number_owners(parts: Sequence[Examples]) -> np.ndarray:
  """Client i for each example of part i."""
  sizes = [len(part.y) for part in parts]
  return np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
