"""SCAFFOLD: control variates against client drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.model import Params
from fedavg_jax.core import rules


class ScaffoldServer(NamedTuple):
  """Attributes: control: c, the weighted mean of all clients' c_i."""

  control: Params


def scaffold(
  learning_rate: float, server_learning_rate: float = 1.0
) -> Algorithm:
  """SCAFFOLD with option II, Karimireddy et al. 2020, Algorithm 1.

  A client keeps a control variate c_i, the server c; all begin at zero::

    local step   y_i <- y_i - eta * (gradient - c_i + c)
    at its end   c_i+ = c_i - c + (x - y_i) / (K * eta)
    server       x <- x + eta_g * mean of (y_i - x)
                 c <- c + share of the cohort * mean of (c_i+ - c_i)

  The paper's means are uniform (`weighting = 'uniform'`), its share `|S| / N`.
  So written, c stays the weighted mean of all c_i with any weighting.

  Args:
    learning_rate: eta.
    server_learning_rate: eta_g.

  Returns:
    The algorithm; a client sends (delta, c_i+ - c_i) and keeps c_i.

  Raises:
    InputError: a learning rate is out of range.
  """
  rules.check_rate('learning_rate', learning_rate)
  rules.check_rate('server_learning_rate', server_learning_rate)

  def correct(updates, state, params=None, **extra):
    del params
    context: ClientContext = extra['context']
    updates = jax.tree.map(
      lambda g, c_i, c: g - c_i + c,
      updates,
      context.client_state,
      context.server_state.control,
    )
    return updates, state

  def client_finish(result: ClientResult):
    context = result.context
    scale = 1 / (result.num_updates.astype(jnp.float32) * learning_rate)
    control = jax.tree.map(
      lambda c_i, c, delta: c_i - c - scale * delta,
      context.client_state,
      context.server_state.control,
      result.delta,
    )
    change = jax.tree.map(jnp.subtract, control, context.client_state)
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

  return Algorithm(
    client_optimizer=optax.chain(
      optax.GradientTransformationExtraArgs(optax.init_empty_state, correct),
      optax.sgd(learning_rate),
    ),
    server_init=lambda params: ScaffoldServer(zeros(params)),
    server_update=server_update,
    client_finish=client_finish,
    client_init=lambda params, client_id: zeros(params),
  )
