"""Convolution, pooling, matrix product with a weight per client, made fast.

Under `vmap` over clients every client has its own kernel. XLA then lowers a
convolution to a grouped one, and its gradients to forms that neither the CPU's
fast path nor cuDNN likes. So the gradients of the first two ways below, for the
images and for the kernel, are written by hand:

* `canonical` (CPU): forward and both gradients are plain NHWC x HWIO -> NHWC
  convolutions, the one form that XLA:CPU compiles well inside a loop. Clients
  that share a device are taken one after another.
* `patches` (accelerators): image patches and one batched matrix product; it
  spends k * k times the activation memory.
* `lax`: what `jax.grad` and `jax.vmap` make of `lax.conv`, to compare with.

Shape letters: B batch, H, W image, C input channels, O output channels, k
kernel size; I, O inputs and outputs of a matrix product.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

METHODS = ('auto', 'canonical', 'patches', 'lax')


def conv2d(
  x: jax.Array, kernel: jax.Array, *, padding: int, method: str = 'auto'
) -> jax.Array:
  """Two-dimensional convolution of stride one.

  Args:
    x: images, [B, H, W, C].
    kernel: weights, [k, k, C, O].
    padding: zeros added on every side; k // 2 keeps the image's size.
    method: one of `METHODS`; 'auto' is 'canonical' on CPU, else 'patches'.

  Returns:
    [B, H + 2 * padding - k + 1, W + 2 * padding - k + 1, O].
  """
  if method == 'auto':
    method = 'canonical' if jax.default_backend() == 'cpu' else 'patches'
  if method == 'lax':
    return _lax_conv(x, kernel, padding=padding)
  if method not in METHODS:
    raise ValueError(f'method = {method!r}: must be one of {METHODS}')
  return _conv(x, kernel, padding, method)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Matrix product [B, I] x [I, O] -> [B, O].

  JAX's own gradient of the kernel comes out as [O, I], turned around. Under
  `vmap` XLA does not remove that turn, which then costs a pass over the largest
  array of the step; here it comes out as [I, O].
  """
  return x @ kernel


def _matmul_fwd(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_bwd(residuals, g):
  x, kernel = residuals
  dx = lax.dot_general(g, kernel, (((1,), (1,)), ((), ())))
  if jax.default_backend() == 'cpu':
    # First whoever reads the kernel, then its gradient and so its update: or
    # XLA would copy the kernel in every step, to update it in place.
    dx, g = lax.optimization_barrier((dx, g))
  dkernel = lax.dot_general(x, g, (((0,), (0,)), ((), ())))
  return dx, dkernel


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def max_pool2(x: jax.Array, *, padding: int = 0) -> jax.Array:
  """Maximum over windows of 2 x 2, stride two: [B, H, W, C] -> [B, H/2, ..].

  Strided slices have a cheaper gradient than `reduce_window`. Tied maxima
  share the gradient. The padding never wins a window.
  """
  if padding:
    width = (padding, padding, 0)
    x = lax.pad(
      x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), width, width, (0, 0, 0))
    )
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  x = x[:, :height, :width]
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _lax_conv(x, kernel, *, padding):
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _canonical(x, kernel, *, padding):
  """A convolution that stays canonical, hence fast on CPU, under `vmap`."""

  @jax.custom_batching.custom_vmap
  def conv(x, kernel):
    return _lax_conv(x, kernel, padding=padding)

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


def _patches(x, k, padding):
  """[B, H, W, C] -> [B, H', W', k * k * C], in the order of a kernel's rows."""
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
  return jnp.concatenate(
    [x[:, i : i + height, j : j + width] for i in range(k) for j in range(k)],
    axis=-1,
  )


def _forward(x, kernel, padding, method):
  if method == 'canonical':
    return _canonical(x, kernel, padding=padding)
  k, _, c, o = kernel.shape
  return _patches(x, k, padding) @ kernel.reshape(k * k * c, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, padding, method):
  return _forward(x, kernel, padding, method)


def _conv_fwd(x, kernel, padding, method):
  return _forward(x, kernel, padding, method), (x, kernel)


def _conv_bwd(padding, method, residuals, g):
  """Both gradients: `g` is [B, H', W', O], the cotangent of the output.

  The gradient of the images is a convolution of `g` with the kernel turned by
  180 degrees; XLA drops it where the images are data. The gradient of the
  kernel is a convolution of the images with `g` as the kernel, channels in the
  place of the batch and the batch in the place of channels.
  """
  x, kernel = residuals
  k, _, c, o = kernel.shape
  turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [k, k, O, C]
  dx = _forward(g, turned, k - 1 - padding, method)
  if method == 'canonical':
    dkernel = _canonical(
      x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), padding=padding
    ).transpose(1, 2, 0, 3)  # [C, k, k, O] -> [k, k, C, O]
  else:
    patches = _patches(x, k, padding).reshape(-1, k * k * c)
    dkernel = (patches.T @ g.reshape(-1, o)).reshape(kernel.shape)
  return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)
