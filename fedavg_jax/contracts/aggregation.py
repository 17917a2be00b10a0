"""Aggregates the messages of a cohort for the server.

An aggregator sums messages in any order and on several devices at once; the
sums of the devices are added. The weighted mean needs the memory of one
message; `gathered` stores all messages, for rules that need each of them.

Shape letters: M clients of the cohort, L clients that finish together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.core.trees import PyTree


class Aggregator(NamedTuple):
  """Defines how the messages of a cohort become one aggregate.

  Attributes:
    init: (shapes of one message, M) -> sums over no client, all zeros; the sums
      of several devices are added.
    add: (sums, messages [L, ...], weights [L], positions in the cohort [L]) ->
      sums. A client that does not count has position M, one past the last, and
      a message of zeros.
    result: (sums, weight) -> aggregate for `server_update`. The weight, [], is
      the sum over the clients that count; 1 if all of the cohort do.
    num_bytes: (shapes of one message, M) -> size of the sums, in bytes.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> message = jax.ShapeDtypeStruct((2,), jnp.float32)
  >>> mean = fa.weighted_mean()
  >>> mean.init(message, 3).shape, mean.num_bytes(message, 3)
  ((2,), 8)
  """

  init: Callable[[PyTree, int], PyTree]
  add: Callable[[PyTree, PyTree, Array, Array], PyTree]
  result: Callable[[PyTree, jax.Array], PyTree]
  num_bytes: Callable[[PyTree, int], int]


def weighted_mean() -> Aggregator:
  """Builds the weighted mean of the messages, in float32.

  Returns:
    An aggregator whose sums have the shapes of one message; all that this
    function returns are equal, so that wrappers recognise the mean.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> mean = fa.weighted_mean()
  >>> sums = mean.init(jax.ShapeDtypeStruct((), jnp.float32), 2)
  >>> sums = mean.add(
  ...     sums, jnp.array([1.0, 5.0]), jnp.array([0.75, 0.25]), jnp.arange(2))
  >>> float(mean.result(sums, jnp.ones(())))
  2.0
  >>> mean == fa.weighted_mean()
  True
  """
  return Aggregator(_no_sum, _add_weighted, _mean, _bytes_of_one)


def _no_sum(message: PyTree, size: int) -> PyTree:
  del size
  return jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message)


def _add_weighted(
  sums: PyTree, messages: PyTree, weights: Array, positions: Array
) -> PyTree:
  del positions
  return jax.tree.map(
    lambda total, message: total + exact_tensordot(weights, message),
    sums,
    messages,
  )


def _mean(sums: PyTree, weight: jax.Array) -> PyTree:
  return jax.tree.map(lambda total: total / weight, sums)


def _bytes_of_one(message: PyTree, size: int) -> int:
  del size
  return num_bytes(message)


class Gathered(NamedTuple):
  """Stores all messages of a cohort.

  Attributes:
    messages: [M, ...] messages, zeros for clients without one.
    weights: [M] float32 weights of the cohort's clients, 0 for clients without
      a message.
  """

  messages: PyTree
  weights: jax.Array


def gathered(rule: Callable[[PyTree, jax.Array], PyTree]) -> Aggregator:
  """Builds an aggregator that applies a rule to all messages of a cohort.

  It needs the memory of M messages on every device, which the engine takes into
  account when it chooses the number of lanes.

  Args:
    rule: (messages [M, ...], weights [M]) -> aggregate. The weights sum to 1; a
      client without a message has weight 0 and a message of zeros.

  Returns:
    An aggregator, such as a median, here of a cohort that reports completely:

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> def rule(messages, weights):
  ...   return jax.tree.map(lambda m: jnp.median(m, axis=0), messages)
  >>> median = fa.gathered(rule)
  >>> sums = median.init(jax.ShapeDtypeStruct((), jnp.float32), 3)
  >>> sums = median.add(
  ...     sums, jnp.array([5.0, 1.0, 9.0]), jnp.full(3, 1 / 3), jnp.arange(3))
  >>> float(median.result(sums, jnp.ones(())))
  5.0
  """

  def init(message, size):
    return Gathered(
      jax.tree.map(lambda m: jnp.zeros((size, *m.shape), m.dtype), message),
      jnp.zeros(size, jnp.float32),
    )

  def add(sums, messages, weights, positions):
    return jax.tree.map(
      lambda all_, new: all_.at[positions].set(new, mode='drop'),
      sums,
      Gathered(messages, weights),
    )

  def result(sums, weight):
    return rule(sums.messages, sums.weights / weight)

  return Aggregator(
    init, add, result, lambda message, size: size * num_bytes(message)
  )


def exact_tensordot(weights: Array, stacked: jax.Array) -> jax.Array:
  """Contracts [L] with [L, ...] to [...]; float32 on matrix units too."""
  return jnp.tensordot(
    weights,
    stacked.astype(jnp.float32),
    1,
    precision=lax.Precision.HIGHEST,
  )
