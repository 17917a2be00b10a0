"""Defines q-FedAvg, which gives clients with a high loss more weight."""

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.losses import mean_gradient
from fedavg_jax.core import rules


def qfedavg(q: float, learning_rate: float) -> Algorithm:
  """Returns q-FedAvg, Li et al. 2020 (q-FFL), Algorithm 2.

  With F_i the client's loss at the global model and L = 1 / eta::

    D_i = L * (x - y_i)
    h_i = q * F_i^(q - 1) * |D_i|^2 + L * F_i^q
    x  <- x - (mean of F_i^q * D_i) / (mean of h_i)

  q = 0 is FedAvg up to rounding; a larger q weighs clients with a higher loss
  more. The paper's means are uniform (`weighting='uniform'`). The metric
  `train_loss` is the loss at the global model, which costs one more forward
  pass per local update.

  Args:
    q: the degree of fairness, in [0, 1e3]; the paper tunes it in
      {0.001, ..., 15}.
    learning_rate: the learning rate eta of the clients' SGD, in [1e-30, 1e30].

  Returns:
    The algorithm; a client sends (F_i^q D_i, h_i) and has no state.

  Raises:
    InputError: q or the learning rate is out of range.

  >>> import fedavg_jax as fa
  >>> fair = fa.experimental.qfedavg(1.0, 0.1)
  >>> fair.client_gradient is not None
  True
  """
  rules.check_real('q', q, 0, 1e3)
  rules.check_rate('learning_rate', learning_rate)

  def client_gradient(loss_fn, params, batch, context):
    _, gradient = mean_gradient(loss_fn, params, batch)
    # Every example is read once per epoch, so their mean is F_i.
    return loss_fn(context.global_params, batch), gradient

  def client_finish(result: ClientResult):
    loss = jnp.maximum(result.mean_loss, 1e-10)
    gradient = jax.tree.map(lambda d: -d / learning_rate, result.delta)
    square = sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient))
    h = q * loss ** (q - 1) * square + loss**q / learning_rate
    return ClientOutput((jax.tree.map(lambda g: loss**q * g, gradient), h))

  def server_update(params, server, mean, context):
    del context
    direction, h = mean
    return jax.tree.map(lambda x, d: x - d / h, params, direction), server

  return fedavg(optax.sgd(learning_rate), optax.identity())._replace(
    client_gradient=client_gradient,
    client_finish=client_finish,
    server_update=server_update,
  )
