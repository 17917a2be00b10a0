"""What the server makes of the messages of a cohort.

An aggregator adds messages up, in any order and on several devices at once: the
sums of devices are added. The running weighted mean needs no memory beside one
message; `gathered` has all of them side by side, for a rule that must see each.

Shape letters: M clients of the cohort, L clients that end at once.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import num_bytes

Tree = Any


class Aggregator(NamedTuple):
  """Sums over the clients of a cohort, and what the server gets of them.

  Attributes:
    init: (shapes of one message, M) -> sums over nobody; all zero, so that the
      sums of several devices can be added.
    add: (sums, messages [L, ...], weights [L], positions [L] in the cohort) ->
      sums. A client that does not count has the position M, behind the last
      one, and a message of zeros.
    result: (sums, weight) -> what `server_update` gets. The weight is that of
      all clients that count, one where nobody was left out.
    num_bytes: (shapes of one message, M) -> bytes of the sums.
  """

  init: Callable[[Tree, int], Tree]
  add: Callable[[Tree, Tree, Array, Array], Tree]
  result: Callable[[Tree, jax.Array], Tree]
  num_bytes: Callable[[Tree, int], int]


def weighted_mean() -> Aggregator:
  """Makes the mean of the messages by weight, in float32.

  Returns:
    An aggregator whose sums are as large as one message.
  """

  def init(message, size):
    del size
    return jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message)

  def add(sums, messages, weights, positions):
    del positions
    return jax.tree.map(
      lambda total, message: total + exact_tensordot(weights, message),
      sums,
      messages,
    )

  def result(sums, weight):
    return jax.tree.map(lambda total: total / weight, sums)

  return Aggregator(init, add, result, lambda message, size: num_bytes(message))


class Gathered(NamedTuple):
  """All messages of a cohort.

  Attributes:
    messages: [M, ...], zeros where no message has come.
    weights: [M] float32, which add up to one; 0 where no message has come.
  """

  messages: Tree
  weights: jax.Array


def gathered(rule: Callable[[Tree, jax.Array], Tree]) -> Aggregator:
  """Makes what a rule computes of all messages, which are held side by side.

  The memory of M messages is needed on every device: `Simulation` counts it
  when it chooses lanes.

  Args:
    rule: (messages [M, ...], weights [M]) -> aggregate. Of those from whom no
      message came the weight is 0 and the message zeros.

  Returns:
    An aggregator, such as of a median; this one leaves nobody out:

  >>> import jax, jax.numpy as jnp
  >>> def median(messages, weights):
  ...   return jax.tree.map(lambda m: jnp.median(m, axis=0), messages)
  >>> median = gathered(median)
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
  """[L] x [L, ...] -> [...], in float32 also where matrix units round more."""
  return jnp.tensordot(
    weights,
    stacked.astype(jnp.float32),
    1,
    precision=lax.Precision.HIGHEST,
  )
