"""Defines a data set, which is in memory or on disk."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples


class Dataset(NamedTuple):
  """Holds a supervised data set of images, or of sequences of tokens.

  >>> import fedavg_jax as fa
  >>> x, y = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32) % 3
  >>> data = fa.Dataset(
  ...   'mine', fa.Examples(x[:4], y[:4]), fa.Examples(x[4:], y[4:]),
  ...   num_classes=3, max_value=255.0)
  >>> data.input_shape, len(data.train.y), len(data.test.y)
  ((4, 4, 1), 4, 2)

  Attributes:
    name: the name, one of `choices.DATASETS` or a custom one.
    train: the training set, x [n, H, W, C] uint8 and y [n] int32; of sequences
      x [n, T] int32 and y [n, T] int32, the next token at each position, or
      `losses.NO_LABEL`.
    test: the test set, in the same form.
    num_classes: the number of labels, 0 .. num_classes - 1; 1 if targets are
      not classes.
    max_value: the largest value that a pixel can have.
    owners: [n] int32, the client of each training example if the data have
      natural clients 0 .. K - 1, else None.
    padding: the number of the token behind the end of a sequence; None if all
      are full.
    clients: natural clients of a federation on disk, whose examples are
      `train`; None in memory.
    statistics: mean and standard deviation of all training pixels, scaled to
      [0, 1], if they are already known.
    sha256: the SHA-256 of a federation on disk, in hexadecimal; '' in memory.
    client_names: names of the natural clients, in their order; () if unknown.
    classes: names of the labels, in their order; () if unknown.
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
    """Returns the shape of one example."""
    return self.train.x.shape[1:]

  def pixel_statistics(self) -> tuple[float, float]:
    """Returns mean and standard deviation of the training pixels in [0, 1]."""
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
  """Reads a data set whose clients are on disk into memory."""
  if dataset.clients is None:
    return dataset
  sizes = dataset.clients.num_examples
  return dataset._replace(
    train=Examples(*map(np.asarray, dataset.train)),
    owners=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
    clients=None,
  )


def number_owners(parts: Sequence[Examples]) -> np.ndarray:
  """Returns the owners of joined parts: client i for each example of part i."""
  sizes = [len(part.y) for part in parts]
  return np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
