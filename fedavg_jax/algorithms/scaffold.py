"""SCAFFOLD: control variates against client drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import Ended
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

  def correct(updates, state, params=None, **seen):
    del params
    updates = jax.tree.map(
      lambda g, c_i, c: g - c_i + c,
      updates,
      seen['client'],
      seen['server'].control,
    )
    return updates, state

  def message(ended: Ended):
    scale = 1 / (ended.updates.astype(jnp.float32) * learning_rate)
    control = jax.tree.map(
      lambda c_i, c, delta: c_i - c - scale * delta,
      ended.client,
      ended.server.control,
      ended.delta,
    )
    change = jax.tree.map(jnp.subtract, control, ended.client)
    return (ended.delta, change), control

  def server_update(params, server, mean, share):
    mean_delta, mean_change = mean
    params = jax.tree.map(
      lambda x, d: x + server_learning_rate * d, params, mean_delta
    )
    control = jax.tree.map(
      lambda c, change: c + share * change, server.control, mean_change
    )
    return params, ScaffoldServer(control)

  def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)

  return Algorithm(
    client_optimizer=optax.chain(
      optax.GradientTransformationExtraArgs(optax.init_empty_state, correct),
      optax.sgd(learning_rate),
    ),
    message=message,
    server_init=lambda params: ScaffoldServer(zeros(params)),
    server_update=server_update,
    client_init=zeros,
  )
