"""The configs that come with the package, by their names."""

import os
import pathlib

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean

_PACKAGE = pathlib.Path(__file__).parent.parent


def names() -> list[str]:
  """The names of the configs that come with the package, in order."""
  return sorted(path.stem for path in _folder().glob('*.py'))


def path(name: str) -> pathlib.Path:
  """The file of a config that comes with the package.

  Raises:
    InputError: there is none of this name.
  """
  if name not in names():
    raise InputError(f'config {name or repr(name)}: must be {_one_of(name)}')
  return _folder() / f'{name}.py'


def find(source: str) -> str:
  """The file of a config that a person names.

  Args:
    source: NAME of a config of the package, or the path of a file; either may
      have an argument behind it, as in `mnist_2nn:noniid`.

  Returns:
    The path, with the argument.

  Raises:
    InputError: it is neither.
  """
  name, colon, argument = source.partition(':')
  if colon and not argument:
    raise InputError(f'config {source}: there must be an argument behind the :')
  if name.endswith('.py') or os.sep in name:
    return source
  if name not in names():
    raise InputError(
      f'config {name or repr(name)}: must be the path of a file, or'
      f' {_one_of(name)}'
    )
  return f'{path(name)}{colon}{argument}'


def _one_of(name: str) -> str:
  return f'one of {", ".join(names())}{did_you_mean(name, names())}'


def _folder() -> pathlib.Path:
  """Inside the package where it is installed, else beside it in a clone."""
  inside = _PACKAGE / 'configs'
  return (
    inside
    if (inside / 'quickstart.py').is_file()
    else _PACKAGE.parent / 'configs'
  )
