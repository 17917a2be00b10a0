"""Canonical convolutions and their gradients are those of plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.models import canonical
from tests.testing import convolutions

WINDOWS = [
  # Sizes of image and kernel, padding, strides.
  ((7, 8), (5, 5), ((2, 2), (2, 2)), (1, 1)),
  ((8, 7), (2, 4), ((0, 1), (1, 2)), (1, 1)),
  ((7, 8), (3, 3), ((1, 1), (0, 1)), (2, 2)),
  ((9, 8), (2, 3), ((0, 0), (0, 0)), (3, 2)),  # The last rows are never read.
  ((6, 5), (1, 1), ((0, 0), (0, 0)), (2, 2)),
  ((5, 4), (2, 1), ((3, 4), (2, 0)), (1, 1)),  # More padding than kernel.
  ((3, 3), (3, 3), ((0, 0), (0, 0)), (1, 1)),
]


def draw(rng, size, kernel, padding, strides, lead=()):
  """Returns images, a kernel and a cotangent of the output."""
  x = rng.normal(size=(*lead, 2, *size, 3))
  weights = rng.normal(size=(*lead, *kernel, 3, 4))
  shape = [
    (size[i] + sum(padding[i]) - kernel[i]) // strides[i] + 1 for i in range(2)
  ]
  return x, weights, rng.normal(size=(*lead, 2, *shape, 4))


def value_and_gradients(window, x, kernel, g):
  out, pull = jax.vjp(lambda *a: canonical.conv(*a, window), x, kernel)
  return out, *pull(g)


@pytest.mark.parametrize(('size', 'kernel', 'padding', 'strides'), WINDOWS)
def test_values_and_gradients_are_those_of_loops(
  size, kernel, padding, strides
):
  x, weights, g = draw(np.random.default_rng(0), size, kernel, padding, strides)
  window = canonical.Window(padding, strides)
  got = value_and_gradients(window, *map(jnp.float32, (x, weights, g)))
  expected = (
    convolutions.conv(x, weights, padding, strides),
    *convolutions.conv_gradients(x, weights, g, padding, strides),
  )
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize('batched', [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize('clients', [3, 1])
def test_clients_are_independent(clients, batched):
  """Strides, shared images and a shared kernel are included."""
  case = WINDOWS[2]
  rng = np.random.default_rng(1)
  x, weights, g = map(jnp.float32, draw(rng, *case, lead=(clients,)))
  operands = [
    a if axis == 0 else a[0]
    for a, axis in zip((x, weights), batched, strict=True)
  ]
  one = functools.partial(value_and_gradients, canonical.Window(*case[2:]))
  got = jax.jit(jax.vmap(one, in_axes=(*batched, 0)))(*operands, g)
  for c in range(clients):
    expected = one(
      *(
        a[c] if axis == 0 else a
        for a, axis in zip(operands, batched, strict=True)
      ),
      g[c],
    )
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_allclose(a[c], b, atol=1e-4)


def test_negative_padding_crops():
  """The image is smaller then; what is cropped has no gradient."""
  rng = np.random.default_rng(2)
  x, weights, g = map(
    jnp.float32, draw(rng, (7, 8), (3, 3), ((-1, 0), (1, -2)), (1, 1))
  )
  window = canonical.Window(((-1, 0), (1, -2)))
  got = value_and_gradients(window, x, weights, g)
  smaller = canonical.Window(((0, 0), (1, 0)))
  out, dx, dkernel = value_and_gradients(smaller, x[:, 1:, :-2], weights, g)
  dx = jnp.pad(dx, ((0, 0), (1, 0), (0, 2), (0, 0)))
  for a, b in zip(got, (out, dx, dkernel), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_convolution_is_canonical():
  """Both gradients are included, with strides and a kernel per client."""
  case = WINDOWS[2]
  x, weights, g = map(
    jnp.float32, draw(np.random.default_rng(3), *case, lead=(2,))
  )
  one = functools.partial(value_and_gradients, canonical.Window(*case[2:]))
  text = jax.jit(jax.vmap(one)).lower(x, weights, g).as_text()
  plain = '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'
  assert text.count('stablehlo.convolution') == text.count(plain) == 3
  assert 'feature_group_count = 2' not in text
