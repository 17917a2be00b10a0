"""Defines rules that combine messages of which some are arbitrary.

A rule receives the messages of a cohort and their weights, as the rule of
`gathered` does: a client without a message has weight 0, and none of the rules
counts it. Distances are Euclidean, over all leaves of a message together.

Shape letters: N messages, n of them from clients that reported.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.algorithms.experimental.sorting import sort_rows
from fedavg_jax.contracts.aggregation import exact_tensordot
from fedavg_jax.contracts.model import Array
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

_TINY = np.finfo(np.float32).tiny


class Rule(NamedTuple):
  """Defines how `robust` combines the messages of a cohort.

  Attributes:
    name: the name of the rule in messages.
    combine: (messages [N, ...], weights [N], centre) -> aggregate. The weights
      sum to 1, and are 0 for clients without a message.
    least: the smallest number N of messages for which the rule is defined.
    has_centre: whether the rule needs the previous aggregate, its centre, which
      is then part of the server's state; the centre is () otherwise.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> largest = fa.experimental.Rule(
  ...     'largest', lambda messages, weights, centre: messages.max(axis=0))
  >>> float(largest.combine(jnp.array([1.0, 3.0]), jnp.full(2, 0.5), ()))
  3.0
  """

  name: str
  combine: Callable[[PyTree, jax.Array, PyTree], PyTree]
  least: int = 1
  has_centre: bool = False


def coordinate_median() -> Rule:
  """Builds the median of each coordinate, Yin et al. 2018, Definition 1.

  Of an even number of messages it is the mean of the two middle ones. Weights
  have no influence, as in the paper.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> median = fa.experimental.coordinate_median()
  >>> weights = jnp.array([0.2, 0.2, 0.6, 0.0])  # The last did not report.
  >>> float(median.combine(jnp.array([1.0, 2.0, 9.0, 0.0]), weights, ()))
  2.0
  """
  return Rule(
    'coordinate_median',
    lambda messages, weights, centre: _mean_without_ends(
      messages, weights, _middle
    ),
  )


def trimmed_mean(fraction: float) -> Rule:
  """Builds the trimmed mean of each coordinate, Yin et al. 2018, Definition 2.

  Of the n values of a coordinate the b = int(fraction * n) largest and the b
  smallest are left out; the others have equal weights, as in the paper. A
  fraction of 0 is the mean with equal weights.

  Args:
    fraction: the fraction beta that is left out on each side, in [0, 0.5).

  Raises:
    InputError: the fraction is out of range.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> trimmed = fa.experimental.trimmed_mean(0.25)
  >>> messages = jnp.array([1.0, -9.0, 2.0, 99.0])
  >>> float(trimmed.combine(messages, jnp.full(4, 0.25), ()))
  1.5
  """
  if rules.is_traced(fraction):
    raise InputError(
      'fraction: must be the same for all values of a sweep, whose program has'
      ' the number of messages that are left out'
    )
  rules.check_real('fraction', fraction, 0, 0.5)
  if fraction == 0.5:
    raise InputError(f'fraction = {fraction!r}: must be below 0.5')

  def trim(most: int) -> np.ndarray:
    return np.round(fraction * np.arange(most + 1), 6).astype(np.int32)

  return Rule(
    'trimmed_mean',
    lambda messages, weights, centre: _mean_without_ends(
      messages, weights, trim
    ),
  )


def krum(attackers: int, selected: int = 1) -> Rule:
  """Builds Krum, or multi-Krum, Blanchard et al. 2017, Section 4.

  The score of a message is the sum of its squared distances to the n - f - 2
  nearest others. Krum returns the message with the smallest score, multi-Krum
  the mean of some of these; weights have no influence, as in the paper. Of
  equal scores the first in the cohort counts. The distances take N passes over
  all messages.

  Args:
    attackers: the number f of arbitrary messages that it withstands, at least
      0; it needs 2 * f + 3 messages.
    selected: the number m of messages with the smallest scores to average; 1 is
      Krum. It needs f + m messages.

  Raises:
    InputError: a number is out of range.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> krum = fa.experimental.krum(attackers=1)
  >>> messages = jnp.array([1.0, 1.25, 1.5, 1.25, 99.0])
  >>> krum.least, float(krum.combine(messages, jnp.full(5, 0.2), ()))
  (5, 1.25)
  """
  rules.check_whole('attackers', attackers, 0)
  rules.check_whole('selected', selected, 1)

  def combine(messages, weights, centre):
    del centre
    present = weights > 0
    scores = _krum_scores(messages, present, attackers)
    best = jnp.lexsort((scores, ~present))[:selected]
    chosen = jnp.where(present, jnp.zeros_like(weights).at[best].set(1.0), 0.0)
    return _weighted_sum(chosen / jnp.maximum(chosen.sum(), 1.0), messages)

  least = max(2 * attackers + 3, attackers + selected)
  return Rule('krum', combine, least)


def geometric_median(iterations: int = 8, smoothing: float = 1e-6) -> Rule:
  """Builds the geometric median of RFA, Pillutla et al. 2022, Algorithm 2.

  The point with the smallest weighted sum of distances to the messages z_i is
  approximated by smoothed Weiszfeld iterations that start at their mean::

    b_i = weight_i / max(smoothing, |v - z_i|)
    v  <- sum of b_i * z_i / sum of b_i

  Args:
    iterations: the number of iterations, in [1, 1000].
    smoothing: the smallest distance nu that an iteration divides by, in
      (0, 1e30].

  Raises:
    InputError: a number is out of range.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> median = fa.experimental.geometric_median(iterations=40)
  >>> messages = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [9.0, -9.0]])
  >>> point = median.combine(messages, jnp.full(4, 0.25), ())
  >>> bool(jnp.allclose(point, 1.0, atol=1e-3))
  True
  """
  rules.check_whole('iterations', iterations, 1, 1000)
  rules.check_positive('smoothing', smoothing, 1e30)

  def combine(messages, weights, centre):
    del centre

    def iterate(_, v):
      near = weights / jnp.maximum(_norms(_minus(messages, v)), smoothing)
      return _weighted_sum(near / jnp.maximum(near.sum(), _TINY), messages)

    mean = _weighted_sum(weights, messages)
    return lax.fori_loop(0, iterations, iterate, mean)

  return Rule('geometric_median', combine)


def centred_clipping(max_norm: float, iterations: int = 1) -> Rule:
  """Builds centred clipping, Karimireddy et al. 2021, Algorithm 2.

  It starts at the previous round's aggregate v, initially zero, and gives all
  messages z_i equal weights, as the paper does::

    v <- v + mean of (z_i - v) * min(1, max_norm / |z_i - v|)

  Args:
    max_norm: the radius tau around v that bounds the influence of a message, in
      (0, 1e30].
    iterations: the number L of iterations of a round, in [1, 1000].

  Raises:
    InputError: a number is out of range.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> clipping = fa.experimental.centred_clipping(max_norm=2.0)
  >>> messages = jnp.array([1.0, 1.0, 1.0, -99.0])
  >>> float(clipping.combine(messages, jnp.full(4, 0.25), jnp.float32(1.0)))
  0.5
  """
  rules.check_positive('max_norm', max_norm, 1e30)
  rules.check_whole('iterations', iterations, 1, 1000)

  def combine(messages, weights, centre):
    present = (weights > 0).astype(jnp.float32)
    shares = present / jnp.maximum(present.sum(), 1.0)

    def iterate(_, v):
      away = _minus(messages, v)
      scale = jnp.minimum(1.0, max_norm / jnp.maximum(_norms(away), _TINY))
      return jax.tree.map(jnp.add, v, _weighted_sum(shares * scale, away))

    return lax.fori_loop(0, iterations, iterate, centre)

  return Rule('centred_clipping', combine, has_centre=True)


def _middle(most: int) -> np.ndarray:
  """Returns how many values lie on each side of the middle, for n <= most."""
  return np.maximum(np.arange(most + 1, dtype=np.int32) - 1, 0) // 2


def _mean_without_ends(
  messages: PyTree, weights: Array, trim: Callable[[int], np.ndarray]
) -> PyTree:
  """Averages each coordinate without its b smallest and b largest values.

  Args:
    messages: [N, ...] messages.
    weights: [N] weights, 0 for clients without a message.
    trim: N -> [N + 1] int32, the number b for n = 0, ..., N messages.
  """
  present = weights > 0
  number = present.sum(dtype=jnp.int32)
  b = jnp.asarray(trim(weights.size))[number]
  rank = jnp.arange(weights.size, dtype=jnp.int32)
  kept = (rank >= b) & (rank < number - b)
  count = jnp.maximum(number - 2 * b, 1).astype(jnp.float32)

  def mean(leaf):
    # Infinity sorts the rows of clients without a message to the end.
    leaf = sort_rows(jnp.where(_rows(present, leaf), leaf, jnp.inf))
    return jnp.sum(jnp.where(_rows(kept, leaf), leaf, 0.0), axis=0) / count

  return jax.tree.map(mean, messages)


def _krum_scores(messages: PyTree, present: Array, attackers: int) -> jax.Array:
  """Returns the sum of squared distances to the n - f - 2 nearest, [N]."""
  # Differences, not products: those of near messages would cancel beside far
  # ones. A row at a time needs the memory of the messages once more.
  squares = lax.map(
    lambda one: _squares(_minus(messages, one)), messages
  )  # [N, N]
  size = present.size
  others = present[None] & ~jnp.eye(size, dtype=bool)
  nearest = jnp.sort(jnp.where(others, squares, jnp.inf), axis=1)
  number = present.sum(dtype=jnp.int32)
  # Fewer messages than 2 f + 3 void the guarantee; one neighbour is the least.
  count = jnp.minimum(jnp.maximum(number - attackers - 2, 1), number - 1)
  near = jnp.arange(size, dtype=jnp.int32) < count
  return jnp.sum(jnp.where(near[None], nearest, 0.0), axis=1)


def _minus(messages: PyTree, point: PyTree) -> PyTree:
  """Returns messages [N, ...] minus one point."""
  return jax.tree.map(lambda m, p: m - p[None], messages, point)


def _squares(messages: PyTree) -> jax.Array:
  """Returns the squared norm of each message, [N]."""
  return functools.reduce(
    jnp.add,
    [
      jnp.sum(leaf * leaf, axis=range(1, leaf.ndim))
      for leaf in jax.tree.leaves(messages)
    ],
  )


def _norms(messages: PyTree) -> jax.Array:
  """Returns the norm of each message, [N]."""
  return jnp.sqrt(_squares(messages))


def _weighted_sum(weights: Array, messages: PyTree) -> PyTree:
  return jax.tree.map(lambda m: exact_tensordot(weights, m), messages)


def _rows(vector: Array, leaf: Array) -> jax.Array:
  """Returns a vector [N] with as many axes as a leaf [N, ...]."""
  return jnp.reshape(vector, (-1, *(1,) * (leaf.ndim - 1)))
