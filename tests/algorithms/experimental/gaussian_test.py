"""Noise, clipping and the epsilon of Gaussian mechanisms are the equations'."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedavg_jax as fa
from fedavg_jax.algorithms.experimental import gaussian

own = fa.experimental


def delta_of(sigma, epsilon):
  """Returns delta of a Gaussian mechanism, Balle and Wang 2018, Theorem 8."""
  a, b = 1 / (2 * sigma), epsilon * sigma
  return stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b)


@pytest.mark.parametrize('sigma', [0.6, 1.0, 5.0])
def test_epsilon_is_that_of_the_theorem(sigma):
  epsilon = own.gaussian_epsilon(sigma, 1e-5)
  assert delta_of(sigma, epsilon) == pytest.approx(1e-5, rel=1e-4)
  # Sixteen releases need four times the noise.
  sixteen = own.gaussian_epsilon(4 * sigma, 1e-5, releases=16)
  assert sixteen == pytest.approx(epsilon, rel=1e-9)


def test_limits_of_epsilon():
  assert own.gaussian_epsilon(0.0, 1e-5) == math.inf
  assert own.gaussian_epsilon(0.0, 1e-5, releases=0) == 0
  # A client, or an example, that is replaced moves a sum by 2 S.
  once = own.gaussian_epsilon(1.5, 1e-5)
  assert own.local_epsilon(3.0, 1e-5, rounds=1) == once
  assert own.example_epsilon(3.0, 1e-5, rounds=1, epochs=1) == once
  twelve = own.gaussian_epsilon(1.5, 1e-5, releases=12)
  assert own.example_epsilon(3.0, 1e-5, rounds=4, epochs=3) == twelve
  assert own.local_epsilon(3.0, 1e-5, rounds=12) == twelve


@pytest.mark.parametrize('shape', [(3, 3, 512, 512), (2_000_001,), (9,)])
def test_many_small_numbers_beside_a_large_one_count(shape):
  """Norms would exceed the clip by 1e-4 if XLA alone added the squares."""
  x = np.full(shape, 2.4e-4, np.float32)
  x.flat[0] = 1.0
  clip = jax.jit(jax.vmap(lambda tree: gaussian.clipped(tree, 0.5)[0]))
  found = clip({'x': x[None], 'empty': np.zeros((1, 0), np.float32)})
  norm = np.linalg.norm(np.asarray(found['x'], np.float64))
  assert norm == pytest.approx(0.5, rel=1e-6)


def test_clipping_over_all_leaves():
  """Norms of 5 and 1e25 are cut to 2; one of at most the clip is not."""
  clip = jax.jit(lambda tree: gaussian.clipped(tree, 2.0)[0])
  tree = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(4.0)}
  for scale in (1.0, 2e24, 1e-30):
    scaled = jax.tree.map(lambda x, s=scale: x * s, tree)
    expected = min(1.0, 2 / (5 * scale))
    found = clip(scaled)
    np.testing.assert_allclose(found['a'], [3 * scale * expected, 0], rtol=1e-6)
    np.testing.assert_allclose(found['b'], 4 * scale * expected, rtol=1e-6)
  small = jax.tree.map(lambda x: x * 0.39, tree)
  jax.tree.map(np.testing.assert_array_equal, clip(small), small)
  for bad in (jnp.nan, jnp.inf):
    found = clip({'a': jnp.array([1.0, bad]), 'b': jnp.array(1.0)})
    assert not np.any(found['a']) and not np.any(found['b'])
  assert not np.any(clip(jax.tree.map(jnp.zeros_like, tree))['a'])


def test_noise_of_many_keys():
  """Leaves and keys are independent; variances are within 5 deviations."""
  tree = {'a': jnp.zeros(50), 'b': jnp.zeros((5, 10))}
  keys = jax.random.split(jax.random.key(0), 400)
  noise = jax.vmap(lambda key: gaussian.add_noise(key, tree, 1.5, 2.0))(keys)
  a, b = (np.asarray(noise[n]).reshape(400, 50) for n in 'ab')
  for values in (a, b, (a + b) / math.sqrt(2)):
    size = values.size
    assert abs(values.mean()) < 5 * 3 / math.sqrt(size)
    assert abs(values.var() / 9 - 1) < 5 * math.sqrt(2 / size)
  assert gaussian.add_noise(keys[0], tree, 0.0, 2.0) is tree


CASES = {
  'delta of one': (lambda: own.gaussian_epsilon(1.0, 1.0), 'delta = 1.0'),
  'delta of zero': (lambda: own.gaussian_epsilon(1.0, 0.0), 'delta = 0.0'),
  'negative noise': (
    lambda: own.gaussian_epsilon(-1.0, 0.1),
    'noise_multiplier = -1.0',
  ),
  'half a round': (
    lambda: own.local_epsilon(1.0, 0.1, rounds=0.5),
    'rounds = 0.5: must be a whole number',
  ),
  'no epochs': (
    lambda: own.example_epsilon(1.0, 0.1, rounds=1, epochs=0),
    'epochs = 0: must be at least 1',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  build, line = CASES[name]
  with pytest.raises(fa.InputError) as caught:
    build()
  assert line in str(caught.value) and '\n' not in str(caught.value)
