"""A federated algorithm: five pure functions of one client or the server.

The engine vmaps what is written for ONE client over lanes and takes the
weighted mean of the messages. `fedavg_jax/algorithms/` has one file for each
family; to make another, write such functions, or put some of them in the place
of `fedavg`'s: `fedavg(...)._replace(message=...)`.

The paper's letters: x global model, y_i local model, eta local learning rate,
K local updates of a client, delta = y_i - x.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.core.errors import InputError

Tree = Any


class Ended(NamedTuple):
  """A client at the end of its local epochs.

  Attributes:
    delta: its model minus the global one.
    global_params: the model it began with.
    server: what the server keeps, as it was when the round began.
    client: what the client keeps, as it was when the round began.
    updates: int32 scalar, local updates it has taken; at least one.
    round: int32 scalar, the round's number, from 1.
  """

  delta: Params
  global_params: Params
  server: Tree
  client: Tree
  updates: jax.Array
  round: jax.Array


class Algorithm(NamedTuple):
  """A federated algorithm; every function is pure, trees keep their shapes.

  Attributes:
    client_optimizer: turns a minibatch gradient into a local update. Its
      `update(grads, state, params, *, global_params, server, client, round)`
      may also see the global model, what server and client keep and the
      round's number, from 1. Its own state begins anew with every client of
      every round.
    message: (ended: Ended) -> (message, client). What a client sends, any tree
      of floating-point arrays, and what it keeps until it is drawn again.
    server_init: params -> what the server keeps, any tree. Numbers that are not
      finite, here or in what clients keep, count as divergence.
    server_update: (params, server, mean, share) -> (params, server). Takes the
      weighted mean of the messages, and the cohort's share of the weight of all
      clients.
    client_init: params -> what a client keeps before it was ever drawn, any
      tree; () if it keeps nothing.
  """

  client_optimizer: optax.GradientTransformation
  message: Callable[[Ended], tuple[Tree, Tree]]
  server_init: Callable[[Params], Tree]
  server_update: Callable[[Params, Tree, Tree, jax.Array], tuple[Params, Tree]]
  client_init: Callable[[Params], Tree]


def check_algorithm(algorithm: Algorithm, params: Params) -> None:
  """Raises InputError where a hook returns another tree than it must.

  Args:
    algorithm: any.
    params: a model or its shapes (`ShapeDtypeStruct`).
  """
  server = jax.eval_shape(algorithm.server_init, params)
  client = jax.eval_shape(algorithm.client_init, params)
  optimizer = optax.with_extra_args_support(algorithm.client_optimizer)
  state = jax.eval_shape(optimizer.init, params)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)

  number = jax.ShapeDtypeStruct((), jnp.int32)

  def update(grads, state, params, server, client, round):
    seen = {'server': server, 'client': client, 'round': round}
    return optimizer.update(grads, state, params, global_params=params, **seen)

  def message(*args):
    return algorithm.message(Ended(*args))

  updates, new_state = _call(
    'client_optimizer.update',
    update,
    params,
    state,
    params,
    server,
    client,
    number,
  )
  _must_match('client_optimizer.update', 'updates', updates, params)
  _must_match('client_optimizer.update', 'state', new_state, state)
  sent, new_client = _call(
    'message',
    message,
    params,
    params,
    server,
    client,
    number,
    number,
  )
  _must_match('message', 'client', new_client, client)
  for leaf in jax.tree.leaves(client):
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
      raise InputError(
        f'algorithm.client_init: keeps {leaf.dtype}, must keep numbers'
      )
  for leaf in jax.tree.leaves(sent):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f'algorithm.message: sends {leaf.dtype}, of which there is no mean;'
        ' must be floating-point arrays'
      )
  mean = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), sent
  )
  new_params, new_server = _call(
    'server_update', algorithm.server_update, params, server, mean, scalar
  )
  _must_match('server_update', 'params', new_params, params)
  _must_match('server_update', 'server', new_server, server)


def traffic(algorithm: Algorithm, params: Params) -> tuple[int, int]:
  """Bytes that a client receives at its begin and sends at its end.

  It receives the model, and what of the server's it looks at: of SCAFFOLD the
  control variate, but no momentum. It sends its message, in its own types.

  Args:
    algorithm: any.
    params: a model or its shapes.
  """
  server = jax.eval_shape(algorithm.server_init, params)
  client = jax.eval_shape(algorithm.client_init, params)
  optimizer = optax.with_extra_args_support(algorithm.client_optimizer)
  number = jax.ShapeDtypeStruct((), jnp.int32)

  def one_client(server, params, client, number):
    seen = {'server': server, 'client': client, 'round': number}
    updates, _ = optimizer.update(
      params, optimizer.init(params), params, global_params=params, **seen
    )
    message, _ = algorithm.message(
      Ended(params, params, server, client, number, number)
    )
    return message, updates

  traced = jax.make_jaxpr(one_client)(server, params, client, number).jaxpr
  used = {id(v) for eqn in traced.eqns for v in eqn.invars}
  used |= {id(v) for v in traced.outvars}
  leaves = jax.tree.leaves(server)
  seen = [
    leaf
    for leaf, v in zip(leaves, traced.invars, strict=False)
    if id(v) in used
  ]
  message, _ = jax.eval_shape(one_client, server, params, client, number)
  return num_bytes((params, seen)), num_bytes(message)


def _call(hook, fn, *args):
  """The shapes of a hook's two results."""
  results = jax.eval_shape(fn, *args)
  if not isinstance(results, tuple) or len(results) != 2:
    raise InputError(
      f'algorithm.{hook}: returns {type(results).__name__}, must return two'
      ' results'
    )
  return results


def _must_match(hook, what, got, expected) -> None:
  def describe(tree):
    return {
      jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  got_leaves, wanted = describe(got), describe(expected)
  for path in [*wanted, *got_leaves]:
    if got_leaves.get(path) != wanted.get(path):
      raise InputError(
        f'algorithm.{hook}: returns {what}{path} ='
        f' {got_leaves.get(path, "nothing")}, must be'
        f' {wanted.get(path, "nothing")}, as it went in'
      )
  form, wanted_form = jax.tree.structure(got), jax.tree.structure(expected)
  if form != wanted_form:
    raise InputError(
      f'algorithm.{hook}: returns {what} as {form}, must be {wanted_form}, as'
      ' it went in'
    )
