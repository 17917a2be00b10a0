"""Converts external numbers to dtypes of JAX exactly, or raises InputError.

Labels, row numbers and inputs of any NumPy dtype enter here and nowhere else:
values are checked before they are cast, because a cast silently wraps,
truncates and rounds.
"""

from typing import Any

import numpy as np

from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import first_lines
from fedavg_jax.core.rows_on_disk import RowsOnDisk

_MOST = 2**31 - 1
# Dtypes that JAX stores unchanged; V2 is how NumPy describes bfloat16.
_SMALL = ('b1', 'i1', 'i2', 'i4', 'u1', 'u2', 'u4', 'f2', 'f4', 'V2')


def class_numbers(
  y: Any,
  name: str,
  *,
  num_classes: int | None = None,
  ndim: int = 1,
  least: int = 0,
) -> np.ndarray:
  """Converts class numbers to int32 and preserves every value.

  Args:
    y: integers of any NumPy dtype, floating-point ones included; an array of
      int32 is returned unchanged.
    name: the name of the numbers in messages.
    num_classes: the number that all must be below; None allows any int32.
    ndim: the number of axes, 1 for [n] and 2 for positions of sequences [n, T].
    least: the smallest allowed number, -1 where a position may have no label.

  Raises:
    InputError: the shape is wrong, or a value is not an integer or is out of
      range.

  >>> class_numbers(np.array([0, 255], np.uint8), 'y')
  array([  0, 255], dtype=int32)
  """
  if isinstance(y, RowsOnDisk):  # Its rows were checked in the conversion.
    if y.ndim != ndim or y.dtype != np.int32:
      raise InputError(f'{name}: must be int32 with {ndim} axes')
    _in_range(y, name, num_classes, least)
    return y  # pyrefly: ignore[bad-return]
  y = array(y, name)
  if y.ndim != ndim:
    shape = '[n]' if ndim == 1 else '[n, T]'
    hint = ' (class numbers, not one-hot rows or a column)' if ndim == 1 else ''
    raise InputError(
      f'{name}: has the shape {list(y.shape)}, must have {shape}{hint}'
    )
  return whole_numbers(y, name, num_classes=num_classes, least=least)


def whole_numbers(
  values: Any, name: str, *, num_classes: int | None = None, least: int = 0
) -> np.ndarray:
  """Converts integers of any shape to int32; see `class_numbers`."""
  values = array(values, name)
  if values.dtype.kind not in 'biuf':
    raise InputError(f'{name}: is {values.dtype}, must be whole numbers')
  if values.dtype.kind == 'f':
    wrong = _not_whole(values)
    if wrong.any():
      at = tuple(int(i) for i in np.argwhere(wrong)[0])
      raise InputError(
        f'{name}: holds {values[at]} at row {at[0] if at else 0}, must be whole'
        ' numbers'
      )
  if values.size:
    _in_range(values, name, num_classes, least)
  return values if values.dtype == np.int32 else values.astype(np.int32)


def are_whole(values: np.ndarray) -> bool:
  """Returns whether all of some real numbers are integers."""
  return values.dtype.kind != 'f' or not _not_whole(np.asarray(values)).any()


def _not_whole(values: np.ndarray) -> np.ndarray:
  wrong = ~np.isfinite(values)
  return wrong | (
    np.where(wrong, 0, values) != np.where(wrong, 0, np.trunc(values))
  )


def inputs(x: Any, name: str) -> Any:
  """Converts inputs to dtypes of JAX and preserves every integer.

  Wider integers become int32, and wider floating-point numbers the nearest
  float32; narrower dtypes, and rows on disk, are returned unchanged.

  Args:
    x: [n, ...] real numbers, or a pytree of such arrays with the same n.
    name: the name of the inputs in messages.

  Raises:
    InputError: the inputs have no rows axis, differ in n, are not real
      numbers, or are too large for the new dtype.
  """
  if not trees.is_tree(x):
    return _input(x, name)
  x = trees.map_named(_input, x, name)
  if len(numbers := sorted({len(own) for own in trees.arrays(x)})) != 1:
    raise InputError(
      f'{name}: its arrays have {numbers or "no"} rows, must have the same'
      ' number, [n, ...]'
    )
  return x


def _input(x: Any, name: str) -> np.ndarray:
  """Converts one array; see `inputs`."""
  if isinstance(x, RowsOnDisk):
    return x  # pyrefly: ignore[bad-return]
  x = array(x, name)
  if not x.ndim:
    raise InputError(f'{name}: is a single number, must have rows, [n, ...]')
  if not x.dtype.isnative:  # The byte order is that of another machine.
    x = x.astype(x.dtype.newbyteorder('='))
  if f'{x.dtype.kind}{x.dtype.itemsize}' in _SMALL and _is_number(x.dtype):
    return x
  if x.dtype.kind in 'iu':
    if x.size:
      _in_range(x, name, None, -_MOST - 1)
    return x.astype(np.int32)
  if x.dtype.kind != 'f':
    raise InputError(f'{name}: is {x.dtype}, must be real numbers')
  with np.errstate(over='ignore'):
    small = x.astype(np.float32)
  if (lost := np.isinf(small) & np.isfinite(x)).any():
    at = tuple(int(i) for i in np.argwhere(lost)[0])
    raise InputError(
      f'{name}: holds {x[at]} at row {at[0]}, too large for float32'
    )
  return small


def _is_number(dtype: np.dtype) -> bool:
  return dtype.kind != 'V' or dtype.name == 'bfloat16'


def array(values: Any, name: str) -> np.ndarray:
  """Converts lists, or arrays of another library, to an array of NumPy.

  Args:
    values: a list, a number or an array.
    name: the name of the values in messages.

  Raises:
    InputError: the values are a pytree or a tuple that could be one, are lists
      of different lengths, or have masked elements, which are not values.
  """
  if trees.is_tree(values):
    kind = type(values).__name__
    raise InputError(f'{name}: is a {kind} of arrays, must be one array')
  if isinstance(values, tuple) and any(
    isinstance(part, (list, tuple)) for part in values
  ):
    raise InputError(
      f'{name}: is a tuple of lists, one array or several; must be an array, or'
      ' a tuple of arrays'
    )
  if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
    raise InputError(
      f'{name}: has {np.ma.count_masked(values)} masked values, must have none'
    )
  try:
    return np.asarray(values)
  except Exception as error:  # Ragged lists; arrays of another library.
    raise InputError(
      f'{name}: must be an array of numbers ({first_lines(error)})'
    ) from error


def _in_range(
  values: Any, name: str, num_classes: int | None, least: int
) -> None:
  most = _MOST if num_classes is None else num_classes - 1
  low, high = values.min(), values.max()
  # Python compares whole numbers of any size; NumPy would cast them first.
  if int(low) < least or int(high) > most:
    raise InputError(
      f'{name}: holds {_short(low)} to {_short(high)}, must be in'
      f' [{least}, {most}]'
    )


def _short(value: Any) -> str:
  """Formats an integer; one of 25 digits or more as a float."""
  digits = str(int(value))
  return digits if len(digits) < 25 else f'{value:g}'
