"""Finds the configs that come with the package, by their names."""

import os
import pathlib

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean

_PACKAGE = pathlib.Path(__file__).parent.parent


def names() -> list[str]:
  """Returns the sorted names of the configs that come with the package."""
  return sorted(path.stem for path in _folder().glob('*.py'))


def path(name: str) -> pathlib.Path:
  """Returns the file of a config that comes with the package.

  Raises:
    InputError: the package has no config of this name.
  """
  if name not in names():
    raise InputError(f'config {name or repr(name)}: must be {_one_of(name)}')
  return _folder() / f'{name}.py'


def find(source: str) -> str:
  """Returns the file of the config that the user selects.

  Args:
    source: the NAME of a config of the package, or the path of a file; either
      may be followed by an argument, as in `mnist_2nn:noniid`.

  Returns:
    The path, followed by the argument.

  Raises:
    InputError: the source is neither, or its argument is empty.
  """
  name, colon, argument = source.partition(':')
  if colon and not argument:
    raise InputError(f'config {source}: needs an argument after the :')
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
  """Returns the folder in an installed package, or next to it in a clone."""
  inside = _PACKAGE / 'configs'
  return (
    inside
    if (inside / 'quickstart.py').is_file()
    else _PACKAGE.parent / 'configs'
  )
