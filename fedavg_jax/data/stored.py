"""A federation on disk, for populations that fit in no memory.

A folder holds shards of whole clients, `clients-00000-x.npy`, `...-y.npy` and
`...-sizes.npy`, the test set in `test-x.npy` and `test-y.npy`, and
`federation.json` with what they must be. The arrays are plain .npy: NumPy reads
a client's rows with one seek and one read straight into an array, without
decoding a record at a time, and any other program can read them too.

`fedavg-jax convert` writes such folders.
"""

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
from fedavg_jax.data.shards import AGAIN
from fedavg_jax.data.shards import ShardFile
from fedavg_jax.data.shards import Shards
from fedavg_jax.data.shards import open_shard

VERSION = 1
FORMAT = 'federation of fedavg_jax'
FILE, JOURNAL, LOCK = 'federation.json', 'conversion.jsonl', '.lock'


class Stored(NamedTuple):
  """What a folder holds.

  Attributes:
    clients: whose arrays are `Shards`.
    test: the test set, in memory.
    num_classes: labels are 0 .. num_classes - 1.
    max_value: the largest value that a pixel can have.
    padding: token behind the end of a sequence, None where all are full.
    statistics: mean and standard deviation of all pixels, scaled to [0, 1].
    sha256: of what must be in the files, in hexadecimal.
  """

  clients: Clients
  test: Examples
  num_classes: int
  max_value: float
  padding: int | None
  statistics: tuple[float, float]
  sha256: str


def read(folder: pathlib.Path) -> Stored:
  """Opens a federation; of its clients only how many examples each has is read.

  Raises:
    InputError: a file is missing, cut short, of another version or not what
      was written, as far as its length tells; `verify` reads all.
  """
  told = read_description(folder)
  opened: dict[str, list[ShardFile]] = {'x': [], 'y': [], 'sizes': []}
  for number, shard in enumerate(told['shards']):
    for name, files in opened.items():
      files.append(open_shard(folder / shard_name(number, name), shard[name]))
  sizes = np.asarray(Shards(opened['sizes']))
  x: Any = Shards(opened['x'])
  y: Any = Shards(opened['y'], label_range(told['shards']))
  if not len(x) == len(y) == sizes.sum():
    raise InputError(
      f'{folder / FILE}: {len(x)} inputs, {len(y)} labels and clients of'
      f' {sizes.sum()} examples; must be as many; {AGAIN}'
    )
  count = len(x) * math.prod(x.shape[1:]) * told['max_value']
  mean = sum(shard['sum'] for shard in told['shards']) / count
  square = sum(shard['squares'] for shard in told['shards']) / count
  variance = square / told['max_value'] - mean**2
  clients = Clients(x, y, np.concatenate([[0], np.cumsum(sizes)]))
  tests = [
    np.asarray(
      Shards([open_shard(folder / f'test-{name}.npy', told['test'][name])])
    )
    for name in 'xy'
  ]
  # Of the content, wherever it was made of.
  content = {
    k: v for k, v in told.items() if k not in ('source', 'shard_bytes')
  }
  written = json.dumps(content, sort_keys=True)
  return Stored(
    clients=clients,
    test=Examples(*tests),
    num_classes=told['num_classes'],
    max_value=told['max_value'],
    padding=told['padding'],
    statistics=(mean, max(variance, 0.0) ** 0.5),
    sha256=hashlib.sha256(written.encode()).hexdigest(),
  )


def verify(folder: pathlib.Path) -> int:
  """Reads every file and compares its SHA-256. Returns how many there are.

  Raises:
    InputError: names the first one that is not what was written.
  """
  told = read_description(folder)
  expected = {
    shard_name(number, name): shard[name]
    for number, shard in enumerate(told['shards'])
    for name in ('x', 'y', 'sizes')
  } | {f'test-{name}.npy': told['test'][name] for name in 'xy'}
  for name, file in expected.items():
    open_shard(folder / name, file)
    if (found := sha256_of(folder / name)) != file['sha256']:
      raise InputError(
        f'{folder / name}: its SHA-256 is {found[:12]}..., was'
        f' {file["sha256"][:12]}... when it was written; {AGAIN}'
      )
  return len(expected)


def read_description(folder: pathlib.Path) -> dict[str, Any]:
  """The content of federation.json."""
  path = folder / FILE
  if (folder / JOURNAL).exists() and not path.exists():
    raise InputError(
      f'{folder}: its conversion has not ended; the same command goes on'
    )
  try:
    told = json.loads(path.read_text(encoding='utf-8'))
    if told['format'] != FORMAT:
      raise KeyError('format')
    version = told['version']
  except FileNotFoundError:
    raise InputError(
      f'{path}: is missing; must be a folder that fedavg-jax convert'
      ' has written'
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{path}: is not of a federation ({type(error).__name__}); {AGAIN}'
    ) from error
  if version != VERSION:
    raise InputError(
      f'{path}: has format version {version!r}, this program reads {VERSION};'
      ' convert again, or take the program that wrote it'
    )
  return told


def sha256_of(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def shard_name(number: int, name: str) -> str:
  """The file of an array, x, y or sizes, of a shard."""
  return f'clients-{number:05}-{name}.npy'


def label_range(shards) -> tuple[int, int]:
  """The lowest and the highest label."""
  lowest, highest = zip(*(shard['labels'] for shard in shards), strict=True)
  return min(lowest), max(highest)
