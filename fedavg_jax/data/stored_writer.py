"""Writes a federation to disk, shard by shard, and resumes if interrupted.

A conversion that was killed, or found the disk full, resumes with the same
call, which first verifies that the source has not changed. A conversion that
fails because of its data leaves nothing behind.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import itertools
import json
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

import filelock
import numpy as np

from fedavg_jax.core import trees
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.folders import HeldFile
from fedavg_jax.data.description import FORMAT
from fedavg_jax.data.description import VERSION
from fedavg_jax.data.description import Shard
from fedavg_jax.data.description import parse_shard
from fedavg_jax.data.description import shard_to_json
from fedavg_jax.data.shard_writer import Client
from fedavg_jax.data.shard_writer import NamedExamples
from fedavg_jax.data.shard_writer import content_info
from fedavg_jax.data.shard_writer import expected_shard
from fedavg_jax.data.shard_writer import write_file
from fedavg_jax.data.shard_writer import write_shard
from fedavg_jax.data.stored import FILE
from fedavg_jax.data.stored import JOURNAL
from fedavg_jax.data.stored import LOCK
from fedavg_jax.data.stored import label_range
from fedavg_jax.data.stored import sha256_of
from fedavg_jax.data.stored import shard_name

SHARD_BYTES = 2**28
_TEST_FILES = ('test-x.npy', 'test-y.npy')
# The files that a conversion writes; all others in its folder are the user's.
_OURS = re.compile(
  r'(\.part\.)?(clients-\d{5,}-((x|y|sizes)\.npy|names\.json)|test-[xy]\.npy'
  rf'|{re.escape(FILE)}|{re.escape(JOURNAL)})'
)


class _Made(NamedTuple):
  """Holds the folder that this call writes to.

  Attributes:
    lock: its lock file, which must stay the one at this path.
    new: the number of folders, this one and its parents, that this call made.
  """

  lock: HeldFile
  new: int


def write(
  folder: pathlib.Path,
  clients: Iterable[Client],
  test: Examples,
  *,
  num_classes: int | None,
  max_value: float,
  padding: int | None = None,
  classes: Sequence[str] = (),
  source: Mapping[str, Any],
  shard_bytes: int = SHARD_BYTES,
  wrote: Callable[[int, int], None] = lambda clients, size: None,
) -> None:
  """Writes a federation, or resumes one whose call was interrupted.

  Args:
    folder: a new folder, or that of the interrupted call.
    clients: the examples of each client, the same ones whenever a call resumes;
      clients without examples are skipped.
    test: the central test set.
    num_classes: the number of labels, 0 .. num_classes - 1; None to derive it
      from the labels, and for sequences from the tokens.
    max_value: the largest value that a pixel can have.
    padding: the token behind the end of a sequence; None if all are full.
    classes: names of the labels, in their order.
    source: the origin of the clients, as JSON; the same whenever a call
      resumes.
    shard_bytes: the bytes of examples after which a shard ends.
    wrote: a function, called after each shard with the numbers of clients and
      bytes so far.

  Raises:
    InputError: the folder has other content, or was replaced; or examples do
      not form one federation, and then all files are removed; or the source has
      changed since an earlier call, whose files remain.
  """
  _check('the test set', test, num_classes)
  begin = {
    'format': FORMAT,
    'version': VERSION,
    'source': dict(source),
    'num_classes': num_classes,
    'max_value': max_value,
    'padding': padding,
    'classes': list(classes) or None,
    'shard_bytes': shard_bytes,
    'test': [content_info(array).sha256 for array in test],
  }
  begin = json.loads(json.dumps(begin))
  with _alone(folder) as made:
    shards, new = _written(folder, begin)
    # The call that started the conversion made the folders.
    made = made._replace(new=made.new if new is None else new)
    given = iter(clients)
    _check_source(folder, shards, given)
    _cut_torn_line(folder / JOURNAL)
    try:
      _write_shards(folder, made, begin, shards, given, test, wrote)
      _write_end(folder, made, begin, shards, test)
    except InputError:
      _undo(folder, made)
      raise


def _cut_torn_line(journal: pathlib.Path) -> None:
  """Removes the incomplete line that a killed call has left."""
  if not journal.exists():
    return
  content = journal.read_bytes()
  complete = content.rfind(b'\n') + 1
  if complete < len(content):
    with open(journal, 'r+b') as file:
      file.truncate(complete)


def _write_shards(folder, made, begin, shards, given, test, wrote) -> None:
  """Writes the missing shards, and a line of the journal for each."""
  clients = sum(shard.given for shard in shards)
  size = sum(shard.bytes for shard in shards)
  made.lock.check()
  with open(folder / JOURNAL, 'a', encoding='utf-8') as journal:
    if not (folder / JOURNAL).stat().st_size:
      _line(journal, begin | {'folders_made': made.new})
    known = begin['num_classes']
    alike = _checked(given, test, known, clients)
    for part, number in _parts(alike, begin['shard_bytes']):
      check = made.lock.check
      shard = write_shard(folder, len(shards), part, number, check)
      check()
      _sync(folder)
      _line(journal, shard_to_json(shard))
      shards.append(shard)
      clients, size = clients + number, size + shard.bytes
      wrote(clients, size)
  if not shards:
    raise InputError(f'{folder}: no client has examples')


def _write_end(folder, made, begin, shards, test) -> None:
  """Writes the test set and, as the last file, federation.json."""
  tests = {}
  for name, file, array in zip('xy', _TEST_FILES, test, strict=True):
    made.lock.check()
    tests[name] = write_file(folder / file, array)._asdict()
  found = begin | {
    'shards': list(map(shard_to_json, shards)),
    'test': tests,
  }
  highest = max(label_range(shards)[1], int(test.y.max()))
  if test.y.ndim > 1:
    highest = max(highest, _highest_token(folder, found, shards, test))
  if begin['num_classes'] is None:
    found['num_classes'] = highest + 1
  made.lock.check()
  with (
    atomic_write(folder / FILE) as path,
    open(path, 'w', encoding='utf-8') as file,
  ):
    _line(file, found)
  _sync(folder)
  (folder / JOURNAL).unlink()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[_Made]:
  """Makes the folder, and locks it against other processes."""
  parents = [folder, *folder.parents]
  new = sum(1 for _ in itertools.takewhile(lambda p: not p.exists(), parents))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise InputError(f'{folder}: is not a directory') from None
  try:
    with filelock.FileLock(folder / LOCK, timeout=0):
      lock = HeldFile(folder / LOCK, str(folder))
      names = {path.name for path in folder.iterdir()} - {LOCK}
      try:
        if FILE in names:
          raise InputError(
            f'{folder}: already has a federation; choose a new path; existing'
            ' files are never overwritten'
          )
        if names and JOURNAL not in names:
          raise InputError(f'{folder}: is not empty; choose a new path')
        yield _Made(lock, new)
      finally:
        with contextlib.suppress(InputError):
          lock.check()  # The lock of another process must stay.
          (folder / LOCK).unlink(missing_ok=True)
        lock.close()
      return
  except filelock.Timeout:
    raise InputError(f'{folder}: is in use by another process') from None


def _undo(folder: pathlib.Path, made: _Made) -> None:
  """Removes all files of a conversion that failed because of its data."""
  try:
    made.lock.check()
  except InputError:
    return  # The folder belongs to another process now.
  for path in folder.iterdir():
    if _OURS.fullmatch(path.name):
      path.unlink()
  (folder / LOCK).unlink(missing_ok=True)
  for path in [folder, *folder.parents][: made.new]:
    with contextlib.suppress(OSError):  # It has other files.
      path.rmdir()


def _check_source(
  folder: pathlib.Path, shards: Sequence[Shard], given: Iterator[Client]
) -> None:
  """Raises InputError unless the source still has the clients of all shards."""
  for number, shard in enumerate(shards):
    for name, file in shard.files().items():
      path = folder / shard_name(number, name)
      if sha256_of(path) != file.sha256:
        raise InputError(f'{path}: is not what was written; choose a new path')
    part = [
      client
      for client in itertools.islice(given, shard.given)
      if len(client.y) > 0
    ]
    found = None
    if len(part) == shard.clients:
      with contextlib.suppress(ValueError):  # Their shapes may even differ.
        found = expected_shard(part, shard.given)
    if found != shard:
      first = sum(shard.given for shard in shards[:number])
      raise InputError(
        f'{folder}: clients {first} to {first + shard.given - 1} of the source'
        ' have changed since they were converted; choose a new path, or restore'
        ' the source'
      )


def _written(
  folder: pathlib.Path, begin: dict[str, Any]
) -> tuple[list[Shard], int | None]:
  """Reads the journal of an earlier call in the folder.

  Returns:
    The finished shards, and the number of folders that the call made, None if
    there is no journal.
  """
  journal = folder / JOURNAL
  if not os.path.lexists(journal):
    return [], None
  if not journal.is_file():  # A pipe would never end.
    raise InputError(f'{journal}: is not a regular file; choose a new path')
  content = journal.read_bytes()
  complete = content[: content.rfind(b'\n') + 1]
  try:
    lines = [json.loads(line) for line in complete.splitlines()]
    shards = list(map(parse_shard, lines[1:]))
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'{journal}: is not the journal of a conversion ({error}); choose a new'
      ' path'
    ) from None
  known = lines[0] if lines and isinstance(lines[0], dict) else {}
  new = known.pop('folders_made', 0)
  if lines and known != begin:
    differ = [key for key in begin if known.get(key) != begin[key]]
    what = ', '.join(differ) or 'journal'
    raise InputError(
      f'{folder}: has a conversion with another {what}; choose a new path'
    )
  for number, shard in enumerate(shards):
    for name, file in shard.files().items():
      path = folder / shard_name(number, name)
      if not path.is_file() or path.stat().st_size != file.bytes:
        raise InputError(f'{path}: is not what was written; choose a new path')
  if not lines:
    return shards, None
  return shards, new if isinstance(new, int) and new > 0 else 0


def _checked(
  given: Iterable[Client],
  test: Examples,
  num_classes: int | None,
  first: int,
) -> Iterator[Client]:
  """Yields the clients; raises InputError if one differs from the test set."""
  for number, client in enumerate(given, first):
    if len(client.y) or len(client.x):
      what = f'client {number}'
      if isinstance(client, NamedExamples):
        what += f' ({client.name!r:.80})'
      _check(what, Examples(client.x, client.y), num_classes)
      if _kind(client) != _kind(test):
        raise InputError(
          f'{what}: has examples {_kind(client)}, the test set {_kind(test)};'
          ' must have the same shape and dtype'
        )
    yield client


def _parts(
  clients: Iterable[Client], shard_bytes: int
) -> Iterator[tuple[list[Client], int]]:
  """Groups clients into shards of about `shard_bytes`.

  Yields:
    The clients of a shard, and the number of clients read for it, empty ones
    included.
  """
  part: list[Client] = []
  size, given = 0, 0
  for client in clients:
    given += 1
    if not len(client.y):
      continue
    part.append(client)
    size += client.x.nbytes + client.y.nbytes
    if size >= shard_bytes:
      yield part, given
      part, size, given = [], 0, 0
  if part:
    yield part, given


def _check(what: str, examples: Examples, num_classes: int | None) -> None:
  """Raises InputError for examples that would silently spoil the training."""
  x, y = examples
  if trees.is_tree(x) or trees.is_tree(y):
    raise InputError(
      f'{what}: is a tree of arrays; must be one array of inputs and one of'
      ' labels on disk'
    )
  if len(x) != len(y) or not len(y):
    raise InputError(f'{what}: {len(x)} inputs, but {len(y)} labels')
  if not x[0].size:
    raise InputError(
      f'{what}: inputs have the shape {list(x.shape[1:])}; must have a value'
    )
  least = 0 if y.ndim == 1 else NO_LABEL
  if y.dtype != np.int32 or x.dtype not in (
    np.uint8,
    np.int32,
    np.float32,
  ):
    raise InputError(
      f'{what}: x is {x.dtype} and y {y.dtype}; x must be uint8, int32'
      ' or float32, and y int32'
    )
  most = (num_classes or 2**31 - 1) - 1
  if y.min() < least or y.max() > most:
    raise InputError(
      f'{what}: labels are {y.min()} to {y.max()}; must be in [{least}, {most}]'
    )
  if x.dtype == np.float32 and not np.isfinite(x).all():
    raise InputError(f'{what}: inputs must be finite')


def _highest_token(folder, found, shards, test) -> int:
  """Returns the highest token; raises InputError if one is out of range."""
  inputs = [
    np.load(folder / shard_name(number, 'x'), mmap_mode='r')
    for number in range(len(shards))
  ]
  lowest = min(int(x.min()) for x in (test.x, *inputs))
  highest = max(int(x.max()) for x in (test.x, *inputs))
  most = (found['num_classes'] or 2**31 - 1) - 1
  if lowest < 0 or highest > most:
    raise InputError(
      f'{folder}: tokens are {lowest} to {highest}; must be in [0, {most}], the'
      ' range of labels'
    )
  return highest


def _sync(folder: pathlib.Path) -> None:
  """Flushes the names of a folder's files to disk, if the system can."""
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


def _kind(examples: Client) -> str:
  x, y = examples.x, examples.y
  return f'{x.dtype}{[*x.shape[1:]]}, labels {[*y.shape[1:]]}'
