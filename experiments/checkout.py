"""Provides trees of this repository: the working tree, and other commits.

Other commits are checked out into temporary folders. Commands of a tree run
with this interpreter, in the tree's folder, and import its package, not the
installed one.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

from fedavg_jax.core.errors import InputError

REPOSITORY = pathlib.Path(__file__).parents[1]


class Tree(NamedTuple):
  """Describes the files of a commit, or of the working tree.

  Attributes:
    name: the name in messages; for a commit its short hash.
    folder: the folder of the files.
    commit: the full hash, '' for the working tree.
  """

  name: str
  folder: pathlib.Path
  commit: str = ''

  def environment(self) -> dict[str, str]:
    """Returns the environment of a process that imports this tree."""
    return os.environ | {'PYTHONPATH': str(self.folder)}

  def first_module(self, *names: str) -> str:
    """Returns the first of the named modules that this tree has.

    Raises:
      InputError: the tree has none of them.
    """
    for name in names:
      if self.folder.joinpath(*name.split('.')).with_suffix('.py').exists():
        return name
    raise InputError(f'{self.name}: has no module {" or ".join(names)}')


def here() -> Tree:
  """Returns the working tree, which this file belongs to."""
  return Tree('the working tree', REPOSITORY)


@contextlib.contextmanager
def checked_out(
  commit: str, repository: pathlib.Path = REPOSITORY
) -> Iterator[Tree]:
  """Checks a commit out into a temporary folder, which is always removed.

  The clone itself is only read: no branch and no worktree is made in it.

  Args:
    commit: a hash, a branch, a tag, or a revision such as HEAD~1.
    repository: a clone that has the commit.

  Yields:
    The tree of the commit.

  Raises:
    InputError: the commit does not exist, or the folder is not a clone.
  """
  name, sha = _resolve(commit, repository)
  with (
    _signals_unwind(),
    tempfile.TemporaryDirectory(prefix=f'fedavg_jax-{name}-') as temporary,
  ):
    archive = pathlib.Path(temporary).resolve() / 'tree.tar'
    _git(repository, 'archive', f'--output={archive}', sha)
    shutil.unpack_archive(archive, archive.with_suffix(''), filter='data')
    archive.unlink()
    yield Tree(name, archive.with_suffix(''), sha)


def _resolve(commit: str, repository: pathlib.Path) -> tuple[str, str]:
  """Returns the short and the full hash of a commit."""
  try:
    top = pathlib.Path(_git(repository, 'rev-parse', '--show-toplevel'))
  except subprocess.CalledProcessError as error:
    message = (error.stderr.strip().splitlines() or ['no message'])[0]
    raise InputError(f'{repository}: is not a git clone ({message})') from None
  except OSError as error:
    raise InputError(f'git cannot be run: {error.strerror}') from None
  if top.resolve() != repository.resolve():  # A copy inside another clone.
    raise InputError(f'{repository}: is not a git clone, but part of {top}')
  verify = ('rev-parse', '--verify', '--quiet')
  try:
    sha = _git(repository, *verify, '--end-of-options', f'{commit}^{{commit}}')
  except (subprocess.CalledProcessError, ValueError):  # A null byte.
    raise InputError(f'{commit!r}: is not a commit of {repository}') from None
  return _git(repository, *verify, '--short', sha), sha


def _git(repository: pathlib.Path, *arguments: str) -> str:
  """Returns the output of a git command."""
  process = subprocess.run(
    ['git', '-C', str(repository), *arguments],
    capture_output=True,
    text=True,
    check=True,
  )
  return process.stdout.strip()


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
  """Makes SIGTERM and SIGHUP raise, so that context managers clean up."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def leave(signum: int, frame: object) -> None:
    del frame
    sys.exit(128 + signum)

  before = {
    signum: signal.signal(signum, leave)
    for signum in (signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(signum) != signal.SIG_IGN  # nohup ignores SIGHUP.
  }
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
