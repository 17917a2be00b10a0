"""Defines compressors that send few bits of each entry: QSGD and signs."""

import jax
import jax.numpy as jnp

from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.core import rules

# The norm of a vector of zeros, to divide by.
_TINY = 1e-30


def qsgd(levels: int) -> Compressor:
  """Builds QSGD, which rounds magnitudes at random to multiples of norm / s.

  Alistarh et al. 2017, Section 3.1, with s levels and u uniform in [0, 1)::

    C(x)_i = |x| / s * sign(x_i) * floor(s |x_i| / |x| + u_i)
    omega  = min(d / s^2, sqrt(d) / s)
    bits   = 32 + d * ceil(log2(2 s + 1))

  It is unbiased. The code has a fixed length: the norm, and a signed level per
  entry; the paper's Elias code is shorter where most levels are 0.

  Args:
    levels: s, in [1, 65535]; 1, 7 and 127 need 2, 4 and 8 bits per entry.

  Returns:
    The compressor.

  Raises:
    InputError: the number of levels is out of range.

  >>> import fedavg_jax as fa
  >>> fa.experimental.qsgd(127).num_bits(1000)
  8032
  >>> fa.experimental.qsgd(0)
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: levels = 0: must be in [1, 65535]
  """
  levels = rules.check_whole('levels', levels, 1, 65535)

  def apply(key, x):
    norm = jnp.sqrt(jnp.sum(x * x))
    level = jnp.abs(x) * (levels / jnp.maximum(norm, _TINY))
    level = jnp.floor(level + jax.random.uniform(key, x.shape))
    # The norm's rounding must not add a level.
    return jnp.sign(x) * jnp.minimum(level, levels) * (norm / levels)

  return Compressor(
    apply,
    lambda d: 32 + d * (2 * levels).bit_length(),
    lambda d: min(d / levels**2, d**0.5 / levels),
  )


def scaled_sign() -> Compressor:
  """Builds the sign of each entry, times the mean magnitude.

  Bernstein et al. 2018 send signs, Karimireddy et al. 2019 with a scale and
  error feedback, without which it need not converge, because it is biased::

    C(x)_i = |x|_1 / d * sign(x_i), with sign(0) = 1
    |C(x) - x|^2 = |x|^2 - |x|_1^2 / d
    bits   = 32 + d

  Returns:
    The compressor.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> sign = fa.experimental.scaled_sign()
  >>> sign.apply(jax.random.key(0), jnp.array([3.0, -1.0])).tolist()
  [2.0, -2.0]
  """

  def apply(key, x):
    del key
    scale = jnp.sum(jnp.abs(x)) / x.size
    return jnp.where(x >= 0, scale, -scale)

  return Compressor(apply, lambda d: 32 + d, lambda d: 0.0)
