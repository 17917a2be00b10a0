"""Defines layers that are fast with weights per client.

Under `vmap` over clients every client has its own kernel. XLA then lowers a
convolution to a grouped one, and its gradients to forms that neither the CPU's
fast path nor cuDNN supports well. So there are three methods:

* `canonical` (CPU): forward and both gradients are plain NHWC x HWIO -> NHWC
  convolutions, the one form that XLA:CPU compiles well inside a loop. Clients
  that share a device run one after another.
* `patches` (GPU): patches of 2 x 2 outputs and one batched matrix product; it
  needs (k + 1)^2 / 4 times the memory of the images.
* `lax`: `lax.conv` with JAX's own gradients and `vmap`, for comparison.

Shape letters: B batch, H, W image, C input channels, O output channels, k
kernel size; I, O inputs and outputs of a matrix product; T time steps, H hidden
units of an LSTM.
"""

from collections.abc import Iterator
import contextlib
import contextvars

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
    kernel: [k, k, C, O] weights, rounded to the dtype of x.
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
  kernel = kernel.astype(x.dtype)
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

  A float32 kernel of bfloat16 inputs is rounded to bfloat16, and its gradient
  stays float32, so that the kernel that computes it can add it to the weights.

  Args:
    x: [B, I] inputs.
    kernel: [I, O] weights, of the dtype of x or a wider one.

  Returns:
    [B, O], of the dtype of x.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.layers.matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
  (2, 4)
  """
  return x @ kernel.astype(x.dtype)


def _matmul_fwd(x, kernel):
  return x @ kernel.astype(x.dtype), (x, kernel)


def _matmul_bwd(residuals, g):
  x, kernel = residuals
  rounded = kernel.astype(x.dtype)
  dx = lax.dot_general(g, rounded, (((1,), (1,)), ((), ())))
  if traced_platform() == 'cpu':
    # Read the kernel before its gradient is computed and the kernel updated in
    # place; otherwise XLA copies the kernel in every step.
    dx, g = lax.optimization_barrier((dx, g))
  dkernel = lax.dot_general(
    x,
    g,
    (((0,), (0,)), ((), ())),
    preferred_element_type=kernel.dtype,
  )
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
  if traced_platform() == 'gpu':
    (a, b), (c, d) = _corners(x)
    return jnp.maximum(jnp.maximum(a, c), jnp.maximum(b, d))
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _corners(x):
  """Returns the four pixels of blocks of 2 x 2, two rows of [B, H/2, W/2, C].

  A GPU reads them from the blocks that `_conv_patches` writes, but writes each
  strided slice to memory. A TPU would copy the image into another layout.
  """
  b, height, width, c = x.shape
  x = x.reshape(b, height // 2, 2, width // 2, 2, c)
  return [[x[:, :, i, :, j] for j in range(2)] for i in range(2)]


def _lax_conv(x, kernel, *, padding):
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _conv_patches(x, kernel, padding):
  """Computes 2 x 2 neighbouring outputs by one product, [B, H', W', O].

  The windows of four neighbours overlap: their union, the patch of a block,
  has (k + 1)^2 pixels instead of 4 k^2, a third of the bytes if k is 5. The
  product has up to twice the operations, of which a GPU has plenty.

  JAX's gradient of the images is one product and the sum of shifted blocks;
  XLA drops it if the images are data.
  """
  k, _, c, o = kernel.shape
  t = 1 if k == 1 else 2  # The side of a tile of outputs.
  n = -(-(k - 1) // t) + 1  # The side of its patch, in blocks of t x t pixels.
  size = [side + 2 * padding - k + 1 for side in x.shape[1:3]]
  tiles = [-(-side // t) for side in size]
  blocks = [side + n - 1 for side in tiles]
  below, right = (t * blocks[i] - padding - x.shape[1 + i] for i in range(2))
  x = jnp.pad(x, ((0, 0), (padding, below), (padding, right), (0, 0)))
  x = _blocks(x, t)
  patches = jnp.concatenate(
    [
      x[:, i : i + tiles[0], j : j + tiles[1]]
      for i in range(n)
      for j in range(n)
    ],
    axis=-1,
  )  # [B, H' / t, W' / t, n n t t C]
  out = matmul(patches.reshape(-1, patches.shape[-1]), _of_tile(kernel, t, n))
  out = out.reshape(-1, *tiles, t, t, o).swapaxes(2, 3)
  out = out.reshape(-1, t * tiles[0], t * tiles[1], o)
  return out[:, : size[0], : size[1]]


def _blocks(x, t):
  """Moves blocks of t x t pixels to channels, [B, H / t, W / t, t t C]."""
  b, height, width, c = x.shape
  x = x.reshape(b, height // t, t, width // t, t, c).swapaxes(2, 3)
  return x.reshape(b, height // t, width // t, t * t * c)


def _of_tile(kernel, t, n):
  """Returns the kernel of t x t neighbouring outputs, [n n t t C, t t O]."""
  k, _, c, o = kernel.shape
  side = n * t
  each = [
    jnp.pad(kernel, ((i, side - k - i), (j, side - k - j), (0, 0), (0, 0)))
    for i in range(t)
    for j in range(t)
  ]
  own = jnp.concatenate(each, axis=-1)  # [n t, n t, C, t t O]
  own = own.reshape(n, t, n, t, c, t * t * o).swapaxes(1, 2)
  return own.reshape(n * n * t * t * c, t * t * o)


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
  outside = jnp.array(-jnp.inf, x.dtype)
  none, one = (0, 0, 0), (0, 1, 0)
  if traced_platform() == 'gpu':
    next_ = (-1, 1, 0)
    columns = [
      jnp.maximum(
        jnp.maximum(upper, lower),
        lax.pad(upper, outside, (none, next_, none, none)),
      )
      for upper, lower in zip(*_corners(x), strict=True)
    ]
    after = lax.pad(columns[0], outside, (none, none, next_, none))
    return jnp.maximum(jnp.maximum(*columns), after)
  x = lax.pad(x, outside, (none, one, one, none))
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
  recurrent, bias, peephole = (
    own.astype(x.dtype) for own in (recurrent, bias, peephole)
  )
  a = matmul(x.reshape(t * b, inputs), kernel) + bias[None]
  h = peephole_lstm(
    a.reshape(t, b, -1), recurrent, peephole, steps, traced_platform() == 'gpu'
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
