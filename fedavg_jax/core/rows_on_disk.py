"""Defines the contract between the engine and examples that stay on disk."""

import abc

import numpy as np


class RowsOnDisk(abc.ABC):
  """Reads rows of an array from disk when they are sliced.

  Attributes:
    shape: the array's shape, [n, ...].
    dtype: the dtype of its values.
    nbytes: the size of all rows, in bytes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  nbytes: int

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def ndim(self) -> int:
    """Returns the number of axes, that of the rows included."""
    return len(self.shape)

  @abc.abstractmethod
  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads the rows of a slice `first:stop`, [stop - first, ...]."""

  @abc.abstractmethod
  def expect(self, first: int, stop: int) -> None:
    """Advises the system, if it supports that, to read rows first:stop soon."""

  @abc.abstractmethod
  def min(self) -> int:
    """Returns the lowest value without reading rows."""

  @abc.abstractmethod
  def max(self) -> int:
    """Returns the highest value without reading rows."""
