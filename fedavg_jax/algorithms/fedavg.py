"""Federated Averaging, and FedOpt with any server optimizer of optax."""

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.core import rules


def fedavg(
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """Federated Averaging, and FedOpt with any server optimizer.

  McMahan et al. 2017; Reddi et al. 2021, Algorithm 1.

  Args:
    client_optimizer: `optax.sgd(eta)` in the paper.
    server_optimizer: takes the pseudo-gradient, the negative weighted mean of
      the deltas. `optax.sgd(1.0)` is FedAvg, with momentum FedAvgM;
      `adaptive` makes FedAdagrad, FedAdam and FedYogi.

  Returns:
    The algorithm; a client sends its delta and keeps nothing.
  """

  def server_update(params, opt_state, mean_delta, context):
    del context
    # Optimizers descend: the direction to go, delta, is minus a gradient.
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


def decayed_sgd(
  learning_rate: float | jax.Array, factor: float, rounds: int
) -> optax.GradientTransformationExtraArgs:
  """SGD whose rate is multiplied by a factor every so many rounds.

  Args:
    learning_rate: eta of the first rounds.
    factor: in (0, 1]; 1 keeps it.
    rounds: from one decay to the next, at least 1.

  Raises:
    InputError: a value breaks its rule.
  """
  rules.check_rate('learning_rate', learning_rate)
  rules.check_whole('rounds', rounds, 1)
  rules.check_positive('factor', factor, 1)

  def update(updates, state, params=None, **extra):
    del params
    decays = jnp.asarray((extra['context'].round - 1) // rounds, jnp.float32)
    rate = learning_rate * jnp.float32(factor) ** decays
    return jax.tree.map(lambda g: -rate * g, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
