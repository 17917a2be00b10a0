"""Defines compressors that rotate a vector at random: DRIVE and EDEN."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.contracts.model import Array
from fedavg_jax.core import rules

_TINY = 1e-30


def drive() -> Compressor:
  """Builds DRIVE, the signs of a randomly rotated vector.

  Vargaftik et al. 2021, with the scale of least error::

    R x  = H (D x) / sqrt(n)    H Hadamard's matrix, D random signs
    C(x) = |R x|_1 / n * R^-1 sign(R x)
    |C(x) - x|^2 = |x|^2 - |R x|_1^2 / n, near (1 - 2 / pi) |x|^2
    bits = 32 + n

  x is padded with zeros to a power of two, n. The server derives D from the
  key. This scale is biased; `eden(1)` is the paper's unbiased one.

  Returns:
    The compressor.

  >>> import fedavg_jax as fa
  >>> fa.experimental.drive().num_bits(1000)
  1056
  """
  return _rotated(1, unbiased=False)


def eden(bits: int = 1) -> Compressor:
  """Builds EDEN, a randomly rotated vector with the best centroids.

  Vargaftik et al. 2022. The entries of a rotated vector are nearly normal, so
  that their quantizer Q is Lloyd and Max's of N(0, 1) for any x::

    q    = Q(sqrt(n) / |x| * R x)    R as for `drive`
    C(x) = |x|^2 / <R x, q> * R^-1 q
    omega near 1 / E Q(z)^2 - 1 for z of N(0, 1): pi / 2 - 1 for 1 bit
    bits = 32 + n * bits

  It is unbiased for uniform rotations; with H it is nearly, for large n.

  Args:
    bits: the bits per entry, in [1, 4].

  Returns:
    The compressor.

  Raises:
    InputError: the number of bits is out of range.

  >>> import fedavg_jax as fa
  >>> one, two = fa.experimental.eden(1), fa.experimental.eden(2)
  >>> one.num_bits(1024), round(one.omega(1024), 3), round(two.omega(1024), 3)
  (1056, 0.571, 0.133)
  """
  return _rotated(rules.check_whole('bits', bits, 1, 4), unbiased=True)


def _rotated(bits: int, *, unbiased: bool) -> Compressor:
  centroids = lloyd_max(2**bits)
  cuts = (centroids[1:] + centroids[:-1]) / 2
  second_moment = float(np.diff(_below(cuts)) @ centroids**2)

  def apply(key, x):
    n = padded(x.size)
    signs = random_signs(key, n)
    rotated = hadamard(signs * jnp.pad(x, (0, n - x.size))) / math.sqrt(n)
    square = jnp.sum(x * x)
    z = rotated * (math.sqrt(n) / jnp.maximum(jnp.sqrt(square), _TINY))
    q = _nearest(z, centroids, cuts)
    along = jnp.sum(rotated * q)
    scale = (
      square / jnp.maximum(along, _TINY) if unbiased else along / jnp.sum(q * q)
    )
    return (signs * hadamard(q) * (scale / math.sqrt(n)))[: x.size]

  return Compressor(
    apply,
    lambda d: 32 + padded(d) * bits,
    lambda d: 1 / second_moment - 1 if unbiased else 0.0,
  )


def random_signs(key: Array, n: int) -> Array:
  """Draws 1 or -1 n times, [n] float32, from the bits of n / 32 integers.

  >>> import jax
  >>> sorted(set(random_signs(jax.random.key(0), 64).tolist()))
  [-1.0, 1.0]
  """
  words = jax.random.bits(key, (-(-n // 32), 1), jnp.uint32)
  bits = (words >> np.arange(32, dtype=np.uint32)[None]) & 1
  return 1 - 2 * bits.reshape(-1)[:n].astype(jnp.float32)


def padded(d: int) -> int:
  """Returns n, the smallest power of two that is at least d.

  >>> padded(5), padded(8)
  (8, 8)
  """
  return 1 << (d - 1).bit_length()


def hadamard(x: Array) -> Array:
  """Returns H x of Hadamard's matrix in Sylvester's order, by log2 n passes.

  Args:
    x: [n] float32, n a power of two.

  >>> import jax.numpy as jnp
  >>> hadamard(jnp.array([1.0, 2.0, 3.0, 4.0])).tolist()
  [10.0, -2.0, -4.0, 0.0]
  """
  half = 1
  while half < x.size:
    pairs = x.reshape(-1, 2, half)
    first, second = pairs[:, 0], pairs[:, 1]
    x = jnp.stack([first + second, first - second], axis=1)
    half *= 2
  return x.reshape(-1)


def lloyd_max(size: int) -> np.ndarray:
  """Returns the centroids with the least mean square error for N(0, 1).

  Lloyd 1982, Max 1960: each is the mean of the values nearest to it.

  Args:
    size: the number of centroids, even.

  Returns:
    [size] float64, ascending.

  >>> lloyd_max(2).round(3).tolist()  # sqrt(2 / pi)
  [-0.798, 0.798]
  """
  centroids = np.linspace(-3, 3, size)
  for _ in range(2000):
    cuts = (centroids[1:] + centroids[:-1]) / 2
    density = np.exp(-(cuts**2) / 2) / math.sqrt(2 * math.pi)
    density = np.concatenate([[0.0], density, [0.0]])
    centroids = -np.diff(density) / np.diff(_below(cuts))
  return centroids


def _below(cuts: np.ndarray) -> np.ndarray:
  """Returns the probabilities of N(0, 1) below the cuts, from 0 to 1."""
  below = [(1 + math.erf(cut / math.sqrt(2))) / 2 for cut in cuts]
  return np.array([0.0, *below, 1.0])


def _nearest(z: Array, centroids: np.ndarray, cuts: np.ndarray) -> Array:
  """Returns the centroid nearest to each entry, [n] float32."""
  q = jnp.full_like(z, centroids[0])
  for cut, centroid in zip(cuts, centroids[1:], strict=True):
    q = jnp.where(z >= cut, jnp.float32(centroid), q)
  return q
