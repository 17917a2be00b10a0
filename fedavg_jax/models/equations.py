"""Replaces equations of a traced program by forms that are faster on XLA:CPU.

Each function takes an equation of a jaxpr and returns a function of the same
operands and, up to rounding, the same value and gradients, or None if it has no
such form. All are written for one client and stay fast under `vmap`.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.extend.core import primitives
import jax.numpy as jnp
import numpy as np

from fedavg_jax.models import canonical
from fedavg_jax.models import layers

# The largest window size along one axis for which slices are faster.
_MOST_TAPS = 8


def faster(eqn: core.JaxprEqn) -> Callable[..., jax.Array] | None:
  """Returns the faster form of an equation, or None if there is none."""
  if eqn.primitive is primitives.conv_general_dilated_p:
    return None if why_as_written(eqn) else _convolution(eqn)
  if eqn.primitive is primitives.reduce_window_max_p:
    return _max_pool(eqn)
  if eqn.primitive is primitives.dot_general_p:
    return _matmul(eqn)
  return None


def why_as_written(eqn: core.JaxprEqn) -> str:
  """Returns why a convolution has no faster form; '' if it has one.

  Args:
    eqn: an equation of `conv_general_dilated`.
  """
  params = eqn.params
  dims = len(params['window_strides'])
  if params['feature_group_count'] != 1 or params['batch_group_count'] != 1:
    return 'groups'
  if any(n != 1 for n in (*params['lhs_dilation'], *params['rhs_dilation'])):
    return 'dilation'
  if dims not in (1, 2):
    return f'{dims} spatial dimensions'
  x, kernel, out = _arrays(eqn)
  if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != kernel.dtype:
    return 'its types'
  if out.dtype != x.dtype:
    return 'the type of its result'
  if 0 in (*x.shape, *kernel.shape, *out.shape):
    return 'an axis of length zero'
  return ''


def _arrays(eqn) -> list[jax.ShapeDtypeStruct]:
  """Returns the shapes of an equation's operands, then of its results."""
  avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
  return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]


def _convolution(eqn) -> Callable[..., jax.Array]:
  """Returns the canonical form of a convolution in one or two dimensions.

  Axes may have any order, and strides any value.
  """
  params = eqn.params
  images, weights, out = params['dimension_numbers']
  padding = [(int(a), int(b)) for a, b in params['padding']]
  strides = list(params['window_strides'])
  one_row = len(strides) == 1  # One dimension: an image of one row.
  if one_row:
    padding, strides = [(0, 0), *padding], [1, *strides]
  window = canonical.Window(
    (padding[0], padding[1]), (strides[0], strides[1]), params['precision']
  )

  def form(x, kernel):
    x = x.transpose(_channels_last(images))  # [B, H, W, C]
    # `weights` lists the axes O, C, h, w; the result is [h, w, C, O].
    kernel = kernel.transpose((*weights[2:], weights[1], weights[0]))
    if one_row:
      x, kernel = x[:, None], kernel[None]
    y = canonical.conv(x, kernel, window)
    if one_row:
      y = y[:, 0]
    return y.transpose([int(i) for i in np.argsort(_channels_last(out))])

  return form


def _channels_last(spec) -> tuple[int, ...]:
  """Returns axes (batch, *spatial, channels) of JAX's channels-first order."""
  return (spec[0], *spec[2:], spec[1])


def _max_pool(eqn) -> Callable[..., jax.Array] | None:
  """Returns max pooling by strided slices, whose gradient is cheaper."""
  params = eqn.params
  operand, out = _arrays(eqn)
  taps, strides = params['window_dimensions'], params['window_strides']
  dilations = (*params['base_dilation'], *params['window_dilation'])
  if (
    not jnp.issubdtype(operand.dtype, jnp.floating)
    or max(taps) > _MOST_TAPS
    or any(n != 1 for n in dilations)
    or 0 in (*operand.shape, *out.shape)
  ):
    return None

  def form(x):
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, [(*pair, 0) for pair in params['padding']])
    # Columns before rows, so that the first of tied maxima wins in row order,
    # as in the gradient of `reduce_window`.
    for axis in reversed(range(x.ndim)):
      x = _max_along(x, axis, taps[axis], strides[axis])
    return x

  return form


def _max_along(x, axis: int, taps: int, stride: int):
  """Takes the maximum over windows along one axis."""
  reach = (x.shape[axis] - taps) // stride * stride + 1
  slices = [
    lax.slice_in_dim(x, first, first + reach, stride, axis)
    for first in range(taps)
  ]
  return functools.reduce(_first_maximum, slices)


@jax.custom_jvp
def _first_maximum(a, b):
  """Takes the maximum; of equal numbers, `a` gets the gradient."""
  return jnp.maximum(a, b)


@_first_maximum.defjvp
def _first_maximum_jvp(primals, tangents):
  (a, b), (da, db) = primals, tangents
  return jnp.maximum(a, b), jnp.where(a >= b, da, db)


def _matmul(eqn) -> Callable[..., jax.Array] | None:
  """Returns `layers.matmul` for a product [B, I] x [I, O], else None."""
  params = eqn.params
  x, kernel, out = _arrays(eqn)
  contracted, batched = params['dimension_numbers']
  if (
    (x.ndim, kernel.ndim) != (2, 2)
    or tuple(map(tuple, contracted)) != ((1,), (0,))
    or any(batched)
    or params['precision'] is not None
    or not jnp.issubdtype(x.dtype, jnp.floating)
    or {kernel.dtype, out.dtype} != {x.dtype}
  ):
    return None
  return layers.matmul
