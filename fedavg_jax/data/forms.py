"""Converts examples of any dtype to exact values with a known scale.

| x | becomes | largest value |
|---|---|---|
| uint8 | unchanged | 255 |
| bool | uint8, 0 and 1 | 1 |
| uint16 | float32, the same whole numbers | 65535 |
| other integers, all in 0 .. 255 | uint8 | 255 |
| floating point | the nearest float32 | 1 |
| integers with labels of the same shape | int32 tokens | |

Everything else is refused. Images [n, H, W] get an axis of channels.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError


class Formed(NamedTuple):
  """Holds examples in the dtypes of a federation.

  Attributes:
    examples: x uint8, float32 or int32, and y int32.
    max_value: the largest value that a pixel can have; 1 for tokens.
  """

  examples: Examples
  max_value: float


def form(x: Any, y: Any, name: str) -> Formed:
  """Converts examples of any NumPy dtype by the table of this module.

  Args:
    x: [n, ...] inputs, with at least one value each.
    y: [n] class numbers; for tokens [n, T], the next tokens [n, T].
    name: the name of the examples in messages.

  Raises:
    InputError: a value cannot be converted exactly, or the table has no rule
      for it.

  >>> form(np.array([[0, 200]]), [1], 'mine')[0].x
  array([[  0, 200]], dtype=uint8)
  """
  x, y = exact.array(x, f'{name}: x'), exact.array(y, f'{name}: y')
  if x.ndim < 2 or not x[:1].size:
    raise InputError(
      f'{name}: x has the shape {list(x.shape)}; must have rows of values,'
      ' [n, ...]'
    )
  if y.ndim and len(x) != len(y):
    raise InputError(f'{name}: {len(x)} inputs, but {len(y)} labels')
  if y.ndim == 2 and x.shape == y.shape and x.dtype.kind in 'iu':
    tokens = exact.whole_numbers(x, f'{name}: x')
    y = exact.class_numbers(y, f'{name}: y', ndim=2, least=NO_LABEL)
    return Formed(Examples(tokens, y), 1.0)
  y = exact.class_numbers(y, f'{name}: y')
  x, max_value = _pixels(x, f'{name}: x')
  return Formed(Examples(x[..., None] if x.ndim == 3 else x, y), max_value)


def _pixels(x: np.ndarray, name: str) -> tuple[np.ndarray, float]:
  if x.dtype == np.uint8:
    return x, 255.0
  if x.dtype == bool:
    return x.astype(np.uint8), 1.0
  if x.dtype == np.uint16 or x.dtype == np.dtype('>u2'):
    return x.astype(np.float32), 65535.0
  if x.dtype.kind not in 'iu':
    return exact.inputs(x, name).astype(np.float32), 1.0
  if x.min() < 0 or x.max() > 255:
    raise InputError(
      f'{name} is {x.dtype} with {x.min()} to {x.max()}; integers must be in'
      ' [0, 255] or uint16; or scale them to floating point in [0, 1]'
    )
  return x.astype(np.uint8), 255.0


def check_scale(found: float, expected: float, name: str) -> None:
  """Raises InputError if examples have another scale than the test set."""
  if found != expected:
    raise InputError(
      f'{name}: its largest value is {found:g}, that of the test set'
      f' {expected:g}; must have the same dtype'
    )
