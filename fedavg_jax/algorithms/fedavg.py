"""Defines Federated Averaging and FedOpt, with any optimizer of optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.core import rules


def fedavg(
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """Builds Federated Averaging, or FedOpt with another server optimizer.

  McMahan et al. 2017, Algorithm 1; Reddi et al. 2021, Algorithm 1.

  Args:
    client_optimizer: the optimizer of local updates, `optax.sgd(eta)` in the
      papers; each client of each round starts with a new state.
    server_optimizer: the optimizer of the global model; it gets the
      pseudo-gradient, the negative weighted mean of the deltas. With
      `optax.sgd(1.0)` this is FedAvg, with momentum FedAvgM; `adaptive` builds
      the optimizers of FedAdagrad, FedAdam and FedYogi.

  Returns:
    The algorithm; clients send their deltas and have no state.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> algorithm = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> x = jnp.array([1.0, 2.0])
  >>> mean_delta = jnp.array([1.0, -1.0])
  >>> state = algorithm.server_init(x)
  >>> algorithm.server_update(x, state, mean_delta, None)[0].tolist()
  [2.0, 1.0]
  """

  def server_update(params, opt_state, mean_delta, context):
    del context
    # Optimizers descend, so they take the negative delta as a gradient.
    pseudo_gradient = jax.tree.map(jnp.negative, mean_delta)
    updates, opt_state = server_optimizer.update(
      pseudo_gradient, opt_state, params
    )
    return optax.apply_updates(params, updates), opt_state

  return Algorithm(
    client_optimizer=client_optimizer,
    server_init=server_optimizer.init,
    server_update=server_update,
  )


def scheduled_sgd(
  schedule: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Builds client SGD whose learning rate is a function of the round.

  The learning rate of round t is `schedule(t - 1)`, for t from 1; it is
  constant within a round. On clients `optax.sgd(schedule)` would count the
  local updates of one round instead; on the server it counts rounds, with
  `schedule(0)` in round 1 too.

  Args:
    schedule: the function from a number of rounds to a learning rate, such as
      those of optax.

  Returns:
    An optax transformation for the clients of an algorithm; with momentum it
    is `optax.chain(optax.trace(0.9), fa.scheduled_sgd(schedule))`.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> sgd = fa.scheduled_sgd(optax.linear_schedule(1.0, 0.0, 10))
  >>> context = fa.ClientContext({}, (), (), 0, 9, 6, jax.random.key(0))
  >>> grad = jnp.array([2.0, 4.0])
  >>> sgd.update(grad, sgd.init(grad), context=context)[0].tolist()
  [-1.0, -2.0]
  """

  def update(updates, state, params=None, **extra):
    del params
    rate: Any = schedule(extra['context'].round - 1)
    return jax.tree.map(lambda g: -rate * g, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def decayed_sgd(
  learning_rate: float | jax.Array, factor: float, rounds: int
) -> optax.GradientTransformationExtraArgs:
  """Builds client SGD whose learning rate decays every `rounds` rounds.

  The learning rate of round t is `learning_rate * factor^floor((t - 1) /
  rounds)`, for t from 1; it is constant within a round.

  Args:
    learning_rate: the initial learning rate eta, in [1e-30, 1e30].
    factor: the factor of each decay, in (0, 1]; 1 for a constant rate.
    rounds: the number of rounds between decays, at least 1.

  Returns:
    An optax transformation for the clients of an algorithm.

  Raises:
    InputError: an argument is out of range.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> sgd = fa.decayed_sgd(1.0, factor=0.5, rounds=10)
  >>> context = fa.ClientContext({}, (), (), 0, 9, 11, jax.random.key(0))
  >>> grad = jnp.array([2.0, 4.0])
  >>> update, _ = sgd.update(grad, sgd.init(grad), context=context)
  >>> bool(jnp.allclose(update, jnp.array([-1.0, -2.0])))
  True
  """
  rules.check_rate('learning_rate', learning_rate)
  rules.check_whole('rounds', rounds, 1)
  rules.check_positive('factor', factor, 1)

  def schedule(count):
    decays = jnp.asarray(count // rounds, jnp.float32)
    return learning_rate * jnp.float32(factor) ** decays

  return scheduled_sgd(schedule)
