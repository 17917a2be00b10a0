"""Defines a convolution whose forward pass and gradients are canonical.

XLA:CPU compiles one form of a convolution well inside a loop: NHWC x HWIO ->
NHWC, without groups. JAX's own gradients and `vmap` over clients leave that
form; those of this module preserve it.

Shape letters: B batch, H, W image, C input channels, O output channels, h, w
kernel size, H', W' output size.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
  """Describes how a kernel moves over an image, along rows and columns.

  Attributes:
    padding: numbers of zeros added before and after; negative numbers crop.
    strides: strides of the kernel.
    precision: the precision of products, see `jax.lax.conv_general_dilated`.
  """

  padding: tuple[Pair, Pair]
  strides: Pair = (1, 1)
  precision: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  """Convolves images with a kernel.

  Args:
    x: [B, H, W, C] images.
    kernel: [h, w, C, O] weights.
    window: the padding and strides of the kernel.

  Returns:
    [B, H', W', O].
  """
  return _canonical(x, kernel, window)


def _canonical(x, kernel, window, *, dilation=(1, 1)):
  """Computes a convolution that stays canonical under `vmap`.

  Args:
    x: [B, H, W, C] images.
    kernel: [h, w, C, O] weights.
    window: the padding and strides of the kernel.
    dilation: distances between neighbours in the kernel.
  """
  # XLA:CPU reads beyond the image if padding is negative, so crop first.
  cut = [(min(a, 0), min(b, 0), 0) for a, b in window.padding]
  if any(map(any, cut)):
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *cut, (0, 0, 0)))

  @jax.custom_batching.custom_vmap
  def conv(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides=window.strides,
      padding=[(max(a, 0), max(b, 0)) for a, b in window.padding],
      rhs_dilation=dilation,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=window.precision,
    )

  @conv.def_vmap
  def _one_client_at_a_time(axis_size, in_batched, x, kernel):
    x_batched, kernel_batched = in_batched
    if not kernel_batched:  # One kernel for all: fold the clients into B.
      out = conv(x.reshape(-1, *x.shape[2:]), kernel)
      return out.reshape(axis_size, -1, *out.shape[1:]), True
    if not x_batched:
      x = jnp.broadcast_to(x, (axis_size, *x.shape))
    if axis_size == 1:
      return conv(x[0], kernel[0])[None], True
    return lax.map(lambda one: conv(*one), (x, kernel)), True

  return conv(x, kernel)


def _conv_fwd(x, kernel, window):
  return _canonical(x, kernel, window), (x, kernel)


def _conv_bwd(window, residuals, g):
  """Returns both gradients; `g` is the cotangent of the output [B, H', W', O].

  The gradient of the images is a convolution of `g`, with zeros between its
  rows and columns for strides, and the kernel rotated by 180 degrees; XLA drops
  it if the images are data. The gradient of the kernel is a convolution of the
  images with `g` as the kernel, in which batch and channels swap roles.
  """
  x, kernel = residuals
  strides = window.strides
  x_padding, kernel_padding = [], []  # One for each gradient.
  for axis, (before, _) in enumerate(window.padding):
    size, taps = x.shape[1 + axis], kernel.shape[axis]
    reach = (g.shape[1 + axis] - 1) * strides[axis] + 1
    x_padding.append((taps - 1 - before, size + before - reach))
    kernel_padding.append((before, taps - 1 + reach - size - before))
  rotated = kernel[::-1, ::-1].swapaxes(2, 3)  # [h, w, O, C]
  dx = _canonical(
    _spread(g, strides),
    rotated,
    Window(tuple(x_padding), precision=window.precision),
  )
  dkernel = _canonical(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    Window(tuple(kernel_padding), precision=window.precision),
    dilation=strides,
  ).transpose(1, 2, 0, 3)  # [C, h, w, O] -> [h, w, C, O]
  return dx, dkernel


def _spread(g, strides):
  """Inserts stride - 1 zeros between rows and between columns."""
  if strides == (1, 1):
    return g
  inside = ((0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0))
  return lax.pad(g, jnp.zeros((), g.dtype), inside)


conv.defvjp(_conv_fwd, _conv_bwd)
