"""Stores what XLA has compiled, in sealed files that JAX reads and writes.

JAX takes its cache's folder from `etils.epath`, which lets a package define
what a path does. The paths here do what JAX's files do not:

* A file begins with the SHA-256 of its content. A damaged one is deleted and
  compiled again; it is never executed.
* It is written under another name and renamed, so that no process reads half
  of it, and a full disk is one warning.
* Lines that XLA prints about every program it reads, and that are wrong, are
  not shown (`_Quiet`).
"""

import contextlib
import hashlib
import os
import pathlib
import re
import sys
import tempfile
import threading
from typing import Any

from absl import logging
from etils import epath
import jax
from jax import monitoring

_SCHEME = 'fedavg-jax-compiled://'
_DIGEST = hashlib.sha256().digest_size
_PART = '.part'
# XLA marks code for processors with AVX-512 with two preferences of LLVM's
# optimizer, and then expects to find them among the processor's instructions.
_WRONG_LINE = re.compile(
  rb'^.*cpu_aot_loader\.cc:\d+\] Loading XLA:CPU AOT result\. Target machine'
  rb' feature \+prefer-no-(?:gather|scatter) is not +supported on the host'
  rb' machine\..*\n?',
  re.MULTILINE,
)
_COMPILED = '/jax/core/compile/backend_compile_duration'


def use(folder: pathlib.Path) -> None:
  """Makes JAX read and write compiled programs in a folder, as sealed files.

  Args:
    folder: an existing folder that only this user may write to.
  """
  monitoring.register_event_duration_secs_listener(_after_compiling)
  # The other caches of XLA would need a plain folder.
  jax.config.update('jax_persistent_cache_enable_xla_caches', '')
  jax.config.update('jax_compilation_cache_dir', f'{_SCHEME}{folder}')


def _after_compiling(event: str, duration_secs: float, **_: Any) -> None:
  """Ends the silence of `_Quiet` once a program is read or compiled."""
  del duration_secs
  if event == _COMPILED:
    _quiet.end()


def check_writable(folder: pathlib.Path) -> None:
  """Raises OSError if no file can be written to a folder."""
  with tempfile.NamedTemporaryFile(dir=folder, suffix=_PART):
    pass


def delete_oldest(folder: pathlib.Path, most_bytes: int) -> None:
  """Deletes the files that were not used for the longest time.

  Args:
    folder: the folder of the files.
    most_bytes: the most bytes that remain.
  """
  used = []
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # Another process may delete it.
      used.append((path.stat().st_mtime_ns, path.stat().st_size, path))
  total = 0
  for _, size, path in sorted(used, reverse=True):
    total += size
    if total > most_bytes:
      path.unlink(missing_ok=True)


def _plain(part: Any) -> Any:
  return part.removeprefix(_SCHEME) if isinstance(part, str) else part


@epath.register_path_cls(_SCHEME)
class SealedPath(type(pathlib.Path())):
  """Is the path of the folder, or of a sealed file in it."""

  def __new__(cls, *parts: Any) -> 'SealedPath':
    return super().__new__(cls, *map(_plain, parts))

  if sys.version_info >= (3, 12):  # Before, `__new__` takes the parts.

    def __init__(self, *parts: Any):
      super().__init__(*map(_plain, parts))

  def exists(self) -> bool:
    """Reads the file; returns whether it is intact. Deletes a damaged one."""
    try:
      sealed = super().read_bytes()
    except OSError:  # It does not exist, or cannot be read.
      return False
    digest, content = sealed[:_DIGEST], sealed[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
      logging.log_first_n(
        logging.WARNING,
        'the compilation cache has damaged files, the first is %s: what they'
        ' had is compiled again',
        1,
        self,
      )
      with contextlib.suppress(OSError):
        self.unlink()
      return False
    with contextlib.suppress(OSError):
      os.utime(self)  # It is used; see `delete_oldest`.
    self.content = content
    return True

  def read_bytes(self) -> bytes:
    """Returns the content that `exists` has checked."""
    if jax.default_backend() == 'cpu':
      _quiet.begin()  # JAX gives it to XLA next.
    return self.content

  def write_bytes(self, data: Any) -> int:
    """Writes the file, sealed; if that fails, logs a warning."""
    try:
      with tempfile.NamedTemporaryFile(
        dir=self.parent, suffix=_PART, delete=False
      ) as part:
        try:
          part.write(hashlib.sha256(data).digest() + data)
          part.close()
          os.replace(part.name, self)
        except BaseException:
          os.unlink(part.name)
          raise
    except OSError as error:
      logging.log_first_n(
        logging.WARNING,
        'the compilation cache %s cannot be written (%s)',
        1,
        self.parent,
        error.strerror,
      )
    return len(data)


class _Quiet(threading.local):
  """Drops XLA's wrong lines from standard error while it reads a program.

  XLA writes to the file descriptor. Everything written meanwhile goes to a
  temporary file, and from there, but for the wrong lines, to where it belongs.
  """

  reads = False  # Of this thread.

  def begin(self) -> None:
    """Starts to hold back what is written to standard error."""
    if not self.reads:
      self.reads = True
      _hold_stderr()

  def end(self) -> None:
    """Writes what was held back, without the wrong lines."""
    if self.reads:
      self.reads = False
      _release_stderr()


_quiet = _Quiet()
_lock = threading.Lock()
_held: list[tuple[int, Any]] = []
_readers = 0


def _hold_stderr() -> None:
  """Redirects standard error to a temporary file, for the first reader."""
  global _readers
  with _lock:
    _readers += 1
    if _held:
      return
    with contextlib.suppress(OSError):  # It may be closed.
      # A process that is started meanwhile inherits neither of the two, only
      # descriptor 2.
      written = tempfile.TemporaryFile()
      stderr = os.dup(2)
      os.dup2(written.fileno(), 2)
      _held.append((stderr, written))


def _restore_in_child() -> None:
  """Restores standard error in a forked process, where no reader continues."""
  global _lock, _readers
  _lock, _readers = threading.Lock(), 0
  _quiet.reads = False
  while _held:
    stderr, written = _held.pop()
    os.dup2(stderr, 2)
    os.close(stderr)
    written.close()  # The parent shows what it has.


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_restore_in_child)


def _release_stderr() -> None:
  """Restores standard error after the last reader; writes what was held."""
  global _readers
  with _lock:
    _readers -= 1
    if _readers or not _held:
      return
    stderr, written = _held.pop()
    os.dup2(stderr, 2)
    os.close(stderr)
    with written, contextlib.suppress(OSError):
      written.seek(0)
      if text := _WRONG_LINE.sub(b'', written.read()):
        os.write(2, text)
