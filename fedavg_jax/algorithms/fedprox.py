"""Defines FedProx, which adds a proximal term to every local objective."""

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
  """Builds FedProx, FedAvg on the local objective `loss + mu / 2 |y - x|^2`.

  Li et al. 2020, "Federated Optimization in Heterogeneous Networks", with the
  proximal term as in `proximal`: y is the local model, x the global one.

  Args:
    mu: the weight of the proximal term, in [0, 1e30]; 0 is FedAvg.
    client_optimizer: the optimizer of local updates, as for `fedavg`.
    server_optimizer: the optimizer of the global model, as for `fedavg`.

  Returns:
    The algorithm; clients send their deltas and have no state.

  Raises:
    InputError: mu is out of range.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> algorithm = fa.fedprox(0.1, optax.sgd(0.1), optax.sgd(1.0))
  >>> isinstance(algorithm, fa.Algorithm)
  True
  """
  return fedavg(optax.chain(proximal(mu), client_optimizer), server_optimizer)


def proximal(mu: float) -> optax.GradientTransformationExtraArgs:
  """Builds a transformation that adds `mu (y - x)` to a client's gradient.

  It is the gradient of the proximal term `mu / 2 |y - x|^2` of Li et al. 2020,
  with the local model y and the global model x. Chain it before any client
  optimizer.

  Args:
    mu: the weight of the proximal term, in [0, 1e30].

  Returns:
    An optax transformation for the clients of an algorithm.

  Raises:
    InputError: mu is out of range.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> term = fa.proximal(mu=0.5)
  >>> x, y, grad = jnp.zeros(2), jnp.array([2.0, 4.0]), jnp.ones(2)
  >>> context = fa.ClientContext(x, (), (), 0, 9, 1, jax.random.key(0))
  >>> term.update(grad, term.init(y), y, context=context)[0].tolist()
  [2.0, 3.0]
  """
  rules.check_real('mu', mu, 0, 1e30)

  def update(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    updates = jax.tree.map(
      lambda g, y, x: g + mu * (y - x), updates, params, context.global_params
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
