"""Defines FedExP, whose server steps are longer when deltas disagree."""

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.core import rules


def fedexp(
  client_optimizer: optax.GradientTransformation, epsilon: float = 1e-3
) -> Algorithm:
  """Returns FedExP, Jhunjhunwala et al. 2023, Equation 6.

  The server's learning rate follows from the round's deltas::

    eta_g = max(1, mean of |delta_i|^2 / (2 * (|mean delta|^2 + epsilon)))
    x    <- x + eta_g * mean of delta_i

  With equal deltas eta_g is 1 and the result is bit for bit that of FedAvg. The
  paper reports the mean of the last two models, because single ones oscillate.

  Args:
    client_optimizer: the optimizer of local updates, `optax.sgd(eta)` in the
      paper.
    epsilon: the constant that bounds eta_g, in (0, 1e30]; the paper tunes it in
      {1e-3, ..., 10}.

  Returns:
    The algorithm; a client sends `(delta_i, |delta_i|^2)` and has no state.

  Raises:
    InputError: epsilon is out of range.

  >>> import fedavg_jax as fa
  >>> import optax
  >>> fa.experimental.fedexp(optax.sgd(0.1), epsilon=0.0)
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: epsilon = 0.0: must be above 0
  """
  rules.check_positive('epsilon', epsilon, 1e30)

  def client_finish(result: ClientResult):
    return ClientOutput((result.delta, _squared_norm(result.delta)))

  def server_update(params, server, mean, context):
    del context
    mean_delta, mean_square = mean
    rate = mean_square / (2 * (_squared_norm(mean_delta) + epsilon))
    rate = jnp.maximum(rate, 1.0)
    return jax.tree.map(lambda x, d: x + rate * d, params, mean_delta), server

  return fedavg(client_optimizer, optax.identity())._replace(
    client_finish=client_finish, server_update=server_update
  )


def _squared_norm(tree) -> jax.Array:
  return sum(
    (jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)), jnp.float32(0)
  )
