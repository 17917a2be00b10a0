"""Reads arrays whose rows are spread over several .npy files."""

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
  """Concatenates the rows of several .npy files, and reads them on access.

  Attributes:
    shape: the shape of the concatenated array, [n, ...].
    dtype: its dtype.
    nbytes: its size in bytes.
  """

  def __init__(
    self, files: Sequence['ShardFile'], limits: tuple[int, int] | None = None
  ):
    """Stores where the files are, and opens none.

    Args:
      files: the results of `open_shard`.
      limits: the lowest and the highest value in them, if these are known.
    """
    self._files = [(str(file.path), file.offset) for file in files]
    self._ends = list(itertools.accumulate(file.shape[0] for file in files))
    self.shape = (self._ends[-1], *files[0].shape[1:])
    self.dtype = files[0].dtype
    self.nbytes = math.prod(self.shape) * self.dtype.itemsize
    self._row = math.prod(self.shape[1:])  # Values of a row.
    self._limits = limits

  def min(self) -> int:
    """Returns the lowest value without reading; ValueError if unknown."""
    return (self._limits or _unknown())[0]

  def max(self) -> int:
    """Returns the highest value without reading; ValueError if unknown."""
    return (self._limits or _unknown())[1]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads rows first:stop; IndexError for another step."""
    first, stop, step = rows.indices(len(self))
    if step != 1:
      raise IndexError('rows must be a slice with step 1')
    values = np.empty(max(stop - first, 0) * self._row, self.dtype)
    done = 0
    for path, offset, count in self._where(first, stop):
      read = np.fromfile(path, self.dtype, count, offset=offset)
      if read.size < count:
        raise InputError(f'{path}: was cut short while it was read; {AGAIN}')
      if count == values.size:  # Nearly always one file has all rows: no copy.
        values = read
      else:
        values[done : done + count] = read
      done += count
    return values.reshape(-1, *self.shape[1:])

  def expect(self, first: int, stop: int) -> None:
    """Advises the operating system, if it can, to read rows ahead."""
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
    """Yields the file, the offset in bytes and the number of values of rows."""
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
    """Reads all rows."""
    del copy
    return np.asarray(self[:], dtype)


class ShardFile(NamedTuple):
  """Describes an .npy file.

  Attributes:
    path: the file.
    offset: the byte at which its values begin.
    shape: the shape of the array.
    dtype: its dtype.
  """

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype


def check_size(path: pathlib.Path, expected: FileInfo) -> None:
  """Raises InputError unless a file is regular and has the expected size."""
  try:
    status = path.stat()
  except FileNotFoundError:
    raise InputError(f'{path}: is missing; {AGAIN}') from None
  except OSError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  if not stat.S_ISREG(status.st_mode):  # A pipe would never end.
    raise InputError(f'{path}: is not a regular file; {AGAIN}')
  if status.st_size != expected.bytes:
    raise InputError(
      f'{path}: expected {expected.bytes:,} bytes, got {status.st_size:,};'
      f' {AGAIN}'
    )


def open_shard(path: pathlib.Path, expected: FileInfo) -> ShardFile:
  """Reads the header of a file, and checks it and the file's size.

  Raises:
    InputError: the file is missing or differs from what was written.
  """
  check_size(path, expected)
  try:
    with open(path, 'rb') as file:
      version = np.lib.format.read_magic(file)
      if version != (1, 0):
        raise ValueError(f'version {version} of .npy')
      shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
      offset = file.tell()
  # NumPy parses the header as Python, so a damaged one raises Python's errors.
  except (OSError, ValueError, SyntaxError, tokenize.TokenError) as error:
    reason = str(error).splitlines()[0][:100]
    raise InputError(f'{path}: cannot be read ({reason})') from error
  if by_columns or (shape, dtype.str) != (expected.shape, expected.dtype):
    raise InputError(
      f'{path}: expected {expected.dtype} {expected.shape}, got {dtype}'
      f' {shape}; {AGAIN}'
    )
  if offset + math.prod(shape) * dtype.itemsize != expected.bytes:
    raise InputError(f'{path}: does not have the size in its header; {AGAIN}')
  return ShardFile(path, offset, shape, dtype)


def _unknown() -> tuple[int, int]:
  raise ValueError('limits of these values are unknown without reading them')
