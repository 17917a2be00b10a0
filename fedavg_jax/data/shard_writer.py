"""Writes the files of a shard of consecutive clients, with their SHA-256."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.files import atomic_write
from fedavg_jax.data.description import FileInfo
from fedavg_jax.data.description import Shard
from fedavg_jax.data.stored import sha256_of
from fedavg_jax.data.stored import shard_name

_AT_A_TIME = 2**22  # Values that are converted at once for the sums.


class NamedExamples(NamedTuple):
  """Holds a client's examples and its name.

  Attributes:
    x: [n, ...] inputs.
    y: [n] or [n, T] labels.
    name: the name of the client in its source.
  """

  x: np.ndarray
  y: np.ndarray
  name: str


Client = Examples | NamedExamples


def write_shard(
  folder: pathlib.Path,
  number: int,
  part: Sequence[Client],
  given: int,
  check: Callable[[], None],
) -> Shard:
  """Writes one shard; returns its description for federation.json.

  Args:
    folder: the folder of the federation.
    number: the number of the shard, counted from 0.
    part: its clients, at least one.
    given: the number of clients read from the source, empty ones included.
    check: a function, called before each file, that raises InputError if
      another process has replaced the folder.
  """
  contents = contents_of(part)
  files = {}
  for name, content in contents.items():
    check()
    files[name] = write_file(folder / shard_name(number, name), content)
  return _shard(part, given, contents, files)


def expected_shard(part: Sequence[Client], given: int) -> Shard:
  """Returns the description that `write_shard` would, and writes nothing."""
  contents = contents_of(part)
  files = {name: content_info(content) for name, content in contents.items()}
  return _shard(part, given, contents, files)


def _shard(
  part: Sequence[Client],
  given: int,
  contents: Mapping[str, Any],
  files: Mapping[str, FileInfo],
) -> Shard:
  x, y = contents['x'], contents['y']
  total, squares = _moments(x)
  return Shard(
    x=files['x'],
    y=files['y'],
    sizes=files['sizes'],
    names=files.get('names'),
    clients=len(part),
    given=given,
    bytes=x.nbytes + y.nbytes,
    sum=total,
    squares=squares,
    labels=(int(y.min()), int(y.max())),
  )


def contents_of(part: Sequence[Client]) -> dict[str, Any]:
  """Joins clients; returns the content of their shard's files by name."""
  joined = client_data.join([Examples(client.x, client.y) for client in part])
  found: dict[str, Any] = {
    'x': joined.x,
    'y': joined.y,
    'sizes': np.array([len(client.y) for client in part], np.int64),
  }
  if isinstance(part[0], NamedExamples):
    found['names'] = [getattr(client, 'name', '') for client in part]
  return found


def _moments(x: np.ndarray) -> tuple[float, float]:
  """Sums all values and their squares, exactly for integers."""
  total, squares, values = 0, 0, x.reshape(-1)
  for first in range(0, len(values), _AT_A_TIME):
    some = values[first : first + _AT_A_TIME]
    some = some.astype(np.float64 if x.dtype == np.float32 else np.int64)
    total, squares = total + some.sum().item(), squares + (some @ some).item()
  return total, squares


def write_file(path: pathlib.Path, content: Any) -> FileInfo:
  """Writes an array, or names; returns the info that `open_shard` expects."""
  with atomic_write(path) as part:
    with open(part, 'wb') as file:
      _save(file, content)
      file.flush()
      os.fsync(file.fileno())
    return _info(content, part.stat().st_size, sha256_of(part))


def content_info(content: Any) -> FileInfo:
  """Returns the info that `write_file` would, and writes nothing."""
  file = _Hash()
  _save(file, content)
  return _info(content, file.bytes, file.hexdigest())


def _info(content: Any, size: int, sha256: str) -> FileInfo:
  if isinstance(content, list):
    return FileInfo((len(content),), 'json', size, sha256)
  return FileInfo(content.shape, content.dtype.str, size, sha256)


def _save(file: Any, content: Any) -> None:
  if isinstance(content, list):
    file.write(json.dumps(content).encode())
  else:
    np.lib.format.write_array(
      file, np.ascontiguousarray(content), version=(1, 0)
    )


class _Hash:
  """Counts and hashes what is written to it, and stores nothing."""

  def __init__(self):
    self._sha256 = hashlib.sha256()
    self.bytes = 0

  def write(self, content: bytes) -> None:
    self._sha256.update(content)
    self.bytes += memoryview(content).nbytes

  def hexdigest(self) -> str:
    return self._sha256.hexdigest()
