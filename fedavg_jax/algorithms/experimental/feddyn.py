"""Defines FedDyn, which corrects local objectives towards the global one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.model import Params
from fedavg_jax.core import rules


class FedDynServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    h: the weighted mean of all clients' corrections h_i, with the structure and
      shapes of the model.
  """

  h: Params


def feddyn(
  alpha: float, client_optimizer: optax.GradientTransformation
) -> Algorithm:
  """Returns FedDyn, Acar et al. 2021, Algorithm 1.

  Client i has a correction h_i and the server has h, all initially zero. With
  the cohort's share of all clients' weight::

    local update   gradient - h_i + alpha * (y_i - x), for client_optimizer
    client_finish  h_i <- h_i - alpha * (y_i - x)
    server_update  h   <- h - alpha * share * mean of (y_i - x)
                   x   <- mean of y_i - h / alpha

  At a fixed point the gradients of all clients sum to zero for any number of
  local epochs. The paper's means are uniform (`weighting='uniform'`) and its
  share is `|P| / m`; with weights, h is the weighted mean of all h_i.

  Args:
    alpha: the weight of the regulariser, in (0, 1e30]; the paper tunes it in
      {0.001, 0.01, 0.1}.
    client_optimizer: the optimizer of the corrected local objective,
      `optax.sgd(eta)` in the paper.

  Returns:
    The algorithm; a client sends its delta, and its state is h_i.

  Raises:
    InputError: alpha is out of range.

  >>> import fedavg_jax as fa
  >>> import optax
  >>> import numpy as np
  >>> dyn = fa.experimental.feddyn(0.1, optax.sgd(0.1))
  >>> dyn.server_init({'w': np.ones(2, np.float32)}).h['w'].tolist()
  [0.0, 0.0]
  """
  rules.check_positive('alpha', alpha, 1e30)

  def correct(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    updates = jax.tree.map(
      lambda g, h_i, y, x: g - h_i + alpha * (y - x),
      updates,
      context.client_state,
      params,
      context.global_params,
    )
    return updates, state

  def client_finish(result: ClientResult):
    h_i = jax.tree.map(
      lambda h_i, d: h_i - alpha * d, result.context.client_state, result.delta
    )
    return ClientOutput(result.delta, h_i)

  def server_update(params, server, mean_delta, context):
    h = jax.tree.map(
      lambda h, d: h - alpha * context.share * d, server.h, mean_delta
    )
    params = jax.tree.map(
      lambda x, d, h: x + d - h / alpha, params, mean_delta, h
    )
    return params, FedDynServer(h)

  def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)

  correction = optax.GradientTransformationExtraArgs(
    optax.init_empty_state, correct
  )
  return fedavg(
    optax.chain(correction, client_optimizer), optax.identity()
  )._replace(
    server_init=lambda params: FedDynServer(zeros(params)),
    server_update=server_update,
    client_init=lambda params, client_id: zeros(params),
    client_finish=client_finish,
  )
