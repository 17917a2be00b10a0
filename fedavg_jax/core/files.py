"""Files that are never half written, and files that cannot be read now."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib

from fedavg_jax.core.errors import InputError

# A disk, a network or a limit of the system: the file itself may be good.
_MACHINE = frozenset(
  (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EAGAIN, errno.EINTR),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ECONNRESET),
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH),
  )
)


def is_of_machine(error: BaseException) -> bool:
  """Tells whether another attempt may succeed with the same files.

  Such an error is nobody's input: it ends with exit code 1, and what was done
  before it stays.
  """
  return isinstance(error, OSError) and error.errno in _MACHINE


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which gets its name once it is complete."""
  part = path.with_name(part_name(path.name))
  try:
    yield part
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write_new(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write a new file to, which replaces no existing one.

  Raises:
    InputError: another process has made such a file meanwhile; it stays.
  """
  part = path.with_name(part_name(f'{os.getpid()}{path.suffix}'))
  try:
    yield part
    try:
      os.link(part, path)
    except FileExistsError:
      raise
    except OSError:  # A file system without links: a name is taken first.
      path.open('xb').close()
      os.replace(part, path)
  except FileExistsError:
    raise InputError(
      f'{path}: another process has made it meanwhile; choose a new file,'
      ' existing ones are never overwritten'
    ) from None
  finally:
    part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that gets its name once it is complete."""
  with atomic_write(path) as part:
    part.write_text(text, encoding='utf-8', errors='backslashreplace')


def part_name(name: str) -> str:
  """Returns the name of a file while it is written, with its ending."""
  return f'.part.{name}'
