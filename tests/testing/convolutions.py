"""Computes convolutions in plain loops, and makes small models with some."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa


def conv(x, kernel, padding, strides=(1, 1)):
  """Computes a convolution in loops, in float64.

  Args:
    x: images [B, H, W, C].
    kernel: weights [h, w, C, O].
    padding: (before, after) of rows and of columns, none negative.
    strides: (rows, columns).

  Returns:
    Images [B, H', W', O].

  """
  x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
  (h, w, _, o), (s, t) = kernel.shape, strides
  rows, columns = (x.shape[1] - h) // s + 1, (x.shape[2] - w) // t + 1
  out = np.zeros((len(x), rows, columns, o))
  for i in range(rows):
    for j in range(columns):
      window = x[:, s * i : s * i + h, t * j : t * j + w]
      out[:, i, j] = np.tensordot(window, kernel, axes=3)
  return out


def conv_gradients(x, kernel, g, padding, strides=(1, 1)):
  """Computes the gradients of sum(g * conv) in loops, in float64.

  Args:
    x: images [B, H, W, C].
    kernel: weights [h, w, C, O].
    g: a cotangent of the output's shape.
    padding: (before, after) of rows and of columns, none negative.
    strides: (rows, columns).

  Returns:
    The gradients of x and of the kernel.

  """
  padded = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
  dx, dkernel = np.zeros_like(padded), np.zeros(kernel.shape)
  (h, w, _, _), (s, t) = kernel.shape, strides
  for i in range(g.shape[1]):
    for j in range(g.shape[2]):
      part = np.s_[:, s * i : s * i + h, t * j : t * j + w]
      dx[part] += np.einsum('bo,hwco->bhwc', g[:, i, j], kernel)
      dkernel += np.einsum('bhwc,bo->hwco', padded[part], g[:, i, j])
  (top, _), (left, _) = padding
  rows, columns = x.shape[1:3]
  return dx[:, top : top + rows, left : left + columns], dkernel


class Net(nn.Module):
  """Has two convolutions, each with a max pool after it, and 3 classes."""

  groups: int = 1

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.Conv(4, (2, 2), strides=2, feature_group_count=self.groups)(x)
    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2), 'SAME')
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


def model(**options) -> fa.Model:
  """Makes the model of the network, for images of 8 x 8 x 1 bytes."""
  net = Net(**options)

  def init(key):
    return net.init(key, jnp.zeros((1, 8, 8, 1)))['params']

  def apply(params, x) -> jax.Array:
    return net.apply({'params': params}, x.astype(jnp.float32) / 255)

  return fa.Model('net', init, apply)


def examples() -> tuple[fa.Examples, list[np.ndarray]]:
  """Returns 23 images for the network, and their division among 4 clients."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (23, 8, 8, 1)).astype(np.uint8)
  y = rng.integers(0, 3, 23).astype(np.int32)
  return fa.Examples(x, y), np.split(rng.permutation(23), [3, 8, 18])
