"""The configs that come with the package, by their names."""

import difflib
import os
import pathlib

from fedavg_jax.core.errors import InputError

_PACKAGE = pathlib.Path(__file__).parent.parent


def names() -> list[str]:
  """The names of the configs that come with the package, in order."""
  return sorted(path.stem for path in _folder().glob('*.py'))


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
  if name.endswith('.py') or os.sep in name:
    return source
  if name not in names():
    close = difflib.get_close_matches(name, names(), 1)
    hint = f'; did you mean {close[0]}?' if close else ''
    raise InputError(
      f'{name}: must be the path of a config file, or one of'
      f' {", ".join(names())}{hint}'
    )
  return f'{_folder() / name}.py{colon}{argument}'


def _folder() -> pathlib.Path:
  """Inside the package where it is installed, else beside it in a clone."""
  inside = _PACKAGE / 'configs'
  return inside if inside.is_dir() else _PACKAGE.parent / 'configs'
