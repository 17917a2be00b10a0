"""Defines aggregation that withstands some arbitrary messages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.experimental.contexts import with_own_server_state
from fedavg_jax.algorithms.experimental.robust_rules import Rule
from fedavg_jax.contracts.aggregation import Aggregator
from fedavg_jax.contracts.aggregation import Gathered
from fedavg_jax.contracts.aggregation import weighted_mean
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree


class RobustServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    own: the server state of the wrapped algorithm.
    centre: the previous aggregate, with the structure and shapes of the model,
      for a rule that needs it; () otherwise.
  """

  own: PyTree
  centre: PyTree


def robust(algorithm: Algorithm, rule: Rule, bucket_size: int = 1) -> Algorithm:
  """Replaces the mean of the messages by a rule that withstands attackers.

  With a bucket size s above 1 the rule gets the means of s clients each, with
  equal weights, Karimireddy et al. 2022, Algorithm 1: clients with different
  data then look more alike, one attacker spoils one bucket, and the memory is
  that of M / s messages. The order of the cohort, a random one in every round,
  decides the buckets. Clients that did not report count nowhere.

  Args:
    algorithm: the algorithm to wrap, whose clients send one delta; its
      `aggregate` must be the weighted mean.
    rule: the rule, such as `coordinate_median()`.
    bucket_size: the number s of clients in a bucket, at least 1.

  Returns:
    The algorithm, whose server state is a `RobustServer`. It needs the memory
    of M / s messages on every device.

  Raises:
    InputError: the algorithm does not send single deltas to be averaged, or the
      cohort has too few messages for the rule.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> median = fa.experimental.robust(
  ...     fedavg, fa.experimental.coordinate_median())
  >>> fa.experimental.robust(median, fa.experimental.krum(attackers=1))
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: robust: the algorithm aggregates its \
messages in its own way, must take their weighted mean
  """
  rules.check_whole('bucket_size', bucket_size, 1)
  check_takes_the_mean('robust', algorithm)

  def server_init(params):
    centre = ()
    if rule.has_centre:
      centre = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    return RobustServer(algorithm.server_init(params), centre)

  def server_update(params, server, gathered, context):
    messages, weights = gathered
    one = jax.tree.map(lambda all_: all_[0], messages)
    check_is_delta('robust', one, params, whole=rule.has_centre)
    if weights.size < rule.least:
      raise InputError(
        f'robust: a cohort of {context.clients.size} in buckets of'
        f' {bucket_size} has {weights.size} messages; must have at least'
        f' {rule.least} for this {rule.name}'
      )
    aggregate = rule.combine(messages, weights, server.centre)
    params, own = algorithm.server_update(
      params, server.own, aggregate, context
    )
    return params, RobustServer(own, aggregate if rule.has_centre else ())

  return with_own_server_state(algorithm)._replace(
    aggregate=buckets(bucket_size),
    server_init=server_init,
    server_update=server_update,
  )


def bound_norms(algorithm: Algorithm, max_norm: float) -> Algorithm:
  """Makes the server clip each message before the mean, Sun et al. 2019.

  Unlike `clip_delta`, which clients apply to their own deltas, it also bounds
  what attackers send. It needs no more memory than the mean.

  Args:
    algorithm: the algorithm to wrap; its `aggregate` must be the weighted mean.
    max_norm: the largest norm of a message, over all leaves, in (0, 1e30].

  Raises:
    InputError: `max_norm` is out of range, or the algorithm does not take the
      weighted mean; when a simulation is built, if a message has more than a
      delta.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> mean = fa.experimental.bound_norms(fedavg, max_norm=1.0).aggregate
  >>> sums = mean.init(jax.ShapeDtypeStruct((), jnp.float32), 2)
  >>> sums = mean.add(
  ...     sums, jnp.array([0.5, 99.0]), jnp.full(2, 0.5), jnp.arange(2))
  >>> float(mean.result(sums, jnp.ones(())))
  0.75
  """
  rules.check_positive('max_norm', max_norm, 1e30)
  check_takes_the_mean('bound_norms', algorithm)
  clip, mean = optax.clip_by_global_norm(max_norm), algorithm.aggregate

  def add(sums, messages, weights, positions):
    clipped, _ = jax.vmap(lambda m: clip.update(m, optax.EmptyState()))(
      messages
    )
    return mean.add(sums, clipped, weights, positions)

  def server_update(params, server, aggregate, context):
    check_is_delta('bound_norms', aggregate, params)
    return algorithm.server_update(params, server, aggregate, context)

  return algorithm._replace(
    aggregate=mean._replace(add=add), server_update=server_update
  )


class Buckets(NamedTuple):
  """Holds sums over the clients of each bucket.

  Attributes:
    messages: [N, ...] float32 sums of messages.
    weights: [M] float32 weights of the cohort's clients, 0 for clients without
      a message.
  """

  messages: PyTree
  weights: jax.Array


def buckets(size: int) -> Aggregator:
  """Builds an aggregator that returns the means of `size` clients each.

  Args:
    size: the number s of clients in a bucket; the last one may have fewer. With
      1 it returns the messages themselves.

  Returns:
    An aggregator whose result is `Gathered`: N = ceil(M / s) means over the
    clients of a bucket that reported, and the sums of their weights.
  """

  def number(cohort):
    return -(-cohort // size)

  def init(message, cohort):
    return Buckets(
      jax.tree.map(
        lambda m: jnp.zeros((number(cohort), *m.shape), jnp.float32), message
      ),
      jnp.zeros(cohort, jnp.float32),
    )

  def add(sums, messages, weights, positions):
    # A client that does not count sends zeros, wherever they are added.
    return Buckets(
      jax.tree.map(
        lambda total, new: total.at[positions // size].add(
          new.astype(jnp.float32), mode='drop'
        ),
        sums.messages,
        messages,
      ),
      sums.weights.at[positions].set(weights, mode='drop'),
    )

  def result(sums, weight):
    cohort = sums.weights.size
    weights = jnp.pad(
      sums.weights / weight, (0, number(cohort) * size - cohort)
    ).reshape(-1, size)
    count = jnp.maximum((weights > 0).sum(axis=1), 1).astype(jnp.float32)
    return Gathered(
      jax.tree.map(
        lambda total: total / count.reshape(-1, *(1,) * (total.ndim - 1)),
        sums.messages,
      ),
      weights.sum(axis=1),
    )

  def num_bytes(message, cohort):
    return 4 * number(cohort) * sum(m.size for m in jax.tree.leaves(message))

  return Aggregator(init, add, result, num_bytes)


def check_takes_the_mean(wrapper: str, algorithm: Algorithm) -> None:
  """Raises InputError unless an algorithm takes the weighted mean."""
  if algorithm.aggregate != weighted_mean():
    raise InputError(
      f'{wrapper}: the algorithm aggregates its messages in its own way, must'
      ' take their weighted mean'
    )
