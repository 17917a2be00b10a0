"""Sums messages as secure aggregation does, in whole numbers modulo 2^b.

Secure aggregation (Bonawitz et al. 2017, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning") shows the server nothing but the sum of a
cohort's messages. Messages are therefore whole numbers of fixed size, and each
pair of clients adds a random mask to one message and subtracts it from the
other, modulo 2^b. This module has what that changes in training, the fixed
point and its overflow, and no cryptography.

Shape letters: M clients of the cohort, L clients that finish together.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.algorithms.experimental.robust import check_takes_the_mean
from fedavg_jax.contracts.aggregation import Aggregator
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

# Separates the key of the rounding from that of the wrapped `client_finish`.
_ROUNDING = 0x726F756E


class FixedPoint(NamedTuple):
  """Holds the message of a client, or the sum of several.

  Clients send whole numbers in float32, which are exact because they are at
  most 2^24; sums are uint32, modulo 2^32.

  Attributes:
    levels: the numbers of steps of the delta, with its structure and shapes.
    weight: the weight of the client.
    lost: 1 for a message that is not finite, which the server cannot decode.
  """

  levels: PyTree
  weight: Array
  lost: Array


class RingSum(Aggregator):
  """Marks an aggregator for which the server sees no single message."""

  __slots__ = ()


def secure_aggregation(
  algorithm: Algorithm,
  max_abs: Scalar,
  *,
  value_bits: int = 16,
  bits: int = 32,
  max_weight: int = 1,
  rounding: str = 'stochastic',
) -> Algorithm:
  """Sends deltas in fixed point and sums them modulo 2^b.

  Client k clips each number x of its delta to [-r, r], rounds it to a multiple
  of the step s, and sends its weight with it; the server decodes the sums::

    Q        = 2^(v - 1) - 1                levels on each side of 0
    s        = r / Q
    q_k      = round(x_k / s)               in [-Q, Q]
    w_k      = min(n_k, max_weight)
    sent_k   = (w_k q_k, w_k) mod 2^b
    mean     = s * (sum of w_k q_k) / (sum of w_k)

  with the sums modulo 2^b, read as numbers in [-2^(b - 1), 2^(b - 1)). They are
  exact if M * max_weight * Q < 2^(b - 1), which is checked. The mean is then
  that of the clipped deltas up to s / 2 with the nearest step, and up to s with
  stochastic rounding, which is unbiased; float32 adds its own rounding. Since
  whole numbers add exactly, order, lanes and devices do not change a bit.

  The weight travels in the message, as the server knows no other: with
  `max_weight = 1` all clients that report have equal weights, whatever
  `weighting` is.

  Args:
    algorithm: the algorithm to wrap, whose clients send one delta; its
      `aggregate` must be the weighted mean.
    max_abs: r, the largest absolute value of a number, in (0, 1e30]; the mean
      share of a delta's numbers beyond it is in the metrics, `info_clipped`.
    value_bits: v, the bits of a number before it is weighted, in [2, 25].
    bits: b, in [v, 32].
    max_weight: the largest weight of a client, in [1, 2^24].
    rounding: 'stochastic' or 'nearest'.

  Returns:
    The algorithm, whose `num_bytes` counts b bits for each number and for the
    weight. Keys and shares of the masks are not counted: they depend on M, not
    on the model. It refuses whatever needs single messages.

  Raises:
    InputError: a number is out of range, or the algorithm does not average
      single deltas; when a simulation is built, if sums could overflow.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> secure = fa.experimental.secure_aggregation(
  ...     fedavg, 1.0, value_bits=3, rounding='nearest')  # s = 1 / 3.
  >>> delta = jnp.array([0.3, -0.7, 9.0])
  >>> context = fa.ClientContext(delta, (), (), 0, 9, 1, jax.random.key(0))
  >>> result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
  >>> sent = secure.client_finish(result).message
  >>> sent.levels.tolist(), secure.num_bytes(sent)
  ([1.0, -2.0, 3.0], 16)
  """
  rules.check_positive('max_abs', max_abs, 1e30)
  rules.check_whole('value_bits', value_bits, 2, 25)
  rules.check_whole('bits', bits, value_bits, 32)
  rules.check_whole('max_weight', max_weight, 1, 2**24)
  if rounding not in ('stochastic', 'nearest'):
    raise InputError(
      f"rounding = {rounding!r}: must be 'stochastic' or 'nearest'"
    )
  if algorithm.num_bytes is not None:
    raise InputError(
      'algorithm.num_bytes: is set, so that messages are encoded already; must'
      ' be None for secure_aggregation'
    )
  check_takes_the_mean('secure_aggregation', algorithm)
  levels = 2 ** (value_bits - 1) - 1

  def client_finish(result: ClientResult):
    output = algorithm.client_finish(result)
    check_is_delta('secure_aggregation', output.message, result.delta)
    key = jax.random.fold_in(result.context.key, _ROUNDING)
    if rounding == 'nearest':
      key = None
    scaled = jax.tree.map(
      lambda x: x.astype(jnp.float32) * (levels / max_abs), output.message
    )
    weight = jnp.minimum(result.context.num_examples, max_weight)
    message = FixedPoint(
      _rounded(key, scaled, levels), jnp.float32(weight), jnp.float32(0)
    )
    clipped = _share_beyond(scaled, levels)
    return output._replace(
      message=message, info={**output.info, 'clipped': clipped}
    )

  def num_bytes(message: FixedPoint) -> int:
    numbers = sum(leaf.size for leaf in jax.tree.leaves(message.levels)) + 1
    return -(-bits * numbers // 8)

  return algorithm._replace(
    client_finish=client_finish,
    aggregate=_ring_sum(levels, max_abs, bits, max_weight),
    num_bytes=num_bytes,
  )


def pairwise_masks(key: Array, num_clients: int, size: int) -> jax.Array:
  """Draws the masks that clients add to their messages, modulo 2^32.

  The clients of a pair derive the same random numbers; the first adds and the
  second subtracts them. Each mask alone is uniformly random, and all of them
  sum to zero.

  Args:
    key: a random key; the clients of a pair would derive theirs from a key
      exchange.
    num_clients: M, at least 1.
    size: the number of a message's whole numbers.

  Returns:
    [M, size] uint32 masks.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> masks = fa.experimental.pairwise_masks(jax.random.key(0), 5, size=3)
  >>> jnp.sum(masks, axis=0, dtype=jnp.uint32).tolist()
  [0, 0, 0]
  """
  rules.check_whole('num_clients', num_clients, 1)
  rules.check_whole('size', size, 1)
  clients = jnp.arange(num_clients)

  def between(i, j):
    low, high = jnp.minimum(i, j), jnp.maximum(i, j)
    own = jax.random.fold_in(jax.random.fold_in(key, low), high)
    shared = jax.random.bits(own, (size,), jnp.uint32)
    signed = jnp.where(i < j, shared, jnp.uint32(0) - shared)
    return jnp.where(i == j, jnp.uint32(0), signed)

  def of_client(i):
    of_pairs = jax.vmap(lambda j: between(i, j))(clients)
    return jnp.sum(of_pairs, axis=0, dtype=jnp.uint32)

  return jax.vmap(of_client)(clients)


def check_no_single_messages(wrapper: str, algorithm: Algorithm) -> None:
  """Raises InputError if the server may see no single message."""
  if isinstance(algorithm.aggregate, RingSum):
    raise InputError(
      f'{wrapper}: needs the single messages of clients, of which'
      ' secure_aggregation shows the sum alone; must be wrapped before it'
    )


def _rounded(key: Array | None, scaled: PyTree, levels: int) -> PyTree:
  """Returns numbers in steps as whole numbers in [-levels, levels].

  Args:
    key: the key of stochastic rounding; None rounds to the nearest step.
    scaled: a tree of float32 arrays; numbers that are not finite become NaN.
    levels: Q.
  """
  leaves, structure = jax.tree.flatten(scaled)
  for i, leaf in enumerate(leaves):
    finite = jnp.isfinite(leaf)
    x = jnp.where(finite, jnp.clip(leaf, -levels, levels), jnp.nan)
    if key is None:
      leaves[i] = jnp.round(x)
      continue
    # The fraction is exact, which that of x + uniform is not for large x.
    low = jnp.floor(x)
    uniform = jax.random.uniform(jax.random.fold_in(key, i), x.shape)
    leaves[i] = low + (uniform < x - low).astype(jnp.float32)
  return structure.unflatten(leaves)


def _share_beyond(scaled: PyTree, levels: int) -> jax.Array:
  """Returns the share of numbers that are clipped, [] float32."""
  leaves = jax.tree.leaves(scaled)
  beyond = sum(
    (jnp.sum(jnp.abs(leaf) > levels, dtype=jnp.float32) for leaf in leaves),
    jnp.float32(0),
  )
  return beyond / max(sum(leaf.size for leaf in leaves), 1)


def _ring_sum(
  levels: int, max_abs: Scalar, bits: int, max_weight: int
) -> RingSum:
  """Builds the sum of `FixedPoint` messages modulo 2^bits.

  Args:
    levels: Q.
    max_abs: r.
    bits: b.
    max_weight: the largest weight of a client.
  """

  def init(message: FixedPoint, cohort: int) -> FixedPoint:
    largest = cohort * max_weight * levels
    if largest >= 2 ** (bits - 1):
      raise InputError(
        f'secure_aggregation: a sum over {cohort} clients of at most'
        f' {max_weight} * {levels} needs {largest.bit_length() + 1} bits; must'
        f' have at most bits = {bits}'
      )
    return jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.uint32), message)

  def add(sums: FixedPoint, messages: Any, weights: Array, positions: Array):
    del weights, positions  # Clients that do not count send zeros.
    weight = _ring(messages.weight)
    finite = jnp.ones(weight.shape, bool)
    for leaf in jax.tree.leaves(messages.levels):
      finite &= jnp.isfinite(leaf).all(axis=range(1, leaf.ndim))
    sent = FixedPoint(
      jax.tree.map(
        lambda q: _ring(q) * weight.reshape(-1, *(1,) * (q.ndim - 1)),
        messages.levels,
      ),
      weight,
      (~finite).astype(jnp.uint32),
    )
    return jax.tree.map(
      lambda total, own: total + jnp.sum(own, axis=0, dtype=jnp.uint32),
      sums,
      sent,
    )

  def result(sums: FixedPoint, weight: Array) -> PyTree:
    del weight
    count = jnp.maximum(sums.weight, 1).astype(jnp.float32)
    scale = jnp.where(sums.lost > 0, jnp.nan, jnp.float32(max_abs / levels))

    def decode(total):
      signed = lax.bitcast_convert_type(total << (32 - bits), jnp.int32)
      return (signed >> (32 - bits)).astype(jnp.float32) / count * scale

    return jax.tree.map(decode, sums.levels)

  def num_bytes(message: FixedPoint, cohort: int) -> int:
    del cohort
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(message))

  return RingSum(init, add, result, num_bytes)


def _ring(x: jax.Array) -> jax.Array:
  """Returns whole numbers in float32 as uint32, modulo 2^32."""
  return lax.bitcast_convert_type(x.astype(jnp.int32), jnp.uint32)
