"""Lets a wrapped algorithm see its own part of a state.

A wrapper that keeps something beside an algorithm's state, as the attribute
`own` of a larger one, gives its hooks back the state that they know.
"""

from collections.abc import Callable

import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientResult


def with_own_server_state(algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with client hooks that see `server_state.own`."""
  return _with_context(
    algorithm, lambda c: c._replace(server_state=c.server_state.own)
  )


def with_own_client_state(algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with client hooks that see `client_state.own`."""
  return _with_context(
    algorithm, lambda c: c._replace(client_state=c.client_state.own)
  )


def _with_context(
  algorithm: Algorithm, own: Callable[[ClientContext], ClientContext]
) -> Algorithm:
  """Returns the algorithm, all of whose client hooks see another context."""
  optimizer = optax.with_extra_args_support(algorithm.client_optimizer)

  def update(updates, state, params=None, **extra):
    extra['context'] = own(extra['context'])
    return optimizer.update(updates, state, params, **extra)

  def client_finish(result: ClientResult):
    return algorithm.client_finish(result._replace(context=own(result.context)))

  def seen(hook: Callable | None) -> Callable | None:
    # The context is the last argument of each other hook.
    return hook and (lambda *args: hook(*args[:-1], own(args[-1])))

  return algorithm._replace(
    client_optimizer=optax.GradientTransformationExtraArgs(
      optimizer.init, update
    ),
    client_start=seen(algorithm.client_start),
    client_gradient=seen(algorithm.client_gradient),
    client_finish=client_finish,
    own_model=seen(algorithm.own_model),
  )
