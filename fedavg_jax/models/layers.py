"""Defines layers that are fast with weights per client.

Under `vmap` over clients every client has its own kernel. XLA then lowers a
convolution to a grouped one, and its gradients to forms that neither the CPU's
fast path nor cuDNN supports well. So the first two methods below have
hand-written gradients for the images and the kernel:

* `canonical` (CPU): forward and both gradients are plain NHWC x HWIO -> NHWC
  convolutions, the one form that XLA:CPU compiles well inside a loop. Clients
  that share a device run one after another.
* `patches` (accelerators): image patches and one batched matrix product; it
  needs k * k times the activation memory.
* `lax`: `lax.conv` with JAX's own gradients and `vmap`, for comparison.

Shape letters: B batch, H, W image, C input channels, O output channels, k
kernel size; I, O inputs and outputs of a matrix product; T time steps, H hidden
units of an LSTM.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.core import choices
from fedavg_jax.models import canonical
from fedavg_jax.models.recurrent import peephole_lstm

__all__ = [
  'conv2d',
  'local_response_norm',
  'longest',
  'lstm',
  'matmul',
  'max_pool2',
  'max_pool3',
]

# The platform that models are traced for, inside `for_platform`.
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar('platform')


@contextlib.contextmanager
def for_platform(platform: str) -> Iterator[None]:
  """Sets the platform that models are traced for within a `with` block.

  This process need not have devices of that platform.

  Args:
    platform: the value of `jax.Device.platform`: 'cpu', 'gpu' or 'tpu'.

  >>> import fedavg_jax as fa
  >>> with fa.layers.for_platform('gpu'):
  ...   fa.layers.traced_platform()
  'gpu'
  """
  token = _PLATFORM.set(platform)
  try:
    yield
  finally:
    _PLATFORM.reset(token)


def traced_platform() -> str:
  """Returns the platform that models are traced for.

  It is that of `for_platform` or, outside of it, that of JAX's first device.

  >>> import fedavg_jax as fa
  >>> with fa.layers.for_platform('cpu'):
  ...   fa.layers.traced_platform()
  'cpu'
  """
  return _PLATFORM.get('') or jax.devices()[0].platform


# A GPU has products of patches in one graph with their loop. Both others are
# estimates of XLA's for a v5e (`experiments/benchmark/compiled.py`).
_FASTEST = {'cpu': 'canonical', 'tpu': 'lax'}


def conv2d(
  x: jax.Array, kernel: jax.Array, *, padding: int, method: str = 'auto'
) -> jax.Array:
  """Convolves images with a kernel, with stride one.

  Args:
    x: [B, H, W, C] images.
    kernel: [k, k, C, O] weights.
    padding: the number of zeros added on every side; k // 2 preserves the size
      of images if k is odd.
    method: 'canonical', 'patches' or 'lax'; 'auto' is 'canonical' on CPU, 'lax'
      on TPU, and 'patches' on GPU.

  Returns:
    [B, H + 2 * padding - k + 1, W + 2 * padding - k + 1, O].

  Raises:
    InputError: `method` is another word.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((5, 5, 3, 4))
  >>> fa.layers.conv2d(x, kernel, padding=2).shape
  (2, 8, 8, 4)
  """
  if method == 'auto':
    method = _FASTEST.get(traced_platform(), 'patches')
  if method == 'lax':
    return _lax_conv(x, kernel, padding=padding)
  choices.check_choice('method', method, choices.CONVOLUTIONS)
  if method == 'canonical':
    window = canonical.Window(((padding, padding), (padding, padding)))
    return canonical.conv(x, kernel, window)
  return _conv_patches(x, kernel, padding)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies inputs by a kernel, [B, I] x [I, O] -> [B, O].

  JAX's own gradient of the kernel is computed as [O, I] and transposed. Under
  `vmap` XLA does not remove the transpose, which costs a pass over the largest
  array of a step; this function computes it as [I, O].

  Args:
    x: [B, I] inputs.
    kernel: [I, O] weights.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.layers.matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
  (2, 4)
  """
  return x @ kernel


def _matmul_fwd(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_bwd(residuals, g):
  x, kernel = residuals
  dx = lax.dot_general(g, kernel, (((1,), (1,)), ((), ())))
  if traced_platform() == 'cpu':
    # Read the kernel before its gradient is computed and the kernel updated in
    # place; otherwise XLA copies the kernel in every step.
    dx, g = lax.optimization_barrier((dx, g))
  dkernel = lax.dot_general(x, g, (((0,), (0,)), ((), ())))
  return dx, dkernel


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def max_pool2(x: jax.Array, *, padding: int = 0) -> jax.Array:
  """Takes the maximum over windows of 2 x 2, with stride two.

  Strided slices have a cheaper gradient than `reduce_window`. Equal maxima
  share the gradient. A last odd row or column is dropped.

  Args:
    x: [B, H, W, C] images.
    padding: the number of rows and columns of -inf added on every side.

  Returns:
    [B, (H + 2 * padding) // 2, (W + 2 * padding) // 2, C].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.layers.max_pool2(jnp.ones((2, 8, 8, 3))).shape
  (2, 4, 4, 3)
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


def _patches(x, k, padding):
  """Extracts patches [B, H', W', k * k * C], axes in a kernel's order."""
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
  return jnp.concatenate(
    [x[:, i : i + height, j : j + width] for i in range(k) for j in range(k)],
    axis=-1,
  )


def _products(x, kernel, padding):
  k, _, c, o = kernel.shape
  return _patches(x, k, padding) @ kernel.reshape(k * k * c, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_patches(x, kernel, padding):
  return _products(x, kernel, padding)


def _conv_patches_fwd(x, kernel, padding):
  return _products(x, kernel, padding), (x, kernel)


def _conv_patches_bwd(padding, residuals, g):
  """Returns both gradients; `g` is the cotangent of the output [B, H', W', O].

  The gradient of the images is a convolution of `g` with the kernel rotated by
  180 degrees; XLA drops it if the images are data. The gradient of the kernel
  is a product of the patches with `g`.
  """
  x, kernel = residuals
  k, _, c, o = kernel.shape
  rotated = kernel[::-1, ::-1].swapaxes(2, 3)  # [k, k, O, C]
  dx = _products(g, rotated, k - 1 - padding)
  patches = _patches(x, k, padding).reshape(-1, k * k * c)
  return dx, (patches.T @ g.reshape(-1, o)).reshape(kernel.shape)


_conv_patches.defvjp(_conv_patches_fwd, _conv_patches_bwd)


def max_pool3(x: jax.Array) -> jax.Array:
  """Takes the maximum over windows of 3 x 3, with stride two.

  The padding is TensorFlow's SAME: one row below and one column on the right,
  here of -inf.

  Args:
    x: [B, H, W, C] images with even H and W.

  Returns:
    [B, H / 2, W / 2, C].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.layers.max_pool3(jnp.ones((2, 8, 8, 3))).shape
  (2, 4, 4, 3)
  """
  pad = (0, 1, 0)
  x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), pad, pad, (0, 0, 0)))
  x = jnp.maximum(jnp.maximum(x[:, :-1:2], x[:, 1::2]), x[:, 2::2])
  return jnp.maximum(jnp.maximum(x[:, :, :-1:2], x[:, :, 1::2]), x[:, :, 2::2])


def local_response_norm(
  x: jax.Array, *, radius: int, bias: float, alpha: float, beta: float
) -> jax.Array:
  """Divides x by (bias + alpha * sum of squares of near channels)^beta.

  Krizhevsky et al. 2012, Section 3.3.

  Args:
    x: [B, H, W, C] images.
    radius: the largest distance of a near channel.
    bias: the constant in the denominator.
    alpha: the factor of the sum of squares.
    beta: the exponent of the denominator.

  Returns:
    [B, H, W, C].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> x = jnp.ones((2, 8, 8, 3))
  >>> fa.layers.local_response_norm(
  ...     x, radius=1, bias=1.0, alpha=0.1, beta=0.75).shape
  (2, 8, 8, 3)
  """
  channels = jnp.arange(x.shape[-1])
  near = jnp.abs(channels[:, None] - channels[None]) <= radius
  return x * (bias + alpha * (x * x @ near.astype(x.dtype))) ** -beta


def lstm(
  x: jax.Array,
  kernel: jax.Array,
  recurrent: jax.Array,
  bias: jax.Array,
  peephole: jax.Array,
  steps: jax.Array | None,
) -> jax.Array:
  """Computes an LSTM with peephole connections from a state of zeros.

  Gers et al. 2002, with one added to the forget gate, as in TensorFlow::

    i = s(a_i + p_i c'),  f = s(a_f + 1 + p_f c'),  g = tanh(a_g),
    c = f c' + i g,       o = s(a_o + p_o c),       h = o tanh(c)

  where s is the sigmoid, a = x kernel + h' recurrent + bias, and ' marks the
  previous step. Only the terms that depend on the previous step are inside the
  loops over time: the product with the inputs and the gradient of each weight
  are one matrix product over all steps.

  Args:
    x: [B, T, I] inputs.
    kernel: [I, 4 H] input weights, gates in the order i, f, g, o.
    recurrent: [H, 4 H] recurrent weights, in the same order.
    bias: [4 H] biases, in the same order.
    peephole: [3, H] peephole weights p_i, p_f and p_o.
    steps: int32 scalar, the number of time steps to compute, at most T; the
      output is zero after them. None computes all T in loops of a known length,
      whose flag no host reads.

  Returns:
    h, [B, T, H].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> h = fa.layers.lstm(
  ...     jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)),
  ...     jnp.zeros(16), jnp.zeros((3, 4)), steps=jnp.int32(2))
  >>> h.shape, bool(h[:, 2:].any())
  ((2, 5, 4), False)
  """
  x = x.swapaxes(0, 1)  # [T, B, I]
  t, b, inputs = x.shape
  a = matmul(x.reshape(t * b, inputs), kernel) + bias[None]
  h = peephole_lstm(
    a.reshape(t, b, -1), recurrent, peephole, steps
  )
  return h.swapaxes(0, 1)


def longest(lengths: jax.Array) -> jax.Array:
  """Returns the largest length, over all clients under `vmap`; int32 scalar.

  With one length per client, `vmap` would select between old and new values of
  the whole loop state in every step. A common length costs shorter clients some
  empty steps instead.

  Args:
    lengths: int32 lengths, of any shape.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> lengths = jnp.array([[1, 2], [5, 3]])
  >>> jax.vmap(fa.layers.longest)(lengths).tolist()
  [5, 5]
  """

  @jax.custom_batching.custom_vmap
  def largest(lengths):
    return jnp.max(lengths)

  @largest.def_vmap
  def _of_all(axis_size, in_batched, lengths):
    del axis_size, in_batched
    return largest(lengths.reshape(-1)), False

  return largest(lengths)
