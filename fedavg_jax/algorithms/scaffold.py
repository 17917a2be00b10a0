"""Defines SCAFFOLD, which corrects client drift with control variates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.coefficients import with_coefficients
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.model import Params
from fedavg_jax.core import choices
from fedavg_jax.core import rules


class ScaffoldServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    control: the control variate c, the weighted mean of all clients' c_i, with
      the structure and shapes of the model.
  """

  control: Params


def scaffold(
  learning_rate: float,
  server_learning_rate: float = 1.0,
  *,
  momentum: float | None = None,
  control: str = 'updates',
) -> Algorithm:
  """Builds SCAFFOLD, Karimireddy et al. 2020, Algorithm 1.

  Each client has a control variate c_i and the server has c, all initially
  zero. With K local updates and the cohort's share of all clients' weight::

    local update   y_i <- y_i - eta * (gradient - c_i + c)
    client_finish  c_i+ = c_i - c + (x - y_i) / (K * eta)      option II
                   c_i+ = full-batch gradient of client i at x  option I
    server_update  x <- x + eta_g * mean of (y_i - x)
                   c <- c + share * mean of (c_i+ - c_i)

  The paper's means are uniform (`weighting = 'uniform'`) and its share is
  `|S| / N`. In this form, c is the weighted mean of all c_i for any weighting.
  With momentum, K is the sum of the coefficients with which the gradients enter
  `y_i - x`, so that c_i+ remains a weighted mean of the client's gradients.

  Args:
    learning_rate: the clients' learning rate eta, in [1e-30, 1e30].
    server_learning_rate: the server's learning rate eta_g, in [1e-30, 1e30].
    momentum: the momentum of the clients' SGD, in [0, 1); None is plain SGD.
    control: the origin of c_i+, 'updates' (option II) or 'gradient' (option I,
      which costs a second gradient in the first local epoch).

  Returns:
    The algorithm; a client sends (delta, c_i+ - c_i), and its state is c_i.

  Raises:
    InputError: an argument is out of range.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> algorithm = fa.scaffold(learning_rate=0.1)
  >>> params = {'w': jnp.ones(2)}
  >>> algorithm.client_init(params, 0)['w'].tolist()
  [0.0, 0.0]
  >>> algorithm.server_init(params).control['w'].tolist()
  [0.0, 0.0]
  """
  rules.check_rate('learning_rate', learning_rate)
  rules.check_rate('server_learning_rate', server_learning_rate)
  choices.check_choice('control', control, choices.CONTROLS)
  sgd = optax.with_extra_args_support(optax.sgd(learning_rate))
  if momentum is not None:
    rules.check_fraction('momentum', momentum)
    sgd = with_coefficients(optax.sgd(learning_rate, momentum))

  def update(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    updates = jax.tree.map(
      lambda g, c_i, c: g - c_i + c,
      updates,
      context.client_state,
      context.server_state.control,
    )
    return sgd.update(updates, state, params, **extra)

  def mean_gradient(result: ClientResult):
    """Returns c_i+, option II."""
    context = result.context
    if momentum is None:
      scale = 1 / (result.num_updates.astype(jnp.float32) * learning_rate)
    else:
      scale = -1 / result.optimizer_state.moved
    return jax.tree.map(
      lambda c_i, c, delta: c_i - c - scale * delta,
      context.client_state,
      context.server_state.control,
      result.delta,
    )

  def client_finish(result: ClientResult):
    control = result.full_gradient if full else mean_gradient(result)
    change = jax.tree.map(jnp.subtract, control, result.context.client_state)
    return ClientOutput((result.delta, change), control)

  def server_update(params, server, mean, context):
    mean_delta, mean_change = mean
    params = jax.tree.map(
      lambda x, d: x + server_learning_rate * d, params, mean_delta
    )
    control = jax.tree.map(
      lambda c, change: c + context.share * change, server.control, mean_change
    )
    return params, ScaffoldServer(control)

  def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)

  full = control == 'gradient'
  return Algorithm(
    client_optimizer=optax.GradientTransformationExtraArgs(sgd.init, update),
    server_init=lambda params: ScaffoldServer(zeros(params)),
    server_update=server_update,
    client_finish=client_finish,
    client_init=lambda params, client_id: zeros(params),
    full_gradient=full,
  )
