"""Checks single numbers; each check raises InputError with one line.

The command and the Python API reject the same values with the same messages.
"""

import math
import numbers
from typing import Any

import numpy as np

from fedavg_jax.core.errors import InputError

MOST = 2**31 - 1
# A wide range, well within the normal numbers of float32.
SMALLEST_RATE, LARGEST_RATE = 1e-30, 1e30


def check_whole(name: str, value: Any, low: int, high: int = MOST) -> int:
  """Returns an integer in [low, high], as an int.

  Args:
    name: the name of the number in the message.
    value: an int, or an integer of NumPy.
    low: the smallest allowed value.
    high: the largest allowed value.

  Raises:
    InputError: the value is not an integer, or is out of range.
  """
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise InputError(f'{name} = {value!r}: must be a whole number')
  value = int(value)
  if not low <= value <= high:
    rule = (
      f'at least {low}'
      if high == MOST and value < low
      else f'in [{low}, {high}]'
    )
    raise InputError(f'{name} = {value!r}: must be {rule}')
  return value


def check_seed(value: Any) -> int:
  """Returns a seed, an integer in [0, 2**31 - 1], which all of JAX accepts.

  >>> check_seed(7)
  7
  """
  return check_whole('seed', value, 0)


def is_traced(value: Any) -> bool:
  """Returns whether a value is an array of JAX, on a device or traced."""
  return hasattr(value, 'aval') and not isinstance(value, np.generic)


def check_real(name: str, value: Any, low: float, high: float) -> None:
  """Checks that a number is in [low, high].

  Args:
    name: the name of the number in the message.
    value: a number; arrays of JAX, such as the traced values of a sweep, are
      not checked.
    low: the smallest allowed value.
    high: the largest allowed value.

  Raises:
    InputError: the value is not a number, not finite, or out of range.

  >>> check_real('alpha', 0.5, 0, 1)
  """
  if is_traced(value):
    return
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise InputError(f'{name} = {value!r}: must be a number')
  try:
    number = float(value)
  except OverflowError:  # An integer beyond the range of float.
    number = math.inf
  if not math.isfinite(number):
    text = repr(value) if isinstance(value, float) else f'{number}'
    raise InputError(f'{name} = {text}: must be finite')
  if not low <= number <= high:
    raise InputError(f'{name} = {value!r}: must be in [{low:g}, {high:g}]')


def check_positive(name: str, value: Any, high: float) -> None:
  """Checks that a number is in (0, high]."""
  check_real(name, value, 0, high)
  if isinstance(value, numbers.Real) and value == 0:
    raise InputError(f'{name} = {value!r}: must be above 0')


def check_rate(name: str, value: Any) -> None:
  """Checks that a learning rate is in [1e-30, 1e30]."""
  check_real(name, value, SMALLEST_RATE, LARGEST_RATE)


def check_fraction(name: str, value: Any, *, one: bool = False) -> None:
  """Checks that a number is in [0, 1), or with `one` in [0, 1]."""
  check_real(name, value, 0, 1)
  if not one and isinstance(value, numbers.Real) and value == 1:
    raise InputError(f'{name} = {value!r}: must be below 1')
