"""Decides which code is the user's: neither Python's nor a package's."""

import functools
import hashlib
import pathlib
import sys
import sysconfig
from typing import Any

from fedavg_jax.core.errors import InputError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Names of folders of packages, anywhere in a path.
_OF_PACKAGES = {'site-packages', 'dist-packages'}


@functools.cache
def _installed() -> tuple[pathlib.Path, ...]:
  """Returns the folders of installed code."""
  paths = sysconfig.get_paths()
  names = 'stdlib', 'platstdlib', 'purelib', 'platlib'
  return _PACKAGE, *(pathlib.Path(paths[name]).resolve() for name in names)


@functools.cache
def is_own(file: str) -> bool:
  """Returns whether a file is the user's; a cell of a notebook is.

  Args:
    file: a path, or Python's name for code without a file.
  """
  if file.startswith('<frozen'):
    return False
  path = pathlib.Path(file).resolve()
  return not (
    _OF_PACKAGES.intersection(path.parts)
    or any(map(path.is_relative_to, _installed()))
  )


def is_own_object(found: Any) -> bool:
  """Returns whether a function or a class is user-defined."""
  if code := getattr(found, '__code__', None):
    return is_own(code.co_filename)
  name = getattr(found, '__module__', None)
  if name == '__main__':
    return True
  file = getattr(sys.modules.get(name or ''), '__file__', None)
  return bool(file) and is_own(file)


def file_sha256() -> dict[str, str]:
  """Returns the SHA-256 of each imported user file, by its module."""
  found = {}
  for module in list(sys.modules.values()):
    file = getattr(module, '__file__', None)
    if isinstance(file, str) and file.endswith('.py') and is_own(file):
      path = pathlib.Path(file)
      if path.is_file():
        found[module.__name__] = hashlib.sha256(path.read_bytes()).hexdigest()
  return dict(sorted(found.items()))


def check(before: Any, now: dict[str, str]) -> None:
  """Raises InputError if a user's file has changed since a run began.

  Args:
    before: module -> SHA-256 when the run began, as JSON had it.
    now: the present SHA-256 by module.
  """
  before = before if isinstance(before, dict) else {}
  for name, sha256 in now.items():
    if before.get(name, sha256) != sha256:
      raise InputError(
        f'{name}: its code is not that which the run began with (SHA-256 was'
        f' {str(before[name])[:12]}..., is {sha256[:12]}...); restore it, or'
        ' choose a new workdir'
      )
