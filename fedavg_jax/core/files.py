"""Writes files atomically and classifies errors of the machine."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib

from fedavg_jax.core.errors import InputError

# Errors of a disk, a network or a limit of the system; the file may be valid.
_MACHINE = frozenset(
  (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EAGAIN, errno.EINTR),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ECONNRESET),
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH),
  )
)


def is_of_machine(error: BaseException) -> bool:
  """Returns whether another attempt may succeed with the same files.

  Such an error is not an InputError: the command exits with code 1 and
  preserves its work up to then.
  """
  return isinstance(error, OSError) and error.errno in _MACHINE


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path; renames it to `path` after the block succeeds."""
  part = path.with_name(part_name(path.name))
  try:
    yield part
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write_new(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path; renames it to `path`, which must not exist.

  Raises:
    InputError: another process has created `path` meanwhile; its file stays.
  """
  part = path.with_name(part_name(f'{os.getpid()}{path.suffix}'))
  try:
    yield part
    try:
      os.link(part, path)
    except FileExistsError:
      raise
    except OSError:  # A file system without links: create the name first.
      path.open('xb').close()
      os.replace(part, path)
  except FileExistsError:
    raise InputError(
      f'{path}: was created by another process; choose a new path; existing'
      ' files are never overwritten'
    ) from None
  finally:
    part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file atomically, in UTF-8."""
  with atomic_write(path) as part:
    part.write_text(text, encoding='utf-8', errors='backslashreplace')


def part_name(name: str) -> str:
  """Returns the name of a file while it is written; the suffix stays."""
  return f'.part.{name}'
