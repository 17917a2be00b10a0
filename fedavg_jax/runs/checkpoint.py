"""Saves and restores checkpoints: all that a run needs to resume, by orbax.

Each is a folder, `checkpoints/ROUND`, which orbax writes under another name and
renames. It has the leaves of a pytree under their numbers, and JSON metadata
with the SHA-256 of everything: a checkpoint whose bits differ from those that
were written is not used. Nothing is ever unpickled.
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

from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError

FOLDER = 'checkpoints'
# Key in a tree: {'params', 'state'} of a model better than the last one.
BEST = 'best'
_SCORE, _SAVED_AS = 'score', 'saved_as'
_SCORE_BEFORE = 'test_accuracy'  # _SCORE in earlier versions.
_METADATA = 'told'  # The name on disk; another would make old runs unreadable.
# Errors of a file that cannot be read now, which does not mean damage.
_UNREADABLE = frozenset(
  (
    *(errno.EACCES, errno.EPERM, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT, errno.EAGAIN),
  )
)
# The most bytes that names, shapes and JSON of a checkpoint need.
_METADATA_BYTES = 2**17
_NUMBER = re.compile(r'0|[1-9]\d{0,9}')
# Parts of the names of folders being written, and being deleted.
_ORBAX_PART, _DELETED = '.orbax-checkpoint-tmp', '.deleted'


class Checkpoint(NamedTuple):
  """Holds what was saved after a round.

  Attributes:
    leaves: the nonempty leaves of the tree, in the order of `jax.tree.leaves`.
    metadata: the JSON that was saved with them.
  """

  leaves: list[np.ndarray]
  metadata: dict[str, Any]


class Checkpoints:
  """Manages the checkpoints of one run: the latest few, and the best one."""

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    """Opens the checkpoints of a run, none if it has just started.

    Args:
      workdir: the folder of the run.
      keep: the number of latest checkpoints to keep, in addition to the best.
    """
    self._folder = workdir.resolve() / FOLDER
    self._keep = keep
    self._checkpointer = _checkpointer()
    self._clear()  # A killed process may have left parts.

  def save(
    self, number: int, tree: Any, metadata: dict[str, Any], score: float | None
  ) -> None:
    """Writes a checkpoint, then deletes those that need not be kept.

    Args:
      number: the round.
      tree: a pytree of arrays; `load_params` loads the model under 'params'.
      metadata: JSON to save with it.
      score: the result of the model's test, larger is better, or None.

    Raises:
      OSError: it cannot be written, for example because the disk is full.
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
          # Orbax times out when the system clock is set forward.
          self._clear()
          self._checkpointer.save(path, args=args, force=True)
    except (OSError, ValueError) as error:  # Orbax's storage raises ValueError.
      with contextlib.suppress(OSError):
        self._clear()  # Free the space for others.
      raise OSError(
        errno.EIO,
        f'checkpoint {number} cannot be written ({_reason(error)})',
        str(self._folder),
      ) from error
    numbers = _numbers(self._folder)
    for old in set(numbers[self._keep :]) - {_best(self._folder)}:
      # Renamed first: a number never names half of a checkpoint.
      deleted = self._folder / f'{old}{_DELETED}'
      (self._folder / str(old)).rename(deleted)
      shutil.rmtree(deleted)

  def newest(self) -> Checkpoint | None:
    """Reads the newest intact checkpoint; returns None where there is none.

    Damaged ones are logged as warnings and renamed to ROUND.damaged.

    Raises:
      InputError: all checkpoints are damaged.
      OSError: one cannot be read now, which does not mean that it is damaged.
    """
    intact, damaged = None, {}  # Number -> reason.
    for number in _numbers(self._folder):
      try:
        with _one_error():
          intact = _read(self._checkpointer, self._folder / str(number))
        break
      except MemoryError:
        raise
      # A damaged file can make orbax, its storage or JSON raise anything.
      except Exception as error:
        _check_readable(self._folder / str(number), error)
        damaged[number] = _reason(error)
    if damaged and not intact:
      raise InputError(
        f'{self._folder}: the checkpoints {list(damaged)} are all damaged'
        f' ({damaged[max(damaged)]}); restore one from a backup, or choose a'
        ' new workdir'
      )
    for number, reason in damaged.items():
      path = self._folder / str(number)
      logging.warning('%s: damaged, using the previous one (%s)', path, reason)
      _put_aside(path)
    return intact

  def _clear(self) -> None:
    """Removes folders that are half written or half deleted."""
    for path in _folders(self._folder):
      if _ORBAX_PART in path.name or path.name.endswith(_DELETED):
        shutil.rmtree(path)

  def close(self) -> None:
    """Ends the threads of orbax."""
    self._checkpointer.close()


def restore(saved: Checkpoint, like: Any) -> Any:
  """Restores the tree of a checkpoint, with NumPy arrays as leaves.

  Args:
    saved: the checkpoint.
    like: a pytree with the structure, shapes and dtypes of the saved one.

  Raises:
    InputError: the checkpoint has other leaves; names the first that differs.
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
        f'{FOLDER}: expected {here} for the model and the algorithm of this'
        f' run, got {there}; choose a new workdir'
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
  """Loads the model parameters of a run from its checkpoints.

  Args:
    workdir: the folder of the run.
    best: whether to load the best model instead of the last one: that with the
      best test, by the first metric, among the checkpoints that are kept.

  Returns:
    Nested dictionaries of arrays as of `Model.init`, without a model's state.

  Raises:
    FileNotFoundError: no checkpoint, or with `best` none of a tested model.
    InputError: the checkpoint is damaged.
    OSError: it cannot be read now, which does not mean that it is damaged.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as workdir:  # Instead of a run.
  ...   checkpoints = Checkpoints(pathlib.Path(workdir), keep=1)
  ...   tree = {'params': {'dense': {'kernel': np.zeros((3, 2))}}}
  ...   checkpoints.save(1, tree, metadata={}, score=None)
  ...   checkpoints.close()
  ...   fa.load_params(workdir)['dense']['kernel'].shape
  (3, 2)
  """
  return load_tree(workdir, best=best)['params']


def load_tree(workdir: str | pathlib.Path, *, best: bool) -> dict[str, Any]:
  """Loads a checkpoint by `load_params`, 'model_state' and others included."""
  folder = pathlib.Path(workdir).resolve() / FOLDER
  newest = next(iter(_numbers(folder)), None)
  scored = _best(folder) if best else None
  number = newest if scored is None else scored
  if number is None:
    raise FileNotFoundError(f'{folder}: contains no checkpoint of a run')
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
  tree = trees.nested(metadata['paths'], leaves)
  if best and scored is None:
    tree = tree.get(BEST, {})
    if not tree:
      raise FileNotFoundError(
        f'{folder}: contains no best model; `run` saves it with keep_best=True'
      )
  return tree


def digest(arrays: Sequence[np.ndarray]) -> str:
  """Returns the SHA-256 of the dtypes, shapes and values of arrays, in hex."""
  sha = hashlib.sha256()
  for array in arrays:
    array = np.asarray(array)
    sha.update(f'{array.dtype} {array.shape} '.encode())
    values: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sha.update(values)
  return sha.hexdigest()


def bytes_needed(tree: Any, number: int) -> int:
  """Returns the bytes of `number` checkpoints of a tree, and of small files."""
  one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  return number * one + 2**20


def _check_room(folder: pathlib.Path, num_bytes: int) -> None:
  """Raises OSError where a disk has no space for a checkpoint."""
  if shutil.disk_usage(folder).free < num_bytes + _METADATA_BYTES:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
  """Stops orbax's threads from printing the errors that its call raises."""
  verbosity, hook = logging.get_verbosity(), sys.excepthook
  try:
    logging.set_verbosity(logging.FATAL)
    # Storage prints the errors of its threads through this hook.
    sys.excepthook = lambda *raised: None
    yield
    sys.excepthook = hook
  except BaseException:
    _ignore_closed_loops(hook, sys.unraisablehook)
    raise
  finally:
    logging.set_verbosity(verbosity)


def _ignore_closed_loops(hook: Any, unraisable_hook: Any) -> None:
  """Silences the threads of storage that end after their call has failed.

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
  """Returns an orbax checkpointer that waits for no other process."""
  import orbax.checkpoint as ocp  # Slow; the package is imported without it.

  # Only process 0 writes the folder.
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
  """Lists the folders in a folder; none where it does not exist."""
  if not folder.exists():
    return []
  return [path for path in folder.iterdir() if path.is_dir()]


def _numbers(folder: pathlib.Path) -> list[int]:
  """Lists the rounds of the checkpoints, the newest first."""
  names = (path.name for path in _folders(folder))
  return sorted(map(int, filter(_NUMBER.fullmatch, names)), reverse=True)


def _best(folder: pathlib.Path) -> int | None:
  """Returns the checkpoint of the best test, the newest of equal ones."""
  best, best_score = None, -math.inf
  for number in _numbers(folder):
    # A damaged one does not count.
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
    raise ValueError('checksum mismatch')
  return Checkpoint(leaves, metadata)


def _check_readable(path: pathlib.Path, error: Exception) -> None:
  """Raises OSError where a checkpoint cannot be read now, damaged or not.

  Args:
    path: the folder of the checkpoint.
    error: the error that reading it has raised.
  """
  for reason in _UNREADABLE:  # Storage has its own types, but the text.
    if os.strerror(reason) in str(error):
      raise OSError(reason, os.strerror(reason), str(path)) from error
  for file in sorted(path.rglob('*')):
    try:
      if file.is_file():
        with open(file, 'rb') as content:
          content.read(1)
    except OSError as unreadable:
      if unreadable.errno in _UNREADABLE:
        raise unreadable from error


def _seal(leaves: Sequence[np.ndarray], metadata: dict[str, Any]) -> str:
  """Returns the SHA-256 of a checkpoint's content, itself excluded."""
  rest = {key: value for key, value in metadata.items() if key != 'sha256'}
  text = json.dumps(rest, sort_keys=True).encode()
  return digest([*leaves, np.frombuffer(text, np.uint8)])


def _leaves(tree) -> list[np.ndarray]:
  """Returns the leaves on the host, without empty ones, which orbax rejects."""
  leaves = jax.device_get(jax.tree.leaves(tree))
  return [np.asarray(leaf) for leaf in leaves if np.size(leaf)]


def _paths(tree) -> list[list[str]]:
  """Returns the keys that lead to each of `_leaves`."""
  return [
    [jax.tree_util.keystr((key,), simple=True) for key in path]
    for path, leaf in jax.tree.leaves_with_path(tree)
    if np.size(leaf)
  ]


def _put_aside(path: pathlib.Path) -> None:
  """Renames a damaged checkpoint to a free name."""
  aside, i = path.with_name(f'{path.name}.damaged'), 2
  while aside.exists():
    aside, i = path.with_name(f'{path.name}.damaged{i}'), i + 1
  path.rename(aside)


def _reason(error: Exception) -> str:
  """Returns the first line of an error, at most 200 characters."""
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
