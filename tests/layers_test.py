"""Every way to compute a layer against plain loops and against each other."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax import layers

METHODS = [m for m in layers.METHODS if m != 'lax']


def numpy_conv(x, kernel, padding):
  """Loops over everything, float64."""
  b, h, w, _ = x.shape
  k, _, _, o = kernel.shape
  x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  out = np.zeros((b, h + 2 * padding - k + 1, w + 2 * padding - k + 1, o))
  for i in range(out.shape[1]):
    for j in range(out.shape[2]):
      window = x[:, i : i + k, j : j + k, :]
      out[:, i, j] = np.tensordot(window, kernel, axes=3)
  return out


@pytest.mark.parametrize('method', layers.METHODS)
@pytest.mark.parametrize(
  ('size', 'k', 'padding'), [(7, 5, 2), (7, 5, 1), (6, 3, 0), (5, 1, 0)]
)
def test_conv_matches_loops(method, size, k, padding):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size, size + 1, 3))
  kernel = rng.normal(size=(k, k, 3, 4))
  got = layers.conv2d(
    jnp.float32(x), jnp.float32(kernel), padding=padding, method=method
  )
  np.testing.assert_allclose(got, numpy_conv(x, kernel, padding), atol=1e-4)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('k', 'padding'), [(5, 2), (5, 1), (3, 0)])
def test_conv_gradients_match_jax(method, k, padding):
  rng = np.random.default_rng(1)
  x = jnp.float32(rng.normal(size=(2, 8, 7, 3)))
  kernel = jnp.float32(rng.normal(size=(k, k, 3, 4)))
  weight = jnp.float32(
    rng.normal(size=(2, 9 + 2 * padding - k, 8 + 2 * padding - k, 4))
  )

  def value(x, kernel, method):
    out = layers.conv2d(x, kernel, padding=padding, method=method)
    return jnp.sum(jnp.sin(out) * weight)

  got = jax.grad(value, argnums=(0, 1))(x, kernel, method)
  expected = jax.grad(value, argnums=(0, 1))(x, kernel, 'lax')
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('clients', [1, 3])
@pytest.mark.parametrize('batched', [(0, 0), (None, 0), (0, None)])
def test_conv_of_many_clients_is_one_by_one(method, clients, batched):
  """Forward and gradients, also with shared images or a shared kernel."""
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(clients, 2, 6, 6, 2)))
  kernel = jnp.float32(rng.normal(size=(clients, 3, 3, 2, 3)))
  args = [
    a if b == 0 else a[0] for a, b in zip((x, kernel), batched, strict=True)
  ]

  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def one(x, kernel):
    out = layers.conv2d(x, kernel, padding=1, method=method)
    return jnp.sum(jnp.sin(out))

  got = jax.jit(jax.vmap(one, in_axes=batched))(*args)
  for c in range(clients):
    expected = one(
      *(a[c] if b == 0 else a for a, b in zip(args, batched, strict=True))
    )
    for a, b in zip(
      jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a[c], b, atol=1e-4)


@pytest.mark.parametrize('method', METHODS)
def test_conv_under_two_vmaps(method):
  """A sweep around the clients."""
  rng = np.random.default_rng(3)
  x = jnp.float32(rng.normal(size=(2, 3, 1, 5, 5, 1)))
  kernel = jnp.float32(rng.normal(size=(2, 3, 3, 3, 1, 2)))

  def grad(x, kernel):
    return jax.grad(
      lambda k: jnp.sum(layers.conv2d(x, k, padding=1, method=method) ** 2)
    )(kernel)

  got = jax.vmap(jax.vmap(grad))(x, kernel)
  for i in range(2):
    for j in range(3):
      np.testing.assert_allclose(
        got[i, j], grad(x[i, j], kernel[i, j]), atol=1e-4
      )


def test_no_gradient_of_the_data_is_computed():
  """Of the first layer's three convolutions, two are left after compilation."""

  def loss(kernel, x):
    return jnp.sum(layers.conv2d(x, kernel, padding=2, method='canonical') ** 2)

  x, kernel = jnp.ones((4, 8, 8, 1)), jnp.ones((5, 5, 1, 3))
  text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
  assert text.count(' convolution(') == 2


def test_conv_refuses_an_unknown_method():
  with pytest.raises(ValueError, match="method = 'fast'"):
    layers.conv2d(
      jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1)), padding=0, method='fast'
    )


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('size', [6, 7])
def test_max_pool_matches_reduce_window(padding, size):
  rng = np.random.default_rng(4)
  x = jnp.float32(rng.normal(size=(2, size, size, 3)) - 5)  # Negative too.

  def pooled(x):
    return lax.reduce_window(
      x,
      -jnp.inf,
      lax.max,
      (1, 2, 2, 1),
      (1, 2, 2, 1),
      ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)),
    )

  np.testing.assert_array_equal(layers.max_pool2(x, padding=padding), pooled(x))
  weight = jnp.float32(rng.normal(size=pooled(x).shape))
  got = jax.grad(
    lambda x: jnp.sum(layers.max_pool2(x, padding=padding) * weight)
  )(x)
  expected = jax.grad(lambda x: jnp.sum(pooled(x) * weight))(x)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_matmul_and_its_gradients():
  rng = np.random.default_rng(5)
  x = jnp.float32(rng.normal(size=(3, 4, 5)))
  kernel = jnp.float32(rng.normal(size=(3, 5, 2)))

  def value(product):
    return jax.vmap(
      jax.value_and_grad(
        lambda x, k: jnp.sum(jnp.sin(product(x, k))), argnums=(0, 1)
      )
    )(x, kernel)

  for a, b in zip(
    jax.tree.leaves(value(layers.matmul)),
    jax.tree.leaves(value(jnp.matmul)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
