"""Arrays by client: an .npz, or a folder of .npy files.

x, y, client (whose each row is, whole numbers), x_test and y_test. Nothing is
unpickled, and nothing is allocated because a header says so.
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
# What zipfile, zlib and NumPy raise for files that are damaged, or are no npz.
_DAMAGED = (
  OSError,
  ValueError,
  TypeError,
  LookupError,
  EOFError,
  SyntaxError,
  NotImplementedError,  # A kind of compression.
  RuntimeError,  # A password.
  OverflowError,
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  tokenize.TokenError,
)
# Deflate packs 1,032 bytes into one at most; what promises more is a trap.
_MOST_UNPACKED = 2000


class ClientArrays(NamedTuple):
  """Arrays, and which of their rows belong to whom.

  Attributes:
    name: of their file, for messages.
    x: [n, ...].
    y: [n, ...].
    order: [n] rows, client by client.
    begins: [K] where each client begins in `order`.
    ids: [K] what the file calls each client.
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
    """Reads one client after another."""
    ends = np.append(self.begins[1:], len(self.order))
    for k in range(len(self.begins)):
      rows = np.sort(self.order[self.begins[k] : ends[k]])
      where = f'{self.name}: client {k}'
      own = forms.form(self.x[rows], self.y[rows], where)
      forms.check_scale(own.max_value, self.max_value, where)
      yield NamedExamples(*own.examples, str(self.ids[k]))


def open_arrays(path: pathlib.Path) -> ClientArrays:
  """Opens arrays; those of a folder are read as they are needed.

  Raises:
    InputError: one is missing, damaged or not what it must be.
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
      ' client; must be as many'
    )
  if client.dtype.kind not in 'iu':
    raise InputError(
      f'--path {path}: client is {client.dtype}, must be whole numbers'
    )
  if not len(client):
    raise InputError(f'--path {path}: holds no row, must hold one at least')
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
  """Maps the .npy files of a folder, whatever case their names have."""
  paths: dict[str, pathlib.Path] = {}
  for path in entries(folder):
    name = path.stem.lower()
    if path.suffix.lower() != '.npy' or name not in _NAMES:
      continue
    if name in paths:
      raise InputError(
        f'--path {folder}: {paths[name].name} and {path.name} are both {name};'
        ' must be one'
      )
    paths[name] = path
  return {name: _map(path) for name, path in paths.items()}


def _map(path: pathlib.Path) -> np.ndarray:
  if not path.is_file():
    raise InputError(f'{path}: must be a file')  # A pipe would never end.
  try:
    with open(path, 'rb') as file:
      shape, by_columns, dtype = _header(file, path.name)
      offset = file.tell()
    holds = path.stat().st_size - offset
    _check_length(path.name, shape, dtype, holds)
    if not holds:
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
          raise ValueError(f'{name}.npy is in it {number} times')
        if number:
          arrays[name] = _unpack(archive, f'{name}.npy')
  except _DAMAGED as error:
    raise _damaged(f'--path {path}', error) from error
  return arrays


def _unpack(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads an array; nothing is allocated that the archive cannot hold."""
  with archive.open(name) as file:
    shape, _, dtype = _header(file, name)
    info = archive.getinfo(name)
    _check_length(name, shape, dtype, info.file_size - file.tell())
  packed, limit = info.compress_size, _MOST_UNPACKED * info.compress_size
  if info.file_size > limit + 2**16:
    raise ValueError(
      f'{name} promises {info.file_size:,} bytes in {packed:,}, which cannot be'
    )
  with archive.open(name) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Reads the header of an .npy file, which must be of real numbers."""
  major, _ = np.lib.format.read_magic(file)
  read: Any = {
    1: np.lib.format.read_array_header_1_0,
    2: np.lib.format.read_array_header_2_0,
  }.get(major)
  if read is None:
    raise ValueError(f'{name} is of version {major} of .npy')
  shape, by_columns, dtype = read(file)
  if dtype.kind not in 'biuf':
    raise ValueError(f'{name} holds {dtype}, must hold real numbers')
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f'{name} has the shape {shape}')
  return shape, by_columns, dtype


def _check_length(
  name: str, shape: tuple[int, ...], dtype: np.dtype, holds: int
) -> None:
  """Raises ValueError where a header says another length than there is."""
  promised = math.prod(shape) * dtype.itemsize
  if promised != holds:
    raise ValueError(
      f'{name} holds {holds:,} bytes of values, must hold {promised:,}'
    )


def _damaged(where: Any, error: Exception) -> Exception:
  if is_of_machine(error):
    return error
  reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
  return InputError(f'{where}: cannot be read ({reason})')
