"""Arrays by client: an .npz, or a folder of .npy files.

x, y, client (whose each row is, whole numbers), x_test and y_test. Nothing is
unpickled, and nothing is allocated because a header says so.
"""

from collections.abc import Iterator
import math
import pathlib
import tokenize
from typing import Any
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import forms

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
  tokenize.TokenError,
)


class ClientArrays(NamedTuple):
  """Arrays, and which of their rows belong to whom.

  Attributes:
    name: of their file, for messages.
    x: [n, ...].
    y: [n, ...].
    order: [n] rows, client by client.
    begins: [K] where each client begins in `order`.
    test: the test set.
    max_value: the largest value that a pixel can have.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  order: np.ndarray
  begins: np.ndarray
  test: Examples
  max_value: float

  def clients(self) -> Iterator[Examples]:
    """Reads one client after another."""
    ends = np.append(self.begins[1:], len(self.order))
    for k in range(len(self.begins)):
      rows = np.sort(self.order[self.begins[k] : ends[k]])
      where = f'{self.name}: client {k}'
      own = forms.form(self.x[rows], self.y[rows], where)
      forms.check_scale(own.max_value, self.max_value, where)
      yield own.examples


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
  _, begins = np.unique(client[order], return_index=True)
  return ClientArrays(
    name=f'--path {path}',
    x=x,
    y=y,
    order=order,
    begins=begins,
    test=test.examples,
    max_value=test.max_value,
  )


def _from_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
  arrays = {}
  for name in _NAMES:
    path = folder / f'{name}.npy'
    if not path.exists():
      continue
    if not path.is_file():
      raise InputError(f'{path}: must be a file')  # A pipe would never end.
    try:
      arrays[name] = np.load(path, mmap_mode='r', allow_pickle=False)
    except _DAMAGED as error:
      raise _damaged(path, error) from error
  return arrays


def _from_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise InputError(f'--path {path}: must be a file or a folder')
  try:
    with zipfile.ZipFile(path) as archive:
      for name in _NAMES:
        if f'{name}.npy' in archive.namelist():
          _check_member(archive, f'{name}.npy')
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in _NAMES if name in file}
  except _DAMAGED as error:
    raise _damaged(f'--path {path}', error) from error


def _check_member(archive: zipfile.ZipFile, name: str) -> None:
  """Raises ValueError where a header promises more than the archive holds."""
  with archive.open(name) as file:
    major, _ = np.lib.format.read_magic(file)
    read: Any = (
      np.lib.format.read_array_header_1_0
      if major == 1
      else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    promised = file.tell() + math.prod(shape) * dtype.itemsize
  holds = archive.getinfo(name).file_size
  if not dtype.hasobject and promised != holds:
    raise ValueError(f'{name} holds {holds:,} bytes, must hold {promised:,}')


def _damaged(where: Any, error: Exception) -> InputError:
  reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
  return InputError(f'{where}: cannot be read ({reason})')
