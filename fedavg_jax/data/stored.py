"""Opens federations on disk, for populations larger than the memory.

A folder has shards of complete clients, `clients-00000-x.npy`, `...-y.npy` and
`...-sizes.npy`, and `...-names.json` if the source names them; the test set in
`test-x.npy` and `test-y.npy`; and `federation.json`, which describes these
files and names the classes. The arrays are plain .npy: NumPy reads a client's
rows with one seek and one read straight into an array, without decoding single
records, and any other program can read them too.

`fedavg-jax convert` writes such folders.
"""

from collections.abc import Sequence
import hashlib
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.description import AGAIN
from fedavg_jax.data.description import Description
from fedavg_jax.data.description import FileInfo
from fedavg_jax.data.description import Shard
from fedavg_jax.data.description import read_description
from fedavg_jax.data.shards import ShardFile
from fedavg_jax.data.shards import Shards
from fedavg_jax.data.shards import check_size
from fedavg_jax.data.shards import open_shard

FILE, JOURNAL, LOCK = 'federation.json', 'conversion.jsonl', '.lock'


class Stored(NamedTuple):
  """Holds an open federation.

  Attributes:
    clients: the clients, whose arrays are `Shards`.
    test: the test set, in memory.
    num_classes: the number of labels, 0 .. num_classes - 1.
    max_value: the largest value that a pixel can have.
    padding: the token behind the end of a sequence; None if all are full.
    statistics: mean and standard deviation of all pixels, scaled to [0, 1].
    sha256: the SHA-256 of the description of the files, in hexadecimal.
  """

  clients: Clients
  test: Examples
  num_classes: int
  max_value: float
  padding: int | None
  statistics: tuple[float, float]
  sha256: str


def read(folder: pathlib.Path) -> Stored:
  """Opens a federation; reads the clients' sizes, but not their examples.

  Raises:
    InputError: a file is missing, of another version, or its header or length
      is not the one that was written; `verify` compares the content too.
  """
  found = describe(folder)
  opened: dict[str, list[ShardFile]] = {'x': [], 'y': [], 'sizes': []}
  for number, shard in enumerate(found.shards):
    files = shard.files()
    for name, parts in opened.items():
      parts.append(open_shard(folder / shard_name(number, name), files[name]))
  sizes = np.asarray(Shards(opened['sizes']))
  if sizes.min() < 1:
    raise InputError(
      f'{folder}: a client has {sizes.min()} examples; must have at least one;'
      f' {AGAIN}'
    )
  x: Any = Shards(opened['x'])
  y: Any = Shards(opened['y'], label_range(found.shards))
  if not len(x) == len(y) == sizes.sum():
    raise InputError(
      f'{folder / FILE}: {len(x)} inputs, {len(y)} labels and clients of'
      f' {sizes.sum()} examples; must be equal; {AGAIN}'
    )
  count = len(x) * math.prod(x.shape[1:]) * found.max_value
  mean = sum(shard.sum for shard in found.shards) / count
  square = sum(shard.squares for shard in found.shards) / count
  variance = square / found.max_value - mean**2
  clients = Clients(x, y, np.concatenate([[0], np.cumsum(sizes)]))
  tests = [
    np.asarray(Shards([open_shard(folder / f'test-{name}.npy', file)]))
    for name, file in (('x', found.test_x), ('y', found.test_y))
  ]
  return Stored(
    clients=clients,
    test=Examples(*tests),
    num_classes=found.num_classes,
    max_value=found.max_value,
    padding=found.padding,
    statistics=(mean, max(variance, 0.0) ** 0.5),
    # The same content has the same hash, whatever its source.
    sha256=hashlib.sha256(found.content.encode()).hexdigest(),
  )


def verify(folder: pathlib.Path) -> int:
  """Compares the SHA-256 of every file; returns the number of files.

  Raises:
    InputError: a file is not what was written; the message names the first one.
  """
  found = describe(folder)
  expected = {
    shard_name(number, name): file
    for number, shard in enumerate(found.shards)
    for name, file in shard.files().items()
  } | {'test-x.npy': found.test_x, 'test-y.npy': found.test_y}
  for name, file in expected.items():
    _check_sha256(folder / name, file)
  read(folder)
  return len(expected)


def describe(folder: pathlib.Path) -> Description:
  """Reads the description of a folder whose conversion has finished.

  Raises:
    InputError: the conversion has not finished, or the description is wrong.
  """
  if (folder / JOURNAL).exists() and not (folder / FILE).exists():
    raise InputError(
      f'{folder}: conversion has not finished; rerun the same command to resume'
      ' it'
    )
  return read_description(folder / FILE)


def client_names(folder: pathlib.Path) -> list[str]:
  """Reads the names of all clients, in their order.

  Returns:
    A name per client; an empty list if the source had none.

  Raises:
    InputError: a file is missing or not what was written.
  """
  names: list[str] = []
  for number, shard in enumerate(describe(folder).shards):
    if shard.names is None:
      continue
    path = folder / shard_name(number, 'names')
    _check_sha256(path, shard.names)
    names += json.loads(path.read_text(encoding='utf-8'))
  return names


def _check_sha256(path: pathlib.Path, expected: FileInfo) -> None:
  if expected.dtype == 'json':
    check_size(path, expected)
  else:
    open_shard(path, expected)
  if (found := sha256_of(path)) != expected.sha256:
    raise InputError(
      f'{path}: checksum mismatch: expected SHA-256 {expected.sha256[:12]}...,'
      f' got {found[:12]}...; {AGAIN}'
    )


def sha256_of(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def shard_name(number: int, name: str) -> str:
  """Returns the name of a shard's file of x, y, sizes or names."""
  return f'clients-{number:05}-{name}.{"json" if name == "names" else "npy"}'


def label_range(shards: Sequence[Shard]) -> tuple[int, int]:
  """Returns the lowest and the highest label of some shards."""
  lowest, highest = zip(*(shard.labels for shard in shards), strict=True)
  return min(lowest), max(highest)
