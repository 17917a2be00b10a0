"""FedProx: FedAvg with a proximal term in every local objective."""

import jax
import optax

from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.core import rules


def fedprox(
  mu: float,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """FedProx, Li et al. 2020: FedAvg on `loss + mu / 2 * |y - x|^2`."""
  return fedavg(optax.chain(proximal(mu), client_optimizer), server_optimizer)


def proximal(mu: float) -> optax.GradientTransformationExtraArgs:
  """Adds the gradient of `mu / 2 * |y - x|^2` to a client's gradient.

  Args:
    mu: in [0, 1e30].

  Raises:
    InputError: mu is out of range.
  """
  rules.check_real('mu', mu, 0, 1e30)

  def update(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    updates = jax.tree.map(
      lambda g, y, x: g + mu * (y - x), updates, params, context.global_params
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
