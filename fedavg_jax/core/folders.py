"""Lists the data files of folders and detects folders that were replaced."""

from collections.abc import Sequence
import os
import pathlib
import re
import unicodedata

from fedavg_jax.core.errors import InputError

# Files that systems, editors and archives add; hidden names are others.
_NOT_DATA = frozenset(
  {
    '__MACOSX',
    'Thumbs.db',
    'ehthumbs.db',
    'desktop.ini',
    '@eaDir',
    '#recycle',
    '$RECYCLE.BIN',
    'RECYCLER',
    'System Volume Information',
    'lost+found',
    '__pycache__',
    'Icon\r',
  }
)
_LOWER = frozenset(name.lower() for name in _NOT_DATA)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the entries of a folder that are data, in natural order.

  Hidden entries, resource forks, thumbnails and indexes of operating systems
  are left out. Numbers in names sort as numbers: `client2` precedes `client10`.
  A folder that does not exist has no entries.

  Raises:
    InputError: the folder cannot be listed.
  """
  try:
    found = list(folder.iterdir()) if folder.is_dir() else []
  except OSError as error:
    raise InputError(
      f'{folder}: cannot be listed ({error.strerror})'
    ) from error
  return sorted(filter(is_data, found), key=lambda path: natural(path.name))


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """Finds a file by its exact name, or else by its name in any case.

  Args:
    folder: the folder that `name` is relative to.
    name: the path of the file below the folder.
  """
  path = folder / name
  if path.is_file():
    return path
  for found in entries(path.parent):
    if found.name.lower() == path.name.lower() and found.is_file():
      return found
  return None


def is_data(path: pathlib.Path) -> bool:
  """Returns whether an entry is data, not a file of the system, by its name."""
  return not path.name.startswith('.') and path.name.lower() not in _LOWER


def natural(name: str) -> tuple:
  """Returns a key that sorts numbers in names as numbers.

  >>> sorted(['b10', 'b9', 'a'], key=natural)
  ['a', 'b9', 'b10']
  """
  parts = re.split(r'(\d+)', name)
  # Texts have even places, numbers odd ones; the name sorts 01 before 1.
  return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def check_names(
  names: Sequence[str], what: str, shown: Sequence[str] | None = None
) -> None:
  """Raises InputError where two names read the same.

  Args:
    names: the names to compare, such as those of clients.
    what: the name of all of them in the message.
    shown: the name of each in the message, such as its file; None is `names`.
  """
  seen: dict[str, tuple[str, str]] = {}
  for name, own in zip(names, shown or names, strict=True):
    plain = unicodedata.normalize('NFC', name)
    if plain in seen:
      before, other = seen[plain]
      # Two spellings in Unicode look alike; their code points do not.
      write = repr if before == name else ascii
      raise InputError(
        f'{what}: {write(other):.80} and {write(own):.80} are one name; must be'
        ' different'
      )
    seen[plain] = name, own


class HeldFile:
  """Keeps a file open, to detect that its path names another one.

  When a folder is deleted and created anew under the same name, the path leads
  to another file; nothing may be written to that folder.
  """

  def __init__(self, path: pathlib.Path, what: str):
    """Opens a file and records its identity.

    Args:
      path: the path of an existing file.
      what: the name of its folder in the message.
    """
    self._path, self._what = path, what
    # While the file is open, no other file gets its inode number.
    self._file = os.open(path, os.O_RDONLY)
    self._identity = _identity(os.fstat(self._file))

  def check(self) -> None:
    """Raises InputError unless the path still names the same file."""
    try:
      found = _identity(os.stat(self._path))
    except OSError:
      found = None
    if found != self._identity:
      raise InputError(
        f'{self._what}: was deleted or replaced by another process; nothing'
        ' more is written there'
      )

  def close(self) -> None:
    """Closes the file."""
    if self._file >= 0:
      os.close(self._file)
    self._file = -1


def _identity(status: os.stat_result) -> tuple[int, int]:
  return status.st_dev, status.st_ino
