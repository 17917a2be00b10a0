"""Imports libraries that not every installation has."""

import importlib
from typing import Any

from fedavg_jax.core.errors import InputError


def load(module: str, used_by: str, install: str) -> Any:
  """Imports a module that is needed for one use only.

  Args:
    module: the name of the module.
    used_by: the name of the use, which begins the message.
    install: the arguments of `pip install` that install it.

  Raises:
    InputError: it is not installed, or fails.

  >>> try:
  ...   load('no_such_library', 'plot', 'no-such-library')
  ... except InputError as error:
  ...   print(str(error).partition(' (')[0])
  plot: no_such_library cannot be imported
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise InputError(
      f'{used_by}: {module} cannot be imported ({error}); install it: pip'
      f' install {install}'
    ) from error
