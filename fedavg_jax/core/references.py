"""Functions of a person's own, named as `module:function`.

The module is imported, which runs it: a name is code, as a config file is. What
was given to `train` as an object has a name too, by which nothing is imported.
"""

from collections.abc import Callable
import importlib
import re
import sys
from typing import Any

from fedavg_jax.core.errors import InputError

_FROM_PYTHON = 'from Python: '
_REFERENCE = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')


def is_reference(text: Any) -> bool:
  """Tells whether a text names a function of a module.

  >>> is_reference('my_models:build'), is_reference('cnn')
  (True, False)
  """
  return isinstance(text, str) and bool(_REFERENCE.fullmatch(text))


def from_python(name: str) -> str:
  """Returns what a config has for an object that was given from Python."""
  return _FROM_PYTHON + name


def is_from_python(text: Any) -> bool:
  """Tells whether a config's text is that of an object from Python.

  >>> is_from_python(from_python('mine.build')), is_from_python('mine:build')
  (True, False)
  """
  return isinstance(text, str) and text.startswith(_FROM_PYTHON)


def short(text: str) -> str:
  """Returns a name as titles have it, wherever what it names is from."""
  return text.removeprefix(_FROM_PYTHON)


def load(text: str, name: str) -> Callable[..., Any]:
  """Imports the module of a reference and returns its function.

  Args:
    text: `module:function`; the module is looked for in the working folder too.
    name: of the option, with what the message begins.

  Raises:
    InputError: there is no such function, or importing the module fails.
  """
  module, _, function = text.partition(':')
  if '' not in sys.path:  # As python itself would find a script's neighbours.
    sys.path.insert(0, '')
  try:
    found = getattr(importlib.import_module(module), function)
  except (Exception, SystemExit) as error:  # Of a person's module, anything.
    raise InputError(
      f'{name}: must be module:function ({reason(error)})'
    ) from error
  if not callable(found):
    raise InputError(
      f'{name}: {function} is {type(found).__name__}, must be a function'
    )
  return found


def reason(error: BaseException) -> str:
  """Returns the first line of what was raised, with its type."""
  text = f'{type(error).__name__}: {error}'.strip()
  return text.splitlines()[0][:120]
