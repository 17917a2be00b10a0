"""Numbers from outside arrive exactly, or are refused in one line.

Labels, row numbers and inputs of any NumPy dtype enter here and nowhere else: a
value is checked before it is cast, because a cast wraps, cuts and rounds
without a word.
"""

from typing import Any

import numpy as np

from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk

_MOST = 2**31 - 1
# Types that JAX holds as they are; NumPy does not know the kind of bfloat16.
_SMALL = ('b1', 'i1', 'i2', 'i4', 'u1', 'u2', 'u4', 'f2', 'f4', 'V2')


def class_numbers(
  y: Any,
  name: str,
  *,
  num_classes: int | None = None,
  ndim: int = 1,
  least: int = 0,
) -> np.ndarray:
  """Turns class numbers into int32; every value stays what it is.

  Args:
    y: whole numbers of any NumPy dtype, floating ones included; an array of
      int32 is returned as it is.
    name: what the message calls them.
    num_classes: they must be below it; None allows all that int32 can hold.
    ndim: axes they must have, 1 for [n] and 2 for the positions of sequences.
    least: the smallest that is allowed, -1 where a position may have no label.

  Raises:
    InputError: another shape, a value with a fraction, or one that is
      out of range.

  >>> class_numbers(np.array([0, 255], np.uint8), 'y')
  array([  0, 255], dtype=int32)
  """
  if isinstance(y, RowsOnDisk):  # Checked when it was converted.
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
  """Turns whole numbers of any shape into int32; as `class_numbers`."""
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
  """Tells whether real numbers are whole, as class numbers are."""
  return values.dtype.kind != 'f' or not _not_whole(np.asarray(values)).any()


def _not_whole(values: np.ndarray) -> np.ndarray:
  wrong = ~np.isfinite(values)
  return wrong | (
    np.where(wrong, 0, values) != np.where(wrong, 0, np.trunc(values))
  )


def inputs(x: Any, name: str) -> Any:
  """Turns inputs into types that JAX holds; every value stays what it is.

  Integers of 64 bits become int32, floating-point numbers of 64 bits the
  nearest float32; smaller types stay. What is on disk must have a smaller type.

  Args:
    x: [n, ...] real numbers, or a tree of such arrays with the same n.
    name: what the message calls them.

  Raises:
    InputError: they have no rows axis or other rows, are no real numbers, or
      are too large for the type they would become.
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
  """Does for one array what `inputs` does."""
  if isinstance(x, RowsOnDisk):
    return x  # pyrefly: ignore[bad-return]
  x = array(x, name)
  if not x.ndim:
    raise InputError(f'{name}: is a single number, must have rows, [n, ...]')
  if not x.dtype.isnative:  # Of another machine's byte order.
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
  """Turns lists, or another library's arrays, into one of NumPy's.

  Args:
    values: of any kind.
    name: what the message calls them.

  Raises:
    InputError: they are a tree, or may be one; their lengths differ; or some of
      them are masked: what lies behind a mask is not a value.
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
  except (ValueError, TypeError, OverflowError) as error:  # Ragged lists.
    reason = str(error).splitlines()[0][:100]
    raise InputError(
      f'{name}: must be an array of numbers ({reason})'
    ) from error


def _in_range(
  values: Any, name: str, num_classes: int | None, least: int
) -> None:
  most = _MOST if num_classes is None else num_classes - 1
  low, high = values.min(), values.max()
  # Python compares whole numbers of any size; NumPy would cast them first.
  if int(low) < least or int(high) > most:
    raise InputError(
      f'{name}: holds {_short(low)} to {_short(high)}, must lie in {least} ..'
      f' {most}'
    )


def _short(value: Any) -> str:
  """Writes a whole number; of one with hundreds of digits the size."""
  digits = str(int(value))
  return digits if len(digits) < 25 else f'{value:g}'
