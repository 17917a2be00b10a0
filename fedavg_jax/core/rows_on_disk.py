"""What the engine asks of examples that stay on a disk, in whatever format."""

import abc

import numpy as np


class RowsOnDisk(abc.ABC):
  """An array whose rows are read when they are sliced.

  Attributes:
    shape: [n, ...].
    dtype: of its values.
    nbytes: of all rows.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  nbytes: int

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def ndim(self) -> int:
    """Axes, that of the rows included."""
    return len(self.shape)

  @abc.abstractmethod
  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads rows first:stop."""

  @abc.abstractmethod
  def expect(self, first: int, stop: int) -> None:
    """Tells the system, where it listens, that rows will be read soon."""

  @abc.abstractmethod
  def min(self) -> int:
    """The lowest value, without reading."""

  @abc.abstractmethod
  def max(self) -> int:
    """The highest value, without reading."""
