"""Defines compressors that send some of a vector's entries: top-k, random-k."""

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.contracts.model import Array
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

_ROWS = 8


def top_k(fraction: float) -> Compressor:
  """Builds top-k, which sends the k entries of largest magnitude.

  Aji and Heafield 2017; with memory Stich et al. 2018. It is biased, so that it
  needs error feedback to converge::

    C(x)_i = x_i if |x_i| is among the k largest, else 0
    |C(x) - x|^2 <= (1 - k / d) |x|^2
    bits   = 32 k + min(d, min(k, d - k) * ceil(log2 d))

  The positions are a bitmap, or a list of the entries sent or of those not
  sent. Of equal magnitudes the first are sent.

  Args:
    fraction: k / d, in (0, 1]; k is `max(int(fraction * d), 1)`. 1 sends all,
      bit for bit.

  Returns:
    The compressor.

  Raises:
    InputError: the fraction is out of range.

  >>> import fedavg_jax as fa
  >>> fa.experimental.top_k(0.01).num_bits(10_000)  # 100 of 32 + 14 bits.
  4600
  >>> fa.experimental.top_k(0.0)
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: fraction = 0.0: must be above 0
  """
  _check(fraction)

  def apply(key, x):
    del key
    # Magnitudes have the order of their bits, as integers; NaN is the largest.
    order = lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
    return jnp.where(largest(order, num_sent(fraction, x.size)), x, 0.0)

  def num_bits(d):
    k = num_sent(fraction, d)
    return 32 * k + min(d, min(k, d - k) * (d - 1).bit_length())

  return Compressor(apply, num_bits, lambda d: 0.0)


def random_k(fraction: float) -> Compressor:
  """Builds random-k, which sends k entries drawn without replacement.

  Stich et al. 2018; Wangni et al. 2018. It is unbiased::

    C(x)_i = d / k * x_i if i is drawn, else 0
    omega  = d / k - 1
    bits   = 32 k

  The server derives the positions from the key. Error feedback divides by
  1 + omega = d / k, so that the entries are sent as they are.

  Args:
    fraction: k / d, in (0, 1], as for `top_k`.

  Returns:
    The compressor.

  Raises:
    InputError: the fraction is out of range.

  >>> import fedavg_jax as fa
  >>> half = fa.experimental.random_k(0.5)
  >>> half.num_bits(100), half.omega(100)
  (1600, 1.0)
  """
  _check(fraction)

  def apply(key, x):
    k = num_sent(fraction, x.size)
    draws = jax.random.bits(key, x.shape) >> 1
    drawn = largest(draws.astype(jnp.int32), k)
    return jnp.where(drawn, x * jnp.float32(x.size / k), 0.0)

  return Compressor(
    apply,
    lambda d: 32 * num_sent(fraction, d),
    lambda d: d / num_sent(fraction, d) - 1,
  )


def num_sent(fraction: float, d: int) -> int:
  """Returns k, the number of entries that are sent of d.

  The product is rounded to six decimals before it is truncated, as in a
  cohort's size.
  """
  return max(int(round(fraction * d, 6)), 1)


def _check(fraction: float) -> None:
  if rules.is_traced(fraction):
    raise InputError(
      'fraction: is traced; must be a number, because the size of a message'
      ' depends on it'
    )
  rules.check_positive('fraction', fraction, 1)


def largest(order: Array, k: int) -> Array:
  """Returns which k entries are largest; of equal ones the first, [d] bool.

  It counts instead of sorting: each bit of the threshold is a pass over the
  entries, of which at most 31 are needed.

  Args:
    order: [d] int32, at least 0; d is below 2**30.
    k: the number of entries, in [1, d].
  """
  d = order.size
  # Rows add up entry by entry, which a CPU vectorizes, unlike a plain sum.
  order = jnp.pad(order, (0, -d % _ROWS), constant_values=-1).reshape(_ROWS, -1)
  cut, found = _threshold(order, k, d)
  # More than k are found if several equal the threshold; the last are left out.
  place = lax.iota(jnp.int32, order.size).reshape(order.shape) + 1
  place = jnp.where(order == cut, place, 0)
  last, _ = _threshold(place, found - k, d)
  return ((order >= cut) & (place < last)).reshape(-1)[:d]


def _threshold(order: Array, k: int | Array, d: int) -> tuple[Array, Array]:
  """Returns the largest t with k or more of d entries >= t, and how many.

  If exactly k are at least t for a smaller t too, any such t is returned.
  """

  def more(carry):
    bit, _, found = carry
    return (bit > 0) & (found != k)

  def set_bit(carry):
    bit, cut, found = carry
    flags = (order >= cut + bit).astype(jnp.int32)
    count = jnp.sum(sum(flags[i] for i in range(_ROWS)))
    enough = count >= k
    return (
      bit >> 1,
      jnp.where(enough, cut + bit, cut),
      jnp.where(enough, count, found),
    )

  bit, cut, found = jnp.int32(2**30), jnp.int32(0), jnp.int32(d)
  _, cut, found = lax.while_loop(more, set_bit, (bit, cut, found))
  return cut, found
