"""Checkpoints: all that a run needs to resume, through orbax.

Each is a folder, `checkpoints/ROUND`, which orbax writes under another name and
renames. In it lie the leaves of a tree under their numbers, and JSON with what
else must be known and the SHA-256 of all of it: what is read is what was
written, bit for bit, or it is not used. Nothing is ever unpickled.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import sys
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from fedavg_jax.core.errors import InputError

FOLDER = 'checkpoints'
# In a tree: {'params', 'state'} of a model that was better than the last one.
BEST = 'best'
_SCORE, _SAVED_AS = 'score', 'saved_as'
_SCORE_BEFORE = 'test_accuracy'  # Its name in folders of earlier versions.
_METADATA = 'told'  # Its name on disk, since the first version.
# Of a file that cannot be read now: whether it is damaged nobody knows.
_UNREADABLE = frozenset(
  (
    *(errno.EACCES, errno.EPERM, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT, errno.EAGAIN),
  )
)
# Bytes of the names, shapes and JSON of a checkpoint, at most.
_BESIDE_ARRAYS = 2**17
_NUMBER = re.compile(r'0|[1-9]\d{0,9}')
# In the names of what is being written, and of what is being deleted.
_ORBAX_PART, _DELETED = '.orbax-checkpoint-tmp', '.deleted'


class Checkpoint(NamedTuple):
  """What was saved after a round.

  Attributes:
    leaves: of the tree, in the order of `jax.tree.leaves`; empty ones left out.
    metadata: what was saved with it, as JSON gives it back.
  """

  leaves: list[np.ndarray]
  metadata: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run: the last few, and that of the best test."""

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    """Opens the checkpoints of a run, none if it has just begun.

    Args:
      workdir: of the run.
      keep: how many of the last ones.
    """
    self._folder = workdir.resolve() / FOLDER
    self._keep = keep
    self._checkpointer = _checkpointer()
    self._clear()  # A kill may have left something.

  def save(
    self, number: int, tree: Any, metadata: dict[str, Any], score: float | None
  ) -> None:
    """Writes a checkpoint, then deletes those that need not be kept.

    Args:
      number: of the round.
      tree: of arrays; a model under 'params' can be loaded by itself.
      metadata: JSON, saved with it.
      score: of the model's test, larger is better; None where there was none.

    Raises:
      OSError: it cannot be written, for want of space for example.
    """
    import orbax.checkpoint as ocp

    leaves = _leaves(tree)
    metadata = metadata | {
      _SCORE: score,
      'paths': _paths(tree),
      _SAVED_AS: number,
    }
    metadata['sha256'] = _seal(leaves, metadata)
    path = self._folder / str(number)
    args = ocp.args.Composite(
      leaves=ocp.args.StandardSave(
        {f'{i:06}': leaf for i, leaf in enumerate(leaves)}
      ),
      **{_METADATA: ocp.args.JsonSave(metadata)},
    )
    try:
      self._folder.mkdir(exist_ok=True)
      _check_room(self._folder, sum(leaf.nbytes for leaf in leaves))
      with _one_error():
        try:
          self._checkpointer.save(path, args=args)
        except TimeoutError:
          # Orbax takes a clock that is set forward for minutes of waiting.
          self._clear()
          self._checkpointer.save(path, args=args, force=True)
    except (OSError, ValueError) as error:  # Its storage raises ValueError.
      with contextlib.suppress(OSError):
        self._clear()  # Others may need the room.
      raise OSError(
        errno.EIO,
        f'checkpoint {number} cannot be written ({_reason(error)})',
        str(self._folder),
      ) from error
    numbers = _numbers(self._folder)
    for old in set(numbers[self._keep :]) - {_best(self._folder)}:
      # Under a name of its own: never half of a checkpoint.
      deleted = self._folder / f'{old}{_DELETED}'
      (self._folder / str(old)).rename(deleted)
      shutil.rmtree(deleted)

  def newest(self) -> Checkpoint | None:
    """Reads the newest intact checkpoint, None where there is none.

    Damaged ones are warned of, and put aside as ROUND.damaged.

    Raises:
      InputError: there are some, and all of them are damaged.
      OSError: one cannot be read now, which says nothing of what it holds.
    """
    intact, damaged = None, {}  # Number -> what is wrong.
    for number in _numbers(self._folder):
      try:
        with _one_error():
          intact = _read(self._checkpointer, self._folder / str(number))
        break
      except MemoryError:
        raise
      # Whatever a damaged file makes orbax, its storage or JSON raise.
      except Exception as error:
        _check_readable(self._folder / str(number), error)
        damaged[number] = _reason(error)
    if damaged and not intact:
      raise InputError(
        f'{self._folder}: the checkpoints {list(damaged)} are all damaged'
        f' ({damaged[max(damaged)]}); put one back from a copy, or name a new'
        ' workdir'
      )
    for number, reason in damaged.items():
      path = self._folder / str(number)
      logging.warning('%s: damaged, the one before is used (%s)', path, reason)
      _put_aside(path)
    return intact

  def _clear(self) -> None:
    """Removes what is half written or half deleted."""
    for path in _folders(self._folder):
      if _ORBAX_PART in path.name or path.name.endswith(_DELETED):
        shutil.rmtree(path)

  def close(self) -> None:
    """Ends what orbax does beside."""
    self._checkpointer.close()


def restore(saved: Checkpoint, like: Any) -> Any:
  """Puts the leaves of a checkpoint back into a tree.

  Args:
    saved: the checkpoint.
    like: the tree that was saved, or its shapes.

  Raises:
    InputError: it holds other leaves; names the first one that differs.
  """

  def described(paths, leaves):
    return [
      f'{".".join(path)} {leaf.dtype}{list(leaf.shape)}'
      for path, leaf in zip(paths, leaves, strict=True)
    ]

  flat, structure = jax.tree.flatten(like)
  wanted = described(_paths(like), [leaf for leaf in flat if leaf.size])
  found = described(saved.metadata['paths'], saved.leaves)
  for here, there in itertools.zip_longest(wanted, found, fillvalue='nothing'):
    if here != there:
      raise InputError(
        f'{FOLDER}: hold {there} where the model and the algorithm of this run'
        f' have {here}; choose a new workdir'
      )
  stored = iter(saved.leaves)
  return jax.tree.unflatten(
    structure,
    [
      next(stored) if leaf.size else np.zeros(leaf.shape, leaf.dtype)
      for leaf in flat
    ],
  )


def load_params(workdir: str | pathlib.Path, *, best: bool = False) -> Any:
  """Loads a model of a run.

  Args:
    workdir: the folder that the run printed.
    best: that of the best test, by the first metric, among the checkpoints
      that are kept; else the last one.

  Returns:
    A dict of dicts of NumPy arrays, for `Model.apply`.

  Raises:
    FileNotFoundError: no checkpoint is there, or none of them has a test.
    InputError: the checkpoint is damaged.
    OSError: it cannot be read now, which says nothing of what it holds.
  """
  folder = pathlib.Path(workdir).resolve() / FOLDER
  newest = next(iter(_numbers(folder)), None)
  scored = _best(folder) if best else None
  number = newest if scored is None else scored
  if number is None:
    raise FileNotFoundError(f'{folder}: no checkpoint of a run is here')
  checkpointer = _checkpointer()
  try:
    with _one_error():
      leaves, metadata = _read(checkpointer, folder / str(number))
  except MemoryError:
    raise
  except Exception as error:  # As in `Checkpoints.newest`.
    _check_readable(folder / str(number), error)
    raise InputError(
      f'{folder / str(number)}: is damaged ({_reason(error)})'
    ) from error
  finally:
    checkpointer.close()
  tree: dict[str, Any] = {}
  for path, leaf in zip(metadata['paths'], leaves, strict=True):
    *parents, name = path
    inner = tree
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[name] = leaf
  if best and scored is None:
    tree = tree.get(BEST, {})
    if not tree:
      raise FileNotFoundError(
        f'{folder}: no best model is here; `run` keeps it with keep_best=True'
      )
  return tree['params']


def digest(arrays: Sequence[np.ndarray]) -> str:
  """SHA-256 of arrays: of their dtypes, shapes and values, in hexadecimal."""
  sha = hashlib.sha256()
  for array in arrays:
    array = np.asarray(array)
    sha.update(f'{array.dtype} {array.shape} '.encode())
    values: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sha.update(values)
  return sha.hexdigest()


def bytes_needed(tree: Any, number: int) -> int:
  """Room for checkpoints of a tree, or of its shapes, and for small files."""
  one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  return number * one + 2**20


def _check_room(folder: pathlib.Path, num_bytes: int) -> None:
  """Raises OSError where a disk has no room for arrays and what is beside."""
  if shutil.disk_usage(folder).free < num_bytes + _BESIDE_ARRAYS:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
  """Keeps orbax's threads from printing what its call raises."""
  verbosity, hook = logging.get_verbosity(), sys.excepthook
  try:
    logging.set_verbosity(logging.FATAL)
    # By which storage prints what its own threads could not give to anybody.
    sys.excepthook = lambda *raised: None
    yield
    sys.excepthook = hook
  except BaseException:
    _ignore_closed_loops(hook, sys.unraisablehook)
    raise
  finally:
    logging.set_verbosity(verbosity)


def _ignore_closed_loops(hook: Any, unraisable_hook: Any) -> None:
  """Prints nothing of storage's threads that end after a call that failed.

  They report to an event loop that is closed by then.
  """

  def closed(error):
    return isinstance(error, RuntimeError) and 'loop is closed' in str(error)

  def excepthook(kind, error, traceback):
    if not closed(error):
      hook(kind, error, traceback)

  def unraisable(raised):
    if not closed(raised.exc_value):
      unraisable_hook(raised)

  sys.excepthook, sys.unraisablehook = excepthook, unraisable


def _checkpointer():
  import orbax.checkpoint as ocp  # Heavy; the package starts without it.

  # Of several processes the first one has the folder: it waits for nobody.
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}
  )
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    ),
    multiprocessing_options=alone,
  )


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders in a folder, none where it does not exist."""
  if not folder.exists():
    return []
  return [path for path in folder.iterdir() if path.is_dir()]


def _numbers(folder: pathlib.Path) -> list[int]:
  """Rounds of the checkpoints, the newest first."""
  names = (path.name for path in _folders(folder))
  return sorted(map(int, filter(_NUMBER.fullmatch, names)), reverse=True)


def _best(folder: pathlib.Path) -> int | None:
  """The newest of the best test; None where none was tested."""
  best, best_score = None, -math.inf
  for number in _numbers(folder):
    # A damaged one is nobody's best.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      path = folder / str(number) / _METADATA / 'metadata'
      found = json.loads(path.read_text())
      score = found[_SCORE] if _SCORE in found else found[_SCORE_BEFORE]
      if score > best_score:
        best, best_score = number, score
  return best


def _read(checkpointer, path: pathlib.Path) -> Checkpoint:
  """Reads a checkpoint; raises almost anything where it is damaged."""
  import orbax.checkpoint as ocp

  restored = checkpointer.restore(
    path,
    args=ocp.args.Composite(
      leaves=ocp.args.StandardRestore(), **{_METADATA: ocp.args.JsonRestore()}
    ),
  )
  leaves = [restored['leaves'][name] for name in sorted(restored['leaves'])]
  metadata = restored[_METADATA]
  if metadata.get(_SAVED_AS, number := int(path.name)) != number:
    raise ValueError(f'it was saved as {metadata[_SAVED_AS]}, not as {number}')
  if _seal(leaves, metadata) != metadata['sha256']:
    raise ValueError('its SHA-256 is another one')
  return Checkpoint(leaves, metadata)


def _check_readable(path: pathlib.Path, error: Exception) -> None:
  """Raises OSError where a checkpoint could not be read, damaged or not.

  Args:
    path: of the checkpoint.
    error: that reading it has raised.
  """
  for reason in _UNREADABLE:  # Storage raises its own types, with the text.
    if os.strerror(reason) in str(error):
      raise OSError(reason, os.strerror(reason), str(path)) from error
  for file in sorted(path.rglob('*')):
    try:
      if file.is_file():
        with open(file, 'rb') as own:
          own.read(1)
    except OSError as unreadable:
      if unreadable.errno in _UNREADABLE:
        raise unreadable from error


def _seal(leaves: Sequence[np.ndarray], metadata: dict[str, Any]) -> str:
  """SHA-256 of all that a checkpoint holds, but of itself."""
  rest = {key: value for key, value in metadata.items() if key != 'sha256'}
  text = json.dumps(rest, sort_keys=True).encode()
  return digest([*leaves, np.frombuffer(text, np.uint8)])


def _leaves(tree) -> list[np.ndarray]:
  """Arrays of the host; those of no elements left out, orbax takes none."""
  leaves = jax.device_get(jax.tree.leaves(tree))
  return [np.asarray(leaf) for leaf in leaves if np.size(leaf)]


def _paths(tree) -> list[list[str]]:
  """Where each of `_leaves` is."""
  return [
    [jax.tree_util.keystr((key,), simple=True) for key in path]
    for path, leaf in jax.tree.leaves_with_path(tree)
    if np.size(leaf)
  ]


def _put_aside(path: pathlib.Path) -> None:
  aside, i = path.with_name(f'{path.name}.damaged'), 2
  while aside.exists():
    aside, i = path.with_name(f'{path.name}.damaged{i}'), i + 1
  path.rename(aside)


def _reason(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
