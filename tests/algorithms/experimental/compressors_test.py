"""Compressors follow their equations, and send what they say they send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import fedavg_jax as fa
from fedavg_jax.algorithms.experimental import rotation
from fedavg_jax.algorithms.experimental import sparsifiers
from tests.testing import compressors_twin as twin

own = fa.experimental
D, KEY = 100, jax.random.key(7)
# Lloyd 1982 and Max 1960 give these for two bits.
TWO_BITS = np.array([-1.5104, -0.4528, 0.4528, 1.5104])
ONE_BIT = np.sqrt(2 / np.pi) * np.array([-1, 1])
SCHEMES = {
  'qsgd 1': (own.qsgd(1), lambda key, x: twin.qsgd(key, x, 1)),
  'qsgd 7': (own.qsgd(7), lambda key, x: twin.qsgd(key, x, 7)),
  'top 0.1': (own.top_k(0.1), lambda key, x: twin.top_k(key, x, 10)),
  'top 1 of d': (own.top_k(1e-9), lambda key, x: twin.top_k(key, x, 1)),
  'random': (own.random_k(0.3), lambda key, x: twin.random_k(key, x, 30)),
  'sign': (own.scaled_sign(), twin.scaled_sign),
  'drive': (own.drive(), twin.drive),
  'eden 1': (own.eden(1), lambda key, x: twin.eden(key, x, ONE_BIT)),
  'eden 2': (own.eden(2), lambda key, x: twin.eden(key, x, TWO_BITS)),
}


def vectors():
  rng = np.random.default_rng(0)
  scales = np.array([[1.0], [1e-6], [1e4], [0.0], [np.nan]])
  x = rng.normal(size=(len(scales), D)) * scales
  x[0, ::3] = 0.0
  return np.float32(x)


@pytest.fixture(scope='module')
def decoded():
  """Decodes what all schemes send of the vectors, in one program."""

  @jax.jit
  def all_schemes(keys, x):
    return {n: jax.vmap(own.apply)(keys, x) for n, (own, _) in SCHEMES.items()}

  return jax.device_get(all_schemes(jax.random.split(KEY, 5), vectors()))


@pytest.mark.parametrize('name', SCHEMES)
def test_equations(name, decoded):
  keys = jax.random.split(KEY, 5)
  for i, row in enumerate(np.float64(vectors()[:4])):
    np.testing.assert_allclose(
      decoded[name][i],
      SCHEMES[name][1](keys[i], row),
      atol=2e-4 * np.abs(row).max(),
    )
  # The engine must see that a client is not finite.
  assert np.isnan(decoded[name][4]).any()


@pytest.mark.parametrize(
  ('name', 'error'),
  [
    ('top 0.1', lambda x: 0.9 * (x**2).sum()),
    ('sign', lambda x: (x**2).sum() - np.abs(x).sum() ** 2 / D),
    ('drive', lambda x: (x**2).sum()),
  ],
)
def test_biased_ones_are_contractions(name, error, decoded):
  for x, y in zip(np.float64(vectors()[:3]), decoded[name], strict=False):
    assert ((x - y) ** 2).sum() <= (1 + 1e-5) * error(x)


@pytest.mark.parametrize(
  ('compressor', 'variance'),
  [
    (own.qsgd(3), lambda x: _variance_of_qsgd(x, 3)),
    (own.random_k(0.25), lambda x: 3 * (x**2).sum()),
    (own.eden(1), lambda x: (np.pi / 2 - 1) * (x**2).sum()),
  ],
)
def test_unbiased(compressor, variance):
  """The mean over N keys deviates by the variance over N, and not by more.

  The squared deviation is a sum over d entries, and so near its expectation.
  """
  number = 400
  x = np.float32(np.random.default_rng(1).normal(size=1024))
  mean = jax.jit(
    lambda keys: jnp.mean(
      jax.lax.map(lambda key: compressor.apply(key, x), keys), axis=0
    )
  )(jax.random.split(KEY, number))
  x = np.float64(x)
  deviation = ((mean - x) ** 2).sum()
  expected = variance(x)
  assert 0.7 < deviation / (expected / number) < 1.4
  assert expected <= (1 + 1e-9) * compressor.omega(len(x)) * (x**2).sum()


def _variance_of_qsgd(x, levels):
  norm = np.sqrt((x**2).sum())
  p = np.abs(x) / norm * levels % 1
  return (p * (1 - p)).sum() * (norm / levels) ** 2


@pytest.mark.parametrize('n', [1, 2, 8, 128])
def test_hadamard(n):
  x = np.float32(np.random.default_rng(3).normal(size=n))
  h = scipy.linalg.hadamard(n)
  found = rotation.hadamard(jnp.asarray(x))
  np.testing.assert_allclose(found, h @ x, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(rotation.hadamard(found) / n, x, atol=1e-5)
  np.testing.assert_allclose((found**2).sum(), n * (x**2).sum(), rtol=1e-5)


def test_lloyd_max():
  np.testing.assert_allclose(rotation.lloyd_max(2), ONE_BIT)
  np.testing.assert_allclose(rotation.lloyd_max(4), TWO_BITS, atol=1e-4)
  for bits in (3, 4):
    centroids = rotation.lloyd_max(2**bits)
    np.testing.assert_allclose(
      twin.fixed_point(centroids), centroids, atol=1e-6
    )


def test_largest_are_those_of_a_stable_sort():
  """Numbers with many ties, of any length; k is any number up to d."""
  largest = jax.jit(sparsifiers.largest)
  for d in (1, 7, 40):
    order = np.random.default_rng(d).integers(0, 4, d).astype(np.int32)
    for k in range(1, d + 1, 1 + d // 8):
      expected = np.zeros(d, bool)
      expected[np.argsort(-order, kind='stable')[:k]] = True
      np.testing.assert_array_equal(largest(order, jnp.int32(k)), expected)


def test_bits():
  """A coder that writes each code as text of 0 and 1 needs as many."""
  x = np.float32(np.random.default_rng(4).normal(size=D))
  for levels in (1, 3, 4, 127, 128):
    y = twin.qsgd(KEY, x, levels)
    norm = np.sqrt((x**2).sum())
    numbers = np.rint(y / norm * levels).astype(int) + levels
    width = len(f'{2 * levels:b}')
    code = _real(norm) + ''.join(f'{n:0{width}b}' for n in numbers)
    assert len(code) == own.qsgd(levels).num_bits(D)
  for fraction in (0.01, 0.05, 0.5, 0.95, 1.0):
    y = twin.top_k(KEY, x, round(fraction * D))
    sent = ''.join(map(_real, y[y != 0]))
    listed = min(np.flatnonzero(y), np.flatnonzero(y == 0), key=len)
    positions = ''.join(f'{i:07b}' for i in listed)
    bitmap = ''.join('01'[int(flag)] for flag in y != 0)
    code = sent + min(positions, bitmap, key=len)
    assert len(code) == own.top_k(fraction).num_bits(D)
    assert len(sent) == own.random_k(fraction).num_bits(D)
  code = _real(np.abs(x).mean()) + ''.join('01'[int(v < 0)] for v in x)
  assert len(code) == own.scaled_sign().num_bits(D)
  signs = twin.rotation(KEY, D) @ x < 0
  code = _real(1.0) + ''.join('01'[int(flag)] for flag in signs)
  assert len(code) == own.drive().num_bits(D) == own.eden(1).num_bits(D)
  assert own.eden(4).num_bits(D) == 32 + 4 * len(signs)


def _real(value):
  """Writes a number as its 32 bits."""
  return f'{int(np.float32(value).view(np.uint32)):032b}'


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: own.qsgd(0), 'levels = 0: must be in'),
    (lambda: own.qsgd(2.5), 'levels = 2.5: must be a whole'),
    (lambda: own.top_k(0.0), 'fraction = 0.0: must be above 0'),
    (lambda: own.top_k(1.5), 'fraction = 1.5: must be in'),
    (lambda: own.random_k(float('nan')), 'fraction = nan: must be finite'),
    (lambda: own.random_k(jnp.float32(0.5)), 'fraction: is traced'),
    (lambda: own.eden(0), 'bits = 0: must be in'),
  ],
)
def test_bad_values(make, said):
  with pytest.raises(fa.InputError, match=said):
    make()
