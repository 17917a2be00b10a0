"""Loads user-defined functions, which a config names as `module:function`.

Loading imports the module, which runs its code: such a name is to be trusted
like code. An object that was passed to `train` has a name too, with a prefix;
such a name is never imported.
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
  """Returns whether a text has the form `module:function`.

  >>> is_reference('my_models:build'), is_reference('cnn')
  (True, False)
  """
  return isinstance(text, str) and bool(_REFERENCE.fullmatch(text))


def from_python(name: str) -> str:
  """Returns the text in a config for an object that Python code passed."""
  return _FROM_PYTHON + name


def is_from_python(text: Any) -> bool:
  """Returns whether a text of a config is one of `from_python`.

  >>> is_from_python(from_python('mine.build')), is_from_python('mine:build')
  (True, False)
  """
  return isinstance(text, str) and text.startswith(_FROM_PYTHON)


def short(text: str) -> str:
  """Returns a name for titles: a text of a config without the prefix."""
  return text.removeprefix(_FROM_PYTHON)


def load(text: str, name: str) -> Callable[..., Any]:
  """Imports the module of a reference and returns its function.

  Args:
    text: a `module:function`; the working folder is searched for the module
      too.
    name: the name of the option in messages.

  Raises:
    InputError: the module cannot be imported or has no such function.
  """
  module, _, function = text.partition(':')
  if '' not in sys.path:  # The working folder, as for `python -c`.
    sys.path.insert(0, '')
  try:
    found = getattr(importlib.import_module(module), function)
  except (Exception, SystemExit) as error:  # User code may raise anything.
    raise InputError(
      f'{name}: must be module:function ({reason(error)})'
    ) from error
  if not callable(found):
    raise InputError(
      f'{name}: {function} is {type(found).__name__}, must be a function'
    )
  return found


def reason(error: BaseException) -> str:
  """Returns the type and the first line of an exception."""
  text = f'{type(error).__name__}: {error}'.strip()
  return text.splitlines()[0][:120]
