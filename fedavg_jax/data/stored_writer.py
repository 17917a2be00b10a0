"""Writes a federation to disk, shard by shard, and resumes where it ended.

What is killed, or finds the disk full, resumes with the same call: first the
source proves to be the one of all that was written. What fails on its data
leaves nothing.
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
# What a conversion writes, by name; other files in its folder are a person's.
_OURS = re.compile(
  r'(\.part\.)?(clients-\d{5,}-((x|y|sizes)\.npy|names\.json)|test-[xy]\.npy'
  rf'|{re.escape(FILE)}|{re.escape(JOURNAL)})'
)


class _Made(NamedTuple):
  """A folder that this call writes to.

  Attributes:
    held: its lock file, which must stay the one of the path.
    new: how many folders this call has made, of it and those above it.
  """

  held: HeldFile
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
  """Writes a federation, or resumes one where an earlier call was ended.

  Args:
    folder: a new one, or that of such a call.
    clients: examples of one after another, the same ones whenever a call
      resumes. Clients without any are left out.
    test: the central test set.
    num_classes: as in `Stored`, like the next two; None for the labels, and of
      sequences the tokens, that there are.
    max_value: of a pixel.
    padding: of sequences.
    classes: names of the labels, in their order.
    source: JSON, what the clients come from; the same where a call resumes.
    shard_bytes: after which a shard ends.
    wrote: called after each shard with all clients and bytes so far.

  Raises:
    InputError: the folder has something else in it, or was replaced; or
      examples are not those of one federation, and then nothing is left of it;
      or the source is not the one of what was written, which stays.
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
    # Who has begun the conversion has made the folders.
    made = made._replace(new=made.new if new is None else new)
    given = iter(clients)
    _prove(folder, shards, given)
    _cut_torn_line(folder / JOURNAL)
    try:
      _write_shards(folder, made, begin, shards, given, test, wrote)
      _write_end(folder, made, begin, shards, test)
    except InputError:
      _undo(folder, made)
      raise


def _cut_torn_line(journal: pathlib.Path) -> None:
  """Removes the part of a line that a killed call has left."""
  if not journal.exists():
    return
  content = journal.read_bytes()
  complete = content.rfind(b'\n') + 1
  if complete < len(content):
    with open(journal, 'r+b') as file:
      file.truncate(complete)


def _write_shards(folder, made, begin, shards, given, test, wrote) -> None:
  """Writes the shards that are missing, and a line of the journal for each."""
  clients = sum(shard.given for shard in shards)
  size = sum(shard.bytes for shard in shards)
  made.held.check()
  with open(folder / JOURNAL, 'a', encoding='utf-8') as journal:
    if not (folder / JOURNAL).stat().st_size:
      _line(journal, begin | {'folders_made': made.new})
    known = begin['num_classes']
    alike = _checked(given, test, known, clients)
    for part, number in _parts(alike, begin['shard_bytes']):
      check = made.held.check
      shard = write_shard(folder, len(shards), part, number, check)
      check()
      _sync(folder)
      _line(journal, shard_to_json(shard))
      shards.append(shard)
      clients, size = clients + number, size + shard.bytes
      wrote(clients, size)
  if not shards:
    raise InputError(f'{folder}: there is no client with an example')


def _write_end(folder, made, begin, shards, test) -> None:
  """Writes the test set and, last of all, federation.json."""
  tests = {}
  for name, file, array in zip('xy', _TEST_FILES, test, strict=True):
    made.held.check()
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
  made.held.check()
  with (
    atomic_write(folder / FILE) as path,
    open(path, 'w', encoding='utf-8') as file,
  ):
    _line(file, found)
  _sync(folder)
  (folder / JOURNAL).unlink()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[_Made]:
  """Makes the folder, and sees that no other process writes to it."""
  parents = [folder, *folder.parents]
  new = sum(1 for _ in itertools.takewhile(lambda p: not p.exists(), parents))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise InputError(f'{folder}: must be a folder, is a file') from None
  try:
    with filelock.FileLock(folder / LOCK, timeout=0):
      held = HeldFile(folder / LOCK, str(folder))
      names = {path.name for path in folder.iterdir()} - {LOCK}
      try:
        if FILE in names:
          raise InputError(
            f'{folder}: holds a federation already; choose a new path, existing'
            ' files are never overwritten'
          )
        if names and JOURNAL not in names:
          raise InputError(f'{folder}: is not empty; choose a new path')
        yield _Made(held, new)
      finally:
        with contextlib.suppress(InputError):
          held.check()  # What is another's stays.
          (folder / LOCK).unlink(missing_ok=True)
        held.close()
      return
  except filelock.Timeout:
    raise InputError(f'{folder}: another process writes to it') from None


def _undo(folder: pathlib.Path, made: _Made) -> None:
  """Removes all that a conversion which failed on its data has written."""
  try:
    made.held.check()
  except InputError:
    return  # The folder is another's.
  for path in folder.iterdir():
    if _OURS.fullmatch(path.name):
      path.unlink()
  (folder / LOCK).unlink(missing_ok=True)
  for path in [folder, *folder.parents][: made.new]:
    with contextlib.suppress(OSError):  # Somebody else has put something there.
      path.rmdir()


def _prove(
  folder: pathlib.Path, shards: Sequence[Shard], given: Iterator[Client]
) -> None:
  """Reads the source of all shards again, which must be what was written."""
  for number, shard in enumerate(shards):
    for name, file in shard.files().items():
      path = folder / shard_name(number, name)
      if sha256_of(path) != file.sha256:
        raise InputError(f'{path}: is not what was written; choose a new path')
    part = [
      own for own in itertools.islice(given, shard.given) if len(own.y) > 0
    ]
    found = None
    if len(part) == shard.clients:
      with contextlib.suppress(ValueError):  # They do not even fit each other.
        found = expected_shard(part, shard.given)
    if found != shard:
      first = sum(shard.given for shard in shards[:number])
      raise InputError(
        f'{folder}: clients {first} to {first + shard.given - 1} of the source'
        ' are not those that were converted: it has changed; choose a new path,'
        ' or put it back'
      )


def _written(
  folder: pathlib.Path, begin: dict[str, Any]
) -> tuple[list[Shard], int | None]:
  """Reads which shards an earlier call has finished in the folder.

  Returns:
    The shards, and how many folders that call has made; None where none of
    its journal stands.
  """
  journal = folder / JOURNAL
  if not os.path.lexists(journal):
    return [], None
  if not journal.is_file():  # A pipe would never end.
    raise InputError(f'{journal}: must be a file; choose a new path')
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
      f'{folder}: a conversion with another {what} has begun here; choose a new'
      ' path'
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
  """Looks at each client before it is written; all must be as the test set."""
  for number, own in enumerate(given, first):
    if len(own.y) or len(own.x):
      what = f'client {number}'
      if isinstance(own, NamedExamples):
        what += f' ({own.name!r:.80})'
      _check(what, Examples(own.x, own.y), num_classes)
      if _kind(own) != _kind(test):
        raise InputError(
          f'{what}: has examples {_kind(own)}, the test set {_kind(test)}; must'
          ' be of one shape and type'
        )
    yield own


def _parts(
  clients: Iterable[Client], shard_bytes: int
) -> Iterator[tuple[list[Client], int]]:
  """Shards of about so many bytes; how many clients were given for each."""
  part: list[Client] = []
  size, given = 0, 0
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


def _check(what: str, own: Examples, num_classes: int | None) -> None:
  """Raises InputError for values that would silently spoil what is learnt."""
  if trees.is_tree(own.x) or trees.is_tree(own.y):
    raise InputError(
      f'{what}: is a tree of arrays; must be one array of inputs and one of'
      ' labels on disk'
    )
  if len(own.x) != len(own.y) or not len(own.y):
    raise InputError(f'{what}: {len(own.x)} inputs, but {len(own.y)} labels')
  if not own.x[0].size:
    raise InputError(
      f'{what}: inputs have the shape {list(own.x.shape[1:])}, no value'
    )
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
  most = (num_classes or 2**31 - 1) - 1
  if own.y.min() < least or own.y.max() > most:
    raise InputError(
      f'{what}: labels are {own.y.min()} to {own.y.max()}, must lie in {least}'
      f' .. {most}'
    )
  if own.x.dtype == np.float32 and not np.isfinite(own.x).all():
    raise InputError(f'{what}: some inputs are not finite')


def _highest_token(folder, found, shards, test) -> int:
  """Raises InputError for tokens that a model would not know."""
  inputs = [
    np.load(folder / shard_name(number, 'x'), mmap_mode='r')
    for number in range(len(shards))
  ]
  lowest = min(int(x.min()) for x in (test.x, *inputs))
  highest = max(int(x.max()) for x in (test.x, *inputs))
  most = (found['num_classes'] or 2**31 - 1) - 1
  if lowest < 0 or highest > most:
    raise InputError(
      f'{folder}: tokens are {lowest} to {highest}, must lie in 0 .. {most}, as'
      ' labels do'
    )
  return highest


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


def _kind(own: Client) -> str:
  return f'{own.x.dtype}{[*own.x.shape[1:]]}, labels {[*own.y.shape[1:]]}'
