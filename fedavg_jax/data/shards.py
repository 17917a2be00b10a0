"""Arrays whose rows are spread over several .npy files."""

import bisect
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import math
import os
import pathlib
import stat
import tokenize
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.data.description import AGAIN
from fedavg_jax.data.description import FileInfo


class Shards(RowsOnDisk):
  """Rows of several .npy files in a row, read whenever they are asked for.

  Attributes:
    shape: [n, ...] of all together.
    dtype: of all.
    nbytes: of all.
  """

  def __init__(
    self, files: Sequence['ShardFile'], limits: tuple[int, int] | None = None
  ):
    """Opens nothing.

    Args:
      files: from `open_shard`.
      limits: the lowest and the highest value in them, where they are known.
    """
    self._files = [(str(file.path), file.offset) for file in files]
    self._ends = list(itertools.accumulate(file.shape[0] for file in files))
    self.shape = (self._ends[-1], *files[0].shape[1:])
    self.dtype = files[0].dtype
    self.nbytes = math.prod(self.shape) * self.dtype.itemsize
    self._row = math.prod(self.shape[1:])  # Values in it.
    self._limits = limits

  def min(self) -> int:
    """The lowest value, without reading."""
    return (self._limits or _unknown())[0]

  def max(self) -> int:
    """The highest value, without reading."""
    return (self._limits or _unknown())[1]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads rows first:stop."""
    first, stop, step = rows.indices(len(self))
    if step != 1:
      raise IndexError('Shards are read in rows that follow each other')
    values = np.empty(max(stop - first, 0) * self._row, self.dtype)
    done = 0
    for path, offset, count in self._where(first, stop):
      read = np.fromfile(path, self.dtype, count, offset=offset)
      if read.size < count:
        raise InputError(f'{path}: was cut short while it was read; {AGAIN}')
      if count == values.size:  # Nearly always: no copy.
        values = read
      else:
        values[done : done + count] = read
      done += count
    return values.reshape(-1, *self.shape[1:])

  def expect(self, first: int, stop: int) -> None:
    """Tells the system, where it listens, that rows will be read soon."""
    if not hasattr(os, 'posix_fadvise'):
      return
    for path, offset, count in self._where(first, stop):
      file = os.open(path, os.O_RDONLY)
      size = count * self.dtype.itemsize
      try:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
      finally:
        os.close(file)

  def _where(self, first: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Files that rows are in, where in bytes, and how many values there."""
    i = bisect.bisect_right(self._ends, first)
    while first < stop:
      path, offset = self._files[i]
      begin = self._ends[i - 1] if i else 0
      until = min(stop, self._ends[i])
      yield (
        path,
        offset + (first - begin) * self._row * self.dtype.itemsize,
        (until - first) * self._row,
      )
      first, i = until, i + 1

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    """Reads all."""
    del copy
    return np.asarray(self[:], dtype)


class ShardFile(NamedTuple):
  """An .npy file: where its values begin, in bytes, and what they are."""

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype


def check_size(path: pathlib.Path, expected: FileInfo) -> None:
  """Raises InputError where a file has another length, or is none."""
  try:
    status = path.stat()
  except FileNotFoundError:
    raise InputError(f'{path}: is missing; {AGAIN}') from None
  except OSError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  if not stat.S_ISREG(status.st_mode):  # A pipe would never end.
    raise InputError(f'{path}: must be a file; {AGAIN}')
  if status.st_size != expected.bytes:
    raise InputError(
      f'{path}: has {status.st_size:,} bytes, must have {expected.bytes:,};'
      f' {AGAIN}'
    )


def open_shard(path: pathlib.Path, expected: FileInfo) -> ShardFile:
  """Looks at an array, which must be what was written, as its length tells."""
  check_size(path, expected)
  try:
    with open(path, 'rb') as file:
      version = np.lib.format.read_magic(file)
      if version != (1, 0):
        raise ValueError(f'a version {version} of .npy')
      shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
      offset = file.tell()
  # Of a damaged header, which NumPy reads as Python.
  except (OSError, ValueError, SyntaxError, tokenize.TokenError) as error:
    reason = str(error).splitlines()[0][:100]
    raise InputError(f'{path}: cannot be read ({reason})') from error
  if by_columns or (shape, dtype.str) != (expected.shape, expected.dtype):
    raise InputError(
      f'{path}: is {dtype} {shape}, must be {expected.dtype}'
      f' {expected.shape}; {AGAIN}'
    )
  if offset + math.prod(shape) * dtype.itemsize != expected.bytes:
    raise InputError(f'{path}: is shorter than its own header says; {AGAIN}')
  return ShardFile(path, offset, shape, dtype)


def _unknown() -> tuple[int, int]:
  raise ValueError('the limits of these values are not known without reading')
