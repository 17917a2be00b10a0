"""What a folder holds that a person put there, and a folder that is held."""

from collections.abc import Sequence
import os
import pathlib
import re
import unicodedata

from fedavg_jax.core.errors import InputError

# What systems, editors and archives leave beside data; and all hidden names.
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
  """Lists what a folder holds, in natural order, and nothing of the system's.

  Hidden entries, resource forks, thumbnails and indexes of operating systems
  are left out. Numbers in names count as numbers: `client2` comes before
  `client10`. A folder that does not exist holds nothing.

  Raises:
    InputError: it cannot be listed.
  """
  try:
    found = list(folder.iterdir()) if folder.is_dir() else []
  except OSError as error:
    raise InputError(
      f'{folder}: cannot be listed ({error.strerror})'
    ) from error
  return sorted(filter(is_data, found), key=lambda path: natural(path.name))


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """Finds a file, if need be by its name in other capitals.

  Args:
    folder: where it is.
    name: of the file, below the folder.
  """
  path = folder / name
  if path.is_file():
    return path
  for found in entries(path.parent):
    if found.name.lower() == path.name.lower() and found.is_file():
      return found
  return None


def is_data(path: pathlib.Path) -> bool:
  """Tells whether a name is one that a person gives to data."""
  return not path.name.startswith('.') and path.name.lower() not in _LOWER


def natural(name: str) -> tuple:
  """Makes a key that sorts names as people do.

  >>> sorted(['b10', 'b9', 'a'], key=natural)
  ['a', 'b9', 'b10']
  """
  parts = re.split(r'(\d+)', name)
  # Texts at even places, numbers at odd ones; of 01 and 1 the text decides.
  return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def check_names(
  names: Sequence[str], what: str, shown: Sequence[str] | None = None
) -> None:
  """Raises InputError where two names are one to a reader.

  Args:
    names: of clients, say.
    what: what the message calls them.
    shown: what the message calls each, where that is another, such as its file.
  """
  seen: dict[str, tuple[str, str]] = {}
  for name, own in zip(names, shown or names, strict=True):
    plain = unicodedata.normalize('NFC', name)
    if plain in seen:
      before, other = seen[plain]
      # Two spellings in Unicode look alike; their numbers do not.
      write = repr if before == name else ascii
      raise InputError(
        f'{what}: {write(other):.80} and {write(own):.80} are one name; must be'
        ' different'
      )
    seen[plain] = name, own


class HeldFile:
  """A file that is open here, and must stay the one that its path names.

  Whoever deletes a folder and makes another under its name has another file
  there; nothing of ours may be written beside it.
  """

  def __init__(self, path: pathlib.Path, what: str):
    """Remembers which file a path names.

    Args:
      path: of a file that exists.
      what: what the message calls its folder.
    """
    self._path, self._what = path, what
    # Open, so that its number is nobody else's.
    self._file = os.open(path, os.O_RDONLY)
    self._identity = _identity(os.fstat(self._file))

  def check(self) -> None:
    """Raises InputError where the path names another file, or none."""
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
