"""Manages the folder of a run: one process at a time, only atomic writes.

`config.json` is written first; a folder without it does not belong to a run and
is not changed. Other files are written under a temporary name and renamed.
`metrics.jsonl` only grows; a checkpoint seals it with its length and SHA-256,
so that a resumed run can cut off later lines and detect changes of earlier
ones.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any
from typing import BinaryIO

import filelock
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import part_name
from fedavg_jax.core.folders import HeldFile

_CONFIG, _METRICS, _SUMMARY, _LOCK = (
  'config.json',
  'metrics.jsonl',
  'summary.json',
  '.lock',
)


# The format of config.json; folders of other formats are refused.
FORMAT = 2
# Key in config.json after the first checkpoint: a run without one is damaged.
_SAVED = 'saved'


def check_format(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Raises InputError unless a file has the format of this version.

  Args:
    path: the path of the file.
    content: the JSON object in it.
  """
  if (found := content.get('format', 1)) != FORMAT:
    raise InputError(
      f'{path}: has format {found!r}, this version reads {FORMAT};'
      ' choose a new workdir, or use the version that wrote it'
    )


def default_workdir(name: str) -> pathlib.Path:
  """Returns outputs/<date>/<time>_<name>, with a number if that exists."""
  now = datetime.datetime.now()
  folder = pathlib.Path('outputs') / now.strftime('%Y-%m-%d')
  stem = f'{now:%H-%M-%S}_{name}'
  path, number = folder / stem, 2
  while path.exists():
    path, number = folder / f'{stem}_{number}', number + 1
  return path


class Workdir:
  """Locks a folder for this process until `close`, or the process's end.

  Attributes:
    path: the path of the folder.
    began: the content of its config.json, None if no run has started in it.
  """

  def __init__(self, path: pathlib.Path, *, key: str = 'workdir'):
    """Locks a folder that exists; `begin` creates one that does not.

    Args:
      path: the path of the folder.
      key: the name of the path in messages.

    Raises:
      InputError: the folder does not belong to a run, is in use by another
        process, or cannot be written.
    """
    self.path = path
    self._named = f'{key} = {path}'
    self.began: dict[str, Any] | None = None
    self._lock: filelock.BaseFileLock | None = None
    self._held: HeldFile | None = None
    self._began_lock = False  # Whether this object created the lock file.
    self._lines: BinaryIO | None = None
    # The length and SHA-256 of the valid lines of metrics.jsonl.
    self._bytes, self._sha = 0, hashlib.sha256()
    try:
      str(path).encode()  # Orbax needs this.
    except UnicodeEncodeError:
      raise InputError(
        f'{key} = {str(path)!a}: must be a name in UTF-8'
      ) from None
    try:  # An invalid path is reported before anything is compiled.
      os.lstat(path)
    except FileNotFoundError:
      return
    except (OSError, ValueError) as error:
      raise self._unusable(error, 'created') from error
    self._take()

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, *raised: object) -> None:
    self.close()

  def _take(self) -> None:
    if not self.path.is_dir():
      raise InputError(f'{self._named}: is not a directory')
    self._began_lock = _LOCK not in self._names()
    lock = filelock.FileLock(self.path.resolve() / _LOCK, timeout=0)
    try:
      lock.acquire()
    except filelock.Timeout:
      raise InputError(f'{self._named}: is in use by another process') from None
    except OSError as error:
      raise self._unusable(error, 'written') from error
    self._lock = lock
    self._held = HeldFile(self.path.resolve() / _LOCK, self._named)
    if _CONFIG in self._names():  # Another process may have written it.
      try:
        self.began = _read_json(self.path / _CONFIG)
        check_format(self.path / _CONFIG, self.began)
      except InputError:
        self.close()
        raise

  def _names(self) -> set[str]:
    """Returns the names in the folder if it is empty or belongs to a run."""
    try:
      names = {path.name for path in self.path.iterdir()}
    except OSError as error:
      raise self._unusable(error, 'read') from error
    # A run killed at its start leaves its lock, or a part of its first file.
    if _CONFIG not in names and names - {_LOCK, part_name(_CONFIG)}:
      raise InputError(
        f'{self._named}: exists already, and is not the folder of a run;'
        ' choose a new path; existing files are never overwritten'
      )
    return names

  def begin(self, *, room: int) -> None:
    """Creates the folder if it does not exist.

    Args:
      room: the bytes that must be free on the disk.

    Raises:
      InputError: the folder cannot be created, or the disk has too little room.
    """
    try:
      here = next(
        path for path in (self.path, *self.path.parents) if path.exists()
      )
      free = shutil.disk_usage(here).free
    except OSError as error:
      raise self._unusable(error, 'created') from error
    if free < room:
      raise InputError(
        f'{self._named}: {free / 2**20:.1f} MiB are free, a run needs'
        f' {room / 2**20:.1f} MiB'
      )
    if self._lock is not None:
      return
    try:
      self.path.mkdir(parents=True)
    except FileExistsError:
      raise InputError(
        f'{self._named}: was created by another process'
      ) from None
    except OSError as error:
      raise self._unusable(error, 'created') from error
    self._take()

  def check_held(self) -> None:
    """Raises InputError if the folder was deleted or replaced."""
    if self._held is not None:
      self._held.check()

  def check_metrics(self, seal: dict[str, Any]) -> None:
    """Checks that metrics.jsonl begins with the lines of a checkpoint.

    Args:
      seal: the output of `seal` at the checkpoint.

    Raises:
      InputError: the lines have changed, or are missing.
    """
    path = self.path / _METRICS
    content = b''
    with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
      content = file.read(seal['bytes'])
    self._bytes, self._sha = len(content), hashlib.sha256(content)
    if self.seal() != seal:
      raise InputError(
        f'{path}: does not begin with the {seal["bytes"]} bytes of the last'
        ' checkpoint; restore them, or choose a new workdir'
      )

  def open_metrics(self) -> None:
    """Opens metrics.jsonl after its valid lines, and cuts off later ones."""
    self.check_held()
    path = self.path / _METRICS
    self._lines = open(path, 'r+b' if path.exists() else 'xb')
    self._lines.seek(self._bytes)
    self._lines.truncate()

  def line(self, record: dict[str, Any]) -> None:
    """Appends a line to metrics.jsonl, and flushes it."""
    assert self._lines is not None
    self.check_held()
    line = (_dumps(record) + '\n').encode()
    self._lines.write(line)
    self._lines.flush()
    self._bytes += len(line)
    self._sha.update(line)

  def seal(self) -> dict[str, Any]:
    """Returns the length and SHA-256 of metrics.jsonl, for a checkpoint."""
    return {'bytes': self._bytes, 'sha256': self._sha.hexdigest()}

  def sync(self) -> None:
    """Syncs metrics.jsonl to disk, so that a failing machine cannot lose it."""
    assert self._lines is not None
    self.check_held()
    os.fsync(self._lines.fileno())

  def lines(self) -> list[dict[str, Any]]:
    """Reads all complete lines of metrics.jsonl, once it is open.

    A full disk may have left a part of a line after them.
    """
    content = (self.path / _METRICS).read_bytes()[: self._bytes]
    return [json.loads(line) for line in content.decode().splitlines()]

  def config(self, content: dict[str, Any]) -> None:
    """Writes config.json, which makes the folder that of a run."""
    content = content | {'format': FORMAT}
    self._json(_CONFIG, content)
    self.began = content

  def has_saved(self) -> bool:
    """Returns whether the run has saved a checkpoint."""
    return bool(self.began and self.began.get(_SAVED))

  def mark_saved(self) -> None:
    """Records in config.json that the run has saved a checkpoint."""
    assert self.began is not None
    if not self.has_saved():
      self.config(self.began | {_SAVED: True})

  def summary(self, content: dict[str, Any]) -> None:
    """Writes summary.json."""
    self._json(_SUMMARY, content)

  def last_summary(self) -> dict[str, Any]:
    """Returns the content of summary.json; {} if it is damaged or missing."""
    with contextlib.suppress(InputError):
      return _read_json(self.path / _SUMMARY)
    return {}

  def _json(self, name: str, content: dict[str, Any]) -> None:
    with self.replacing(name) as part:
      with open(part, 'w', encoding='utf-8') as file:
        file.write(_dumps(content, indent=2) + '\n')
        file.flush()
        os.fsync(file.fileno())

  @contextlib.contextmanager
  def replacing(self, name: str) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which is renamed once it is complete."""
    self.check_held()
    with atomic_write(self.path / name) as part:
      yield part

  def close(self) -> None:
    """Closes metrics.jsonl and unlocks the folder."""
    if self._lines is not None:
      with contextlib.suppress(OSError):  # Every line was flushed.
        self._lines.close()
    if self._lock is not None:
      if self.began is None and self._began_lock:
        with contextlib.suppress(InputError):  # Keep that of a new folder.
          self.check_held()
          (self.path / _LOCK).unlink(missing_ok=True)
      self._lock.release()
    if self._held is not None:
      self._held.close()

  def _unusable(self, error: Exception, done: str) -> InputError:
    reason = getattr(error, 'strerror', None) or error
    return InputError(f'{self._named}: cannot be {done} ({reason})')


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
    raise InputError(
      f'{path}: cannot be read ({reason}); restore it, or choose a new workdir'
    ) from error
  if not isinstance(content, dict):
    raise InputError(f'{path}: must be a JSON object')
  return content


def _dumps(content, indent=None) -> str:
  """Returns JSON with null for NaN and infinity, which JSON does not have."""

  def plain(value):
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
      return [plain(v) for v in value]
    if hasattr(value, '__array__'):  # An array of NumPy or JAX.
      return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
      return None
    return value

  return json.dumps(plain(content), indent=indent, allow_nan=False)
