"""Defines MimeLite, whose clients apply the server's momentum unchanged."""

from typing import NamedTuple

import optax

from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.core.trees import PyTree


class MimeLiteServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    statistics: the state s of the base optimizer, such as its momentum.
    optimizer: the state of the server optimizer.
  """

  statistics: PyTree
  optimizer: PyTree


def mimelite(
  base_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """Returns MimeLite, Karimireddy et al. 2021 (Mime), Algorithm 1.

  The statistics s of an optimizer, such as its momentum, belong to the server.
  They are the same in all local updates of a round, and follow the gradients at
  the global model. For a base optimizer (gradient, s) -> (update, s+)::

    local update   y_i <- y_i + update(gradient, s)       s does not change
    client_finish  c_i  = full-batch gradient of client i at x
    server_update  s   <- s+(mean of c_i, s)
                   x   <- x + mean of (y_i - x), by server_optimizer

  c_i is summed over the first local epoch, `Algorithm.full_gradient`, at the
  cost of a second gradient there. Mime also corrects each local gradient by the
  mean of c_i, which must be known before the training: that takes two rounds of
  the same cohort, a recipe in docs/bring_your_own.md.

  Args:
    base_optimizer: the optimizer of local updates whose state the server keeps,
      such as `optax.sgd(eta, momentum=0.9)` or `fa.adaptive('adam', eta, ...)`.
      With Adam, a local update also counts its own gradient in both moments.
    server_optimizer: the optimizer of the global model, `optax.sgd(1.0)` in the
      paper.

  Returns:
    The algorithm; a client sends (delta_i, c_i), receives s, and has no state.
    With a base optimizer without state it is FedAvg.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> lite = fa.experimental.mimelite(
  ...     optax.sgd(0.1, momentum=0.9), optax.sgd(1.0))
  >>> lite.full_gradient
  True
  """
  base = optax.with_extra_args_support(base_optimizer)

  def update(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    server: MimeLiteServer = context.server_state
    updates, _ = base.update(updates, server.statistics, params, **extra)
    return updates, state

  plain = fedavg(
    optax.GradientTransformationExtraArgs(optax.init_empty_state, update),
    server_optimizer,
  )

  def client_finish(result: ClientResult):
    return ClientOutput((result.delta, result.full_gradient))

  def server_update(params, server, mean, context):
    mean_delta, gradient = mean
    _, statistics = base.update(
      gradient, server.statistics, params, context=context
    )
    params, optimizer = plain.server_update(
      params, server.optimizer, mean_delta, context
    )
    return params, MimeLiteServer(statistics, optimizer)

  def server_init(params):
    return MimeLiteServer(base.init(params), server_optimizer.init(params))

  return plain._replace(
    server_init=server_init,
    client_finish=client_finish,
    server_update=server_update,
    full_gradient=True,
  )
