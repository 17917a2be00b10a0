"""A federation on disk, for populations that fit in no memory.

A folder holds shards of whole clients, `clients-00000-x.npy`, `...-y.npy` and
`...-sizes.npy`, the test set in `test-x.npy` and `test-y.npy`, and
`federation.json` with what they must be. The arrays are plain .npy: NumPy reads
a client's rows with one seek and one read straight into an array, without
decoding a record at a time, and any other program can read them too.

`python -m fedavg_jax.convert` writes such folders.
"""

import bisect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import filelock
import numpy as np

from fedavg_jax import clients as clients_lib
from fedavg_jax.clients import NO_LABEL
from fedavg_jax.clients import Clients
from fedavg_jax.clients import Examples
from fedavg_jax.errors import InputError
from fedavg_jax.workdir import whole

VERSION = 1
SHARD_BYTES = 2**28
_AT_A_TIME = 2**22  # Values that are converted to be added up.
_FORMAT = 'federation of fedavg_jax'
_FILE, _BEGUN, _LOCK = 'federation.json', 'conversion.jsonl', '.lock'
_AGAIN = 'copy it again, or convert again into a new folder'


class Shards:
  """Rows of several .npy files in a row, read whenever they are asked for.

  Attributes:
    shape: [n, ...] of all together.
    dtype: of all.
    nbytes: of all.
  """

  def __init__(
    self, files: Sequence['_File'], limits: tuple[int, int] | None = None
  ):
    """Opens nothing.

    Args:
      files: from `_open`.
      limits: the lowest and the highest value in them, where they are known.
    """
    self._files = [(str(file.path), file.offset) for file in files]
    self._ends = list(itertools.accumulate(file.shape[0] for file in files))
    self.shape = (self._ends[-1], *files[0].shape[1:])
    self.dtype = files[0].dtype
    self.nbytes = math.prod(self.shape) * self.dtype.itemsize
    self._row = math.prod(self.shape[1:])  # Values in it.
    self._limits = limits

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def ndim(self) -> int:
    """Axes, that of the rows included."""
    return len(self.shape)

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
        raise InputError(f'{path}: was cut short while it was read; {_AGAIN}')
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
  told = _told(folder)
  opened: dict[str, list[_File]] = {'x': [], 'y': [], 'sizes': []}
  for number, shard in enumerate(told['shards']):
    for name, files in opened.items():
      files.append(_open(folder / _name(number, name), shard[name]))
  sizes = np.asarray(Shards(opened['sizes']))
  x: Any = Shards(opened['x'])
  y: Any = Shards(opened['y'], _range(told['shards']))
  if not len(x) == len(y) == sizes.sum():
    raise InputError(
      f'{folder / _FILE}: {len(x)} inputs, {len(y)} labels and clients of'
      f' {sizes.sum()} examples; must be as many; {_AGAIN}'
    )
  count = len(x) * math.prod(x.shape[1:]) * told['max_value']
  mean = sum(shard['sum'] for shard in told['shards']) / count
  square = sum(shard['squares'] for shard in told['shards']) / count
  variance = square / told['max_value'] - mean**2
  clients = Clients(x, y, np.concatenate([[0], np.cumsum(sizes)]))
  tests = [
    np.asarray(Shards([_open(folder / f'test-{name}.npy', told['test'][name])]))
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
  told = _told(folder)
  expected = {
    _name(number, name): shard[name]
    for number, shard in enumerate(told['shards'])
    for name in ('x', 'y', 'sizes')
  } | {f'test-{name}.npy': told['test'][name] for name in 'xy'}
  for name, file in expected.items():
    _open(folder / name, file)
    if (found := _sha256(folder / name)) != file['sha256']:
      raise InputError(
        f'{folder / name}: its SHA-256 is {found[:12]}..., was'
        f' {file["sha256"][:12]}... when it was written; {_AGAIN}'
      )
  return len(expected)


def write(
  folder: pathlib.Path,
  clients: Callable[[int], Iterable[Examples]],
  test: Examples,
  *,
  num_classes: int | None,
  max_value: float,
  padding: int | None = None,
  source: Mapping[str, Any],
  shard_bytes: int = SHARD_BYTES,
  wrote: Callable[[int, int], None] = lambda clients, size: None,
) -> None:
  """Writes a federation, or goes on with one where an earlier call was ended.

  Args:
    folder: a new one, or that of such a call.
    clients: number of a client -> the examples of it and of those after it,
      the same ones whenever it is called. Clients without any are left out.
    test: the central test set.
    num_classes: as in `Stored`, like the next two; None for the labels that
      there are.
    max_value: of a pixel.
    padding: of sequences.
    source: JSON, what the clients come from; the same where a call goes on.
    shard_bytes: after which a shard ends.
    wrote: called after each shard with all clients and bytes so far.

  Raises:
    InputError: the folder has something else in it, or examples are not those
      of one federation.
  """
  begin = {
    'format': _FORMAT,
    'version': VERSION,
    'source': dict(source),
    'num_classes': num_classes,
    'max_value': max_value,
    'padding': padding,
    'shard_bytes': shard_bytes,
  }
  begin = json.loads(json.dumps(begin))
  with _alone(folder):
    shards = _go_on(folder, begin)
    if shards:
      _check_source(folder, shards, clients)
    done = [sum(shard[key] for shard in shards) for key in ('given', 'bytes')]
    with open(folder / _BEGUN, 'a', encoding='utf-8') as journal:
      if not (folder / _BEGUN).stat().st_size:
        _line(journal, begin)
      for part, given in _parts(clients(done[0]), shard_bytes):
        shard = _write_shard(folder, len(shards), part, num_classes)
        shard['given'] = given
        _sync(folder)
        _line(journal, shard)
        shards.append(shard)
        done = [done[0] + given, done[1] + shard['bytes']]
        wrote(*done)
    if not shards:
      raise InputError(f'{folder}: there is no client with an example')
    for shard in shards[1:]:
      if any(_kind(shard[name]) != _kind(shards[0][name]) for name in 'xy'):
        raise InputError(
          f'{folder}: examples have the shapes and types'
          f' {_kind(shards[0]["x"])} and {_kind(shard["x"])}; must be one'
        )
    _check('the test set', test, num_classes)
    tests = {
      name: _write(folder / f'test-{name}.npy', array)
      for name, array in zip('xy', test, strict=True)
    }
    told = begin | {'shards': shards, 'test': tests}
    if num_classes is None:
      highest = max(_range(shards)[1], int(test.y.max()))
      told['num_classes'] = highest + 1
    with whole(folder / _FILE) as path, open(path, 'w') as file:
      _line(file, told)
    _sync(folder)
    (folder / _BEGUN).unlink()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Makes the folder, and sees that no other process writes to it."""
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with filelock.FileLock(folder / _LOCK, timeout=0):
      names = {path.name for path in folder.iterdir()} - {_LOCK}
      try:
        if _FILE in names:
          raise InputError(
            f'{folder}: holds a federation already; name a new folder, nothing'
            ' is ever written over'
          )
        if names and _BEGUN not in names:
          raise InputError(f'{folder}: is not empty; name a new folder')
        yield
      finally:
        (folder / _LOCK).unlink(missing_ok=True)
  except filelock.Timeout:
    raise InputError(f'{folder}: another process writes to it') from None


def _check_source(folder, shards, clients) -> None:
  """Converts the last finished client again, which must be what it was."""
  given = sum(shard['given'] for shard in shards)
  last = _open(folder / _name(len(shards) - 1, 'x'), shards[-1]['x'])
  for number in range(given - 1, -1, -1):
    own = next(iter(clients(number)), None)
    if own is None or len(own.y):
      break
  size = len(own.y) if own is not None else 0
  rows = last.shape[0]
  if own is None or not np.array_equal(
    Shards([last])[max(rows - size, 0) : rows], own.x
  ):
    raise InputError(
      f'{folder}: client {number} is not the one that was converted: the source'
      ' has changed; name a new folder'
    )


def _go_on(folder: pathlib.Path, begin: dict[str, Any]) -> list[dict[str, Any]]:
  """The shards that an earlier call has finished in the folder."""
  journal = folder / _BEGUN
  if not journal.exists():
    return []
  text = journal.read_text(encoding='utf-8')
  whole_lines = text[: text.rfind('\n') + 1]
  if whole_lines != text:  # Killed while it wrote a line.
    with open(journal, 'r+b') as file:
      file.truncate(len(whole_lines.encode()))
  lines = [json.loads(line) for line in whole_lines.splitlines()]
  if lines and lines[0] != begin:
    differ = [key for key in begin if lines[0].get(key) != begin[key]]
    raise InputError(
      f'{folder}: a conversion with another {", ".join(differ)} has begun here;'
      ' name a new folder'
    )
  for number, shard in enumerate(lines[1:]):
    for name in ('x', 'y', 'sizes'):
      _open(folder / _name(number, name), shard[name])
  return lines[1:]


def _parts(
  clients: Iterable[Examples], shard_bytes: int
) -> Iterator[tuple[list[Examples], int]]:
  """Shards of about so many bytes; how many clients were given for each."""
  part, size, given = [], 0, 0
  for own in clients:
    given += 1
    if not len(own.y):
      continue
    part.append(own)
    size += own.x.nbytes + own.y.nbytes
    if size >= shard_bytes:
      yield part, given
      part, size, given = [], 0, 0
  if part:
    yield part, given


def _write_shard(folder, number, part, num_classes) -> dict[str, Any]:
  """Writes one shard; returns what stands of it in federation.json."""
  kinds = {(own.x.shape[1:], own.x.dtype, own.y.shape[1:]) for own in part}
  if len(kinds) > 1:
    raise InputError(
      f'{folder}: examples have the shapes and types {sorted(map(str, kinds))};'
      ' must be one'
    )
  own = clients_lib.join(part)
  _check(f'shard {number}', own, num_classes)
  sizes = np.array([len(client.y) for client in part], np.int64)
  total, squares = _moments(own.x)
  files = {
    name: _write(folder / _name(number, name), array)
    for name, array in (('x', own.x), ('y', own.y), ('sizes', sizes))
  }
  return {
    **files,
    'clients': len(part),
    'bytes': own.x.nbytes + own.y.nbytes,
    'sum': total,
    'squares': squares,
    'labels': [int(own.y.min()), int(own.y.max())],
  }


def _moments(x: np.ndarray) -> tuple[float, float]:
  """Sums of all values and of their squares, exact of whole numbers."""
  total, squares, values = 0, 0, x.reshape(-1)
  for first in range(0, len(values), _AT_A_TIME):
    some = values[first : first + _AT_A_TIME]
    some = some.astype(np.float64 if x.dtype == np.float32 else np.int64)
    total, squares = total + some.sum().item(), squares + (some @ some).item()
  return total, squares


def _check(what: str, own: Examples, num_classes: int | None) -> None:
  """Raises InputError for values that would silently spoil what is learnt."""
  if len(own.x) != len(own.y) or not len(own.y):
    raise InputError(f'{what}: {len(own.x)} inputs, but {len(own.y)} labels')
  least = 0 if own.y.ndim == 1 else NO_LABEL
  if own.y.dtype != np.int32 or own.x.dtype not in (
    np.uint8,
    np.int32,
    np.float32,
  ):
    raise InputError(
      f'{what}: x is {own.x.dtype} and y {own.y.dtype}; x must be uint8, int32'
      ' or float32, and y int32'
    )
  if own.y.min() < least or own.y.max() >= (num_classes or 2**31):
    raise InputError(
      f'{what}: labels are {own.y.min()} to {own.y.max()}, must lie in 0 ..'
      f' {(num_classes or 2**31) - 1}'
    )
  if own.x.dtype == np.float32 and not np.isfinite(own.x).all():
    raise InputError(f'{what}: some inputs are not finite')


def _told(folder: pathlib.Path) -> dict[str, Any]:
  """The content of federation.json."""
  path = folder / _FILE
  if (folder / _BEGUN).exists() and not path.exists():
    raise InputError(
      f'{folder}: its conversion has not ended; the same command goes on'
    )
  try:
    told = json.loads(path.read_text(encoding='utf-8'))
    if told['format'] != _FORMAT:
      raise KeyError('format')
    version = told['version']
  except FileNotFoundError:
    raise InputError(
      f'{path}: is missing; must be a folder that python -m fedavg_jax.convert'
      ' has written'
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{path}: is not of a federation ({type(error).__name__}); {_AGAIN}'
    ) from error
  if version != VERSION:
    raise InputError(
      f'{path}: has format version {version!r}, this program reads {VERSION};'
      ' convert again, or take the program that wrote it'
    )
  return told


class _File(NamedTuple):
  """An .npy file: where its values begin, in bytes, and what they are."""

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype


def _open(path: pathlib.Path, expected: Mapping[str, Any]) -> _File:
  """Looks at an array, which must be what was written, as its length tells."""
  try:
    size = path.stat().st_size
    if size != expected['bytes']:
      raise InputError(
        f'{path}: has {size:,} bytes, must have {expected["bytes"]:,}; {_AGAIN}'
      )
    with open(path, 'rb') as file:
      version = np.lib.format.read_magic(file)
      if version != (1, 0):
        raise ValueError(f'a version {version} of .npy')
      shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
      offset = file.tell()
  except FileNotFoundError:
    raise InputError(f'{path}: is missing; {_AGAIN}') from None
  except (OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    reason = str(error).splitlines()[0][:100]
    raise InputError(f'{path}: cannot be read ({reason})') from error
  if by_columns or [list(shape), dtype.str] != [
    expected['shape'],
    expected['dtype'],
  ]:
    raise InputError(
      f'{path}: is {dtype} {shape}, must be {expected["dtype"]}'
      f' {expected["shape"]}; {_AGAIN}'
    )
  return _File(path, offset, shape, dtype)


def _write(path: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
  """Writes an array; returns what `_open` expects."""
  with whole(path) as part:
    with open(part, 'wb') as file:
      np.save(file, np.ascontiguousarray(array))
      file.flush()
      os.fsync(file.fileno())
    size, sha256 = part.stat().st_size, _sha256(part)
  return {
    'shape': list(array.shape),
    'dtype': array.dtype.str,
    'bytes': size,
    'sha256': sha256,
  }


def _sync(folder: pathlib.Path) -> None:
  """Makes sure of the names of the files in a folder, where that is needed."""
  if hasattr(os, 'O_DIRECTORY'):
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
      os.fsync(number)
    finally:
      os.close(number)


def _line(journal, content) -> None:
  journal.write(json.dumps(content) + '\n')
  journal.flush()
  os.fsync(journal.fileno())


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _unknown() -> tuple[int, int]:
  raise ValueError('the limits of these values are not known without reading')


def _name(number: int, name: str) -> str:
  return f'clients-{number:05}-{name}.npy'


def _kind(file: Mapping[str, Any]) -> Any:
  return file['shape'][1:], file['dtype']


def _range(shards) -> tuple[int, int]:
  """The lowest and the highest label."""
  lowest, highest = zip(*(shard['labels'] for shard in shards), strict=True)
  return min(lowest), max(highest)
