"""Trees of this repository: this one, and other commits in temporary folders.

Commands of a tree run with this interpreter, in the tree's folder, and import
its package, not the installed one.
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
  """Files of a commit, or of no commit yet.

  Attributes:
    name: for people; of a commit its short hash.
    folder: where they lie.
    commit: the whole hash, '' where there is none.
  """

  name: str
  folder: pathlib.Path
  commit: str = ''

  def environment(self) -> dict[str, str]:
    """Returns what a process needs in order to import this tree."""
    return os.environ | {'PYTHONPATH': str(self.folder)}

  def first_module(self, *names: str) -> str:
    """Finds the first of some modules that this tree has.

    Raises:
      InputError: it has none of them.
    """
    for name in names:
      if self.folder.joinpath(*name.split('.')).with_suffix('.py').exists():
        return name
    raise InputError(f'{self.name}: has no module {" or ".join(names)}')


def here() -> Tree:
  """Returns the tree that this file belongs to, as it is now."""
  return Tree('the working tree', REPOSITORY)


@contextlib.contextmanager
def checked_out(
  commit: str, repository: pathlib.Path = REPOSITORY
) -> Iterator[Tree]:
  """Lays a commit into a temporary folder, which is removed however it ends.

  The clone itself is only read: no branch, no worktree is made in it.

  Args:
    commit: a hash, a branch, a tag, HEAD~1.
    repository: the clone that has it.

  Yields:
    Its tree.

  Raises:
    InputError: there is no such commit, or no clone.
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
  """Returns the short and the whole hash of a commit."""
  try:
    top = pathlib.Path(_git(repository, 'rev-parse', '--show-toplevel'))
  except subprocess.CalledProcessError as error:
    said = (error.stderr.strip().splitlines() or ['says nothing'])[0]
    raise InputError(f'{repository}: is no git clone ({said})') from None
  except OSError as error:
    raise InputError(f'git cannot be run: {error.strerror}') from None
  if top.resolve() != repository.resolve():  # A copy inside another clone.
    raise InputError(f'{repository}: is no git clone, but part of {top}')
  verify = ('rev-parse', '--verify', '--quiet')
  try:
    sha = _git(repository, *verify, '--end-of-options', f'{commit}^{{commit}}')
  except (subprocess.CalledProcessError, ValueError):  # A null byte.
    raise InputError(f'{commit!r}: is no commit of {repository}') from None
  return _git(repository, *verify, '--short', sha), sha


def _git(repository: pathlib.Path, *arguments: str) -> str:
  """Runs git, returns what it prints."""
  process = subprocess.run(
    ['git', '-C', str(repository), *arguments],
    capture_output=True,
    text=True,
    check=True,
  )
  return process.stdout.strip()


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
  """Lets SIGTERM and SIGHUP leave blocks as Ctrl-C does."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def leave(signum: int, frame: object) -> None:
    del frame
    sys.exit(128 + signum)

  before = {
    signum: signal.signal(signum, leave)
    for signum in (signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(signum) != signal.SIG_IGN  # As nohup leaves it.
  }
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
