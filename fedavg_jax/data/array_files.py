"""Reads arrays by client from an .npz, or from a folder of .npy files.

The arrays are x, y, client (the client of each row, whole numbers), x_test and
y_test. Nothing is unpickled, and nothing is allocated on the word of a header
alone.
"""

from collections.abc import Iterator
import math
import pathlib
import struct
import tokenize
from typing import Any
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import is_of_machine
from fedavg_jax.core.folders import entries
from fedavg_jax.data import forms
from fedavg_jax.data.shard_writer import NamedExamples

_NAMES = ('x', 'y', 'client', 'x_test', 'y_test')
# Errors of zipfile, zlib and NumPy for files that are damaged or not an npz.
_DAMAGED = (
  OSError,
  ValueError,
  TypeError,
  LookupError,
  EOFError,
  SyntaxError,
  NotImplementedError,  # An unknown compression.
  RuntimeError,  # An encrypted archive.
  OverflowError,
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  tokenize.TokenError,
)
# Deflate packs at most 1,032 bytes into one; a file that declares more is a
# decompression bomb.
_MOST_UNPACKED = 2000


class ClientArrays(NamedTuple):
  """Holds arrays, and which of their rows belong to which client.

  Attributes:
    name: the name of their file in messages.
    x: [n, ...] inputs.
    y: [n, ...] labels.
    order: [n] rows, client by client.
    begins: [K] positions in `order` at which each client begins.
    ids: [K] the number of each client in the file.
    test: the test set.
    max_value: the largest value that a pixel can have.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  order: np.ndarray
  begins: np.ndarray
  ids: np.ndarray
  test: Examples
  max_value: float

  def clients(self) -> Iterator[NamedExamples]:
    """Reads the clients one after another."""
    ends = np.append(self.begins[1:], len(self.order))
    for k in range(len(self.begins)):
      rows = np.sort(self.order[self.begins[k] : ends[k]])
      where = f'{self.name}: client {k}'
      formed = forms.form(self.x[rows], self.y[rows], where)
      forms.check_scale(formed.max_value, self.max_value, where)
      yield NamedExamples(*formed.examples, str(self.ids[k]))


def open_arrays(path: pathlib.Path) -> ClientArrays:
  """Opens arrays; those of a folder are read only when they are used.

  Raises:
    InputError: an array is missing or damaged, or its shape or dtype is wrong.
  """
  arrays = _from_folder(path) if path.is_dir() else _from_npz(path)
  if missing := [name for name in _NAMES if name not in arrays]:
    raise InputError(f'--path {path}: lacks {", ".join(missing)}')
  x, y, client, x_test, y_test = (arrays[name] for name in _NAMES)
  if not x.ndim or not y.ndim or client.ndim != 1:
    raise InputError(
      f'--path {path}: x has the shape {list(x.shape)}, y {list(y.shape)} and'
      f' client {list(client.shape)}; must be [n, ...], [n, ...] and [n]'
    )
  if not len(x) == len(y) == len(client):
    raise InputError(
      f'--path {path}: {len(x)} rows of x, {len(y)} of y and {len(client)} of'
      ' client; must be equal'
    )
  if client.dtype.kind not in 'iu':
    raise InputError(
      f'--path {path}: client is {client.dtype}; must be whole numbers'
    )
  if not len(client):
    raise InputError(f'--path {path}: has no rows; must have at least one')
  test = forms.form(x_test, y_test, f'--path {path}: test set')
  order = np.argsort(client, kind='stable')
  ids, begins = np.unique(client[order], return_index=True)
  return ClientArrays(
    name=f'--path {path}',
    x=x,
    y=y,
    order=order,
    begins=begins,
    ids=ids,
    test=test.examples,
    max_value=test.max_value,
  )


def _from_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Maps the .npy files of a folder into memory, ignoring case in names."""
  paths: dict[str, pathlib.Path] = {}
  for path in entries(folder):
    name = path.stem.lower()
    if path.suffix.lower() != '.npy' or name not in _NAMES:
      continue
    if name in paths:
      raise InputError(
        f'--path {folder}: {paths[name].name} and {path.name} are both {name};'
        ' must have only one of them'
      )
    paths[name] = path
  return {name: _map(path) for name, path in paths.items()}


def _map(path: pathlib.Path) -> np.ndarray:
  if not path.is_file():
    # A pipe would never end.
    raise InputError(f'{path}: is not a regular file')
  try:
    with open(path, 'rb') as file:
      shape, by_columns, dtype = _header(file, path.name)
      offset = file.tell()
    size = path.stat().st_size - offset
    _check_length(path.name, shape, dtype, size)
    if not size:
      return np.zeros(shape, dtype)
    order = 'F' if by_columns else 'C'
    return np.memmap(path, dtype, 'r', offset, shape, order)
  except _DAMAGED as error:
    raise _damaged(path, error) from error


def _from_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise InputError(f'--path {path}: must be a file or a folder')
  arrays = {}
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      for name in _NAMES:
        if (number := names.count(f'{name}.npy')) > 1:
          raise ValueError(f'has {name}.npy {number} times')
        if number:
          arrays[name] = _unpack(archive, f'{name}.npy')
  except _DAMAGED as error:
    raise _damaged(f'--path {path}', error) from error
  return arrays


def _unpack(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads an array; allocates no more than the archive can contain."""
  with archive.open(name) as file:
    shape, _, dtype = _header(file, name)
    info = archive.getinfo(name)
    _check_length(name, shape, dtype, info.file_size - file.tell())
  packed, limit = info.compress_size, _MOST_UNPACKED * info.compress_size
  if info.file_size > limit + 2**16:
    raise ValueError(
      f'{name} declares {info.file_size:,} bytes in {packed:,}, which is'
      ' impossible'
    )
  with archive.open(name) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Reads the header of an .npy file of real numbers.

  Returns:
    The shape, whether the order is Fortran's, and the dtype.
  """
  major, _ = np.lib.format.read_magic(file)
  read: Any = {
    1: np.lib.format.read_array_header_1_0,
    2: np.lib.format.read_array_header_2_0,
  }.get(major)
  if read is None:
    raise ValueError(f'{name} has version {major} of .npy')
  shape, by_columns, dtype = read(file)
  if dtype.kind not in 'biuf':
    raise ValueError(f'{name}: expected real numbers, got {dtype}')
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f'{name} has the shape {shape}')
  return shape, by_columns, dtype


def _check_length(
  name: str, shape: tuple[int, ...], dtype: np.dtype, size: int
) -> None:
  """Raises ValueError unless the values have the length of their header."""
  declared = math.prod(shape) * dtype.itemsize
  if declared != size:
    raise ValueError(
      f'{name}: expected {declared:,} bytes of values, got {size:,}'
    )


def _damaged(where: Any, error: Exception) -> Exception:
  if is_of_machine(error):
    return error
  reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
  return InputError(f'{where}: cannot be read ({reason})')
