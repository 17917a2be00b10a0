"""Writes a federation to disk, shard by shard, and resumes where it ended."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
from typing import Any

import filelock
import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import whole
from fedavg_jax.data.shards import Shards
from fedavg_jax.data.shards import open_shard
from fedavg_jax.data.stored import FILE
from fedavg_jax.data.stored import FORMAT
from fedavg_jax.data.stored import JOURNAL
from fedavg_jax.data.stored import LOCK
from fedavg_jax.data.stored import VERSION
from fedavg_jax.data.stored import label_range
from fedavg_jax.data.stored import sha256_of
from fedavg_jax.data.stored import shard_name

SHARD_BYTES = 2**28
_AT_A_TIME = 2**22  # Values that are converted to be added up.


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
    'format': FORMAT,
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
    with open(folder / JOURNAL, 'a', encoding='utf-8') as journal:
      if not (folder / JOURNAL).stat().st_size:
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
      highest = max(label_range(shards)[1], int(test.y.max()))
      told['num_classes'] = highest + 1
    with whole(folder / FILE) as path, open(path, 'w') as file:
      _line(file, told)
    _sync(folder)
    (folder / JOURNAL).unlink()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Makes the folder, and sees that no other process writes to it."""
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with filelock.FileLock(folder / LOCK, timeout=0):
      names = {path.name for path in folder.iterdir()} - {LOCK}
      try:
        if FILE in names:
          raise InputError(
            f'{folder}: holds a federation already; name a new folder, nothing'
            ' is ever written over'
          )
        if names and JOURNAL not in names:
          raise InputError(f'{folder}: is not empty; name a new folder')
        yield
      finally:
        (folder / LOCK).unlink(missing_ok=True)
  except filelock.Timeout:
    raise InputError(f'{folder}: another process writes to it') from None


def _check_source(folder, shards, clients) -> None:
  """Converts the last finished client again, which must be what it was."""
  given = sum(shard['given'] for shard in shards)
  last = open_shard(folder / shard_name(len(shards) - 1, 'x'), shards[-1]['x'])
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
  journal = folder / JOURNAL
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
      open_shard(folder / shard_name(number, name), shard[name])
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
  own = client_data.join(part)
  _check(f'shard {number}', own, num_classes)
  sizes = np.array([len(client.y) for client in part], np.int64)
  total, squares = _moments(own.x)
  files = {
    name: _write(folder / shard_name(number, name), array)
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


def _write(path: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
  """Writes an array; returns what `open_shard` expects."""
  with whole(path) as part:
    with open(part, 'wb') as file:
      np.save(file, np.ascontiguousarray(array))
      file.flush()
      os.fsync(file.fileno())
    size, sha256 = part.stat().st_size, sha256_of(part)
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


def _kind(file: Mapping[str, Any]) -> Any:
  return file['shape'][1:], file['dtype']
