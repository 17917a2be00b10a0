"""Defines FedNova, which normalises deltas by the clients' local work."""

import jax
import optax

from fedavg_jax.algorithms.coefficients import with_coefficients
from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult


def fednova(
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """Returns FedNova, Wang et al. 2020, Equations 6 and 7.

  A client's delta is a weighted sum of its gradients, `-eta * sum_j a_j g_j`.
  In FedAvg, clients with more local updates or with momentum have more
  influence, and the model converges to the optimum of another objective.
  FedNova divides each delta by the client's sum of coefficients and multiplies
  the mean by the mean of these sums::

    A_i  = -eta * sum_j a_j       (a_j = 1 for SGD: A_i = -eta * steps)
    x   <- x + (mean of A_i) * (mean of delta_i / A_i)

  A_i is computed by running the client optimizer on gradients of 1, so that
  momentum, `proximal` and decaying learning rates need no separate formulas.

  Args:
    client_optimizer: an optimizer that is linear in the gradients, such as
      `optax.sgd(eta, momentum=0.9)` or a chain of `proximal(mu)` and SGD.
    server_optimizer: the optimizer of the global model; its gradient is the
      negative combined delta. `optax.sgd(1.0)` is FedNova; its momentum is
      FedNova's server momentum.

  Returns:
    The algorithm; a client sends (delta_i / A_i, A_i), one number more than in
    FedAvg, and has no state. With equal A_i it is FedAvg up to rounding.

  >>> import fedavg_jax as fa
  >>> import optax
  >>> nova = fa.experimental.fednova(optax.sgd(0.1), optax.sgd(1.0))
  >>> nova.client_finish.__name__
  'client_finish'
  """

  def client_finish(result: ClientResult):
    moved = result.optimizer_state.moved
    normalised = jax.tree.map(lambda d: d / moved, result.delta)
    return ClientOutput((normalised, moved))

  base = fedavg(with_coefficients(client_optimizer), server_optimizer)

  def server_update(params, server, mean, context):
    direction, moved = mean
    delta = jax.tree.map(lambda d: moved * d, direction)
    return base.server_update(params, server, delta, context)

  return base._replace(client_finish=client_finish, server_update=server_update)
