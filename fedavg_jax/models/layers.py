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

from collections.abc import Iterator
import contextlib
import contextvars
import functools

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.core import choices
from fedavg_jax.models import canonical

# Of the devices that a model is traced for, where that is known.
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar('platform')


@contextlib.contextmanager
def for_platform(platform: str) -> Iterator[None]:
  """Traces models for devices of some kind, which need not be here.

  Args:
    platform: 'cpu', 'gpu' or 'tpu', as `jax.Device.platform` says it.
  """
  token = _PLATFORM.set(platform)
  try:
    yield
  finally:
    _PLATFORM.reset(token)


def traced_platform() -> str:
  """Returns the kind of devices that a model is traced for.

  They are those of `for_platform`; else JAX's first device is one.
  """
  return _PLATFORM.get('') or jax.devices()[0].platform


def conv2d(
  x: jax.Array, kernel: jax.Array, *, padding: int, method: str = 'auto'
) -> jax.Array:
  """Two-dimensional convolution of stride one.

  Args:
    x: images, [B, H, W, C].
    kernel: weights, [k, k, C, O].
    padding: zeros added on every side; k // 2 keeps the image's size.
    method: one of `choices.CONVOLUTIONS`; 'auto' is 'canonical' on CPU, else
      'patches'.

  Returns:
    [B, H + 2 * padding - k + 1, W + 2 * padding - k + 1, O].
  """
  if method == 'auto':
    method = 'canonical' if traced_platform() == 'cpu' else 'patches'
  if method == 'lax':
    return _lax_conv(x, kernel, padding=padding)
  choices.check_choice('method', method, choices.CONVOLUTIONS)
  if method == 'canonical':
    window = canonical.Window(((padding, padding), (padding, padding)))
    return canonical.conv(x, kernel, window)
  return _conv_patches(x, kernel, padding)


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
  if traced_platform() == 'cpu':
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


def _patches(x, k, padding):
  """[B, H, W, C] -> [B, H', W', k * k * C], in the order of a kernel's rows."""
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
  """Both gradients: `g` is [B, H', W', O], the cotangent of the output.

  The gradient of the images is a convolution of `g` with the kernel turned by
  180 degrees; XLA drops it where the images are data. That of the kernel is a
  product of the patches with `g`.
  """
  x, kernel = residuals
  k, _, c, o = kernel.shape
  turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [k, k, O, C]
  dx = _products(g, turned, k - 1 - padding)
  patches = _patches(x, k, padding).reshape(-1, k * k * c)
  return dx, (patches.T @ g.reshape(-1, o)).reshape(kernel.shape)


_conv_patches.defvjp(_conv_patches_fwd, _conv_patches_bwd)


def max_pool3(x: jax.Array) -> jax.Array:
  """Maximum over windows of 3 x 3, stride two, as TensorFlow's SAME pads.

  [B, H, W, C] with even H and W -> [B, H/2, W/2, C]. The padding, at the lower
  and right ends alone, never wins a window.
  """
  pad = (0, 1, 0)
  x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), pad, pad, (0, 0, 0)))
  x = jnp.maximum(jnp.maximum(x[:, :-1:2], x[:, 1::2]), x[:, 2::2])
  return jnp.maximum(jnp.maximum(x[:, :, :-1:2], x[:, :, 1::2]), x[:, :, 2::2])


def local_response_norm(
  x: jax.Array, *, radius: int, bias: float, alpha: float, beta: float
) -> jax.Array:
  """X / (bias + alpha * sum of squares of channels near)^beta, [B, H, W, C]."""
  channels = jnp.arange(x.shape[-1])
  near = jnp.abs(channels[:, None] - channels[None]) <= radius
  return x * (bias + alpha * (x * x @ near.astype(x.dtype))) ** -beta


def lstm(
  x: jax.Array,
  kernel: jax.Array,
  recurrent: jax.Array,
  bias: jax.Array,
  peephole: jax.Array,
  steps: jax.Array,
) -> jax.Array:
  """An LSTM whose gates also see the cell; its state begins at zero.

  Gers et al. 2002, with one added to the forget gate, as TensorFlow does:

    i = s(a_i + p_i c'),  f = s(a_f + 1 + p_f c'),  g = tanh(a_g),
    c = f c' + i g,       o = s(a_o + p_o c),       h = o tanh(c)

  where a = x kernel + h' recurrent + bias, and ' marks the step before. Only
  what depends on the step before is inside the loops over time: the products
  with the inputs and the gradients of all weights are one product each, over
  all steps together.

  Args:
    x: [B, T, I].
    kernel: [I, 4 H], gates in the order i, f, g, o.
    recurrent: [H, 4 H].
    bias: [4 H].
    peephole: p_i, p_f and p_o, [3, H].
    steps: int32 scalar, time steps to take; the rest of the output is zero.

  Returns:
    h, [B, T, H].
  """
  x = x.swapaxes(0, 1)  # [T, B, I]
  t, b, inputs = x.shape
  a = matmul(x.reshape(t * b, inputs), kernel) + bias[None]
  return _lstm(a.reshape(t, b, -1), recurrent, peephole, steps).swapaxes(0, 1)


def longest(lengths: jax.Array) -> jax.Array:
  """The largest length, of all clients together, int32.

  Under `vmap` a number of its own for each client would make every step of a
  loop choose between old and new for all it carries. One for all costs the
  shorter ones steps on nothing instead.
  """

  @jax.custom_batching.custom_vmap
  def largest(lengths):
    return jnp.max(lengths)

  @largest.def_vmap
  def _of_all(axis_size, in_batched, lengths):
    del axis_size, in_batched
    return largest(lengths.reshape(-1)), False

  return largest(lengths)


@jax.custom_vjp
def _lstm(a, recurrent, peephole, steps):
  return _lstm_forward(a, recurrent, peephole, steps)[0]


def _lstm_forward(a, recurrent, peephole, steps):
  """A [T, B, 4 H] -> h [T, B, H], and c and gates of all steps."""
  p_i, p_f, p_o = (p[None] for p in peephole)

  def step(t, carry):
    h, c, *seen = carry
    i, f, g, o = jnp.split(a[t] + h @ recurrent, 4, axis=1)
    i, f = jax.nn.sigmoid(i + p_i * c), jax.nn.sigmoid(f + 1 + p_f * c)
    g = jnp.tanh(g)
    c = f * c + i * g
    o = jax.nn.sigmoid(o + p_o * c)
    h = o * jnp.tanh(c)
    now = (h, c, jnp.concatenate([i, f, g, o], axis=1))
    seen = [all_.at[t].set(one) for all_, one in zip(seen, now, strict=True)]
    return h, c, *seen

  times, examples, gates = a.shape
  nothing = jnp.zeros((examples, gates // 4), a.dtype)
  states = jnp.zeros((times, *nothing.shape), a.dtype)
  *_, hs, cs, all_gates = lax.fori_loop(
    0, steps, step, (nothing, nothing, states, states, jnp.zeros_like(a))
  )
  return hs, cs, all_gates


def _lstm_fwd(a, recurrent, peephole, steps):
  hs, cs, gates = _lstm_forward(a, recurrent, peephole, steps)
  return hs, (recurrent, peephole, steps, hs, cs, gates)


def _lstm_bwd(residuals, dhs):
  recurrent, peephole, steps, hs, cs, gates = residuals
  p_i, p_f, p_o = (p[None] for p in peephole)

  def before(states):  # [T, B, H] -> the same of the step before.
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

  cs_before = before(cs)

  def step(s, carry):
    """Backwards: what reaches h and c from later steps, all gradients of a."""
    dh, dc, das = carry
    t = steps - 1 - s
    i, f, g, o = jnp.split(gates[t], 4, axis=1)
    dh = dh + dhs[t]
    tanh_c = jnp.tanh(cs[t])
    do = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c * tanh_c) + do * p_o
    di = dc * g * i * (1 - i)
    df = dc * cs_before[t] * f * (1 - f)
    da = jnp.concatenate([di, df, dc * i * (1 - g * g), do], axis=1)
    dh = lax.dot_general(da, recurrent, (((1,), (1,)), ((), ())))
    return dh, dc * f + di * p_i + df * p_f, das.at[t].set(da)

  nothing = jnp.zeros_like(hs[0])
  _, _, das = lax.fori_loop(
    0, steps, step, (nothing, nothing, jnp.zeros_like(gates))
  )
  size = hs.shape[2]
  drecurrent = lax.dot_general(
    before(hs).reshape(-1, size),
    das.reshape(-1, 4 * size),
    (((0,), (0,)), ((), ())),
  )
  di, df, _, do = jnp.split(das, 4, axis=2)
  dpeephole = jnp.stack(
    [
      jnp.sum(da * c, axis=(0, 1))
      for da, c in ((di, cs_before), (df, cs_before), (do, cs))
    ]
  )
  return das, drecurrent, dpeephole, None


_lstm.defvjp(_lstm_fwd, _lstm_bwd)
