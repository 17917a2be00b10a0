"""FedAvg and its relatives, each as a few pure functions.

An `Algorithm` says what happens to ONE client and at the server; `round.py`
vmaps the first over lanes and takes the weighted mean between the two. To make
another, write such functions, or put some of them in the place of `fedavg`'s:
`fedavg(...)._replace(message=...)`.

The paper's letters: x global model, y_i local model, eta local learning rate,
K local updates of a client, delta = y_i - x.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax import cost
from fedavg_jax.errors import InputError

NAMES = ('fedavg', 'fedprox', 'scaffold')
SERVER_OPTIMIZERS = ('sgd', 'adagrad', 'adam', 'yogi')

Params = Any
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


def check(algorithm: Algorithm, params: Params) -> None:
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
  return cost.num_bytes((params, seen)), cost.num_bytes(message)


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


def fedavg(
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """Federated Averaging, and FedOpt with any server optimizer.

  McMahan et al. 2017; Reddi et al. 2021, Algorithm 1.

  Args:
    client_optimizer: `optax.sgd(eta)` in the paper.
    server_optimizer: takes the pseudo-gradient, the negative weighted mean of
      the deltas. `optax.sgd(1.0)` is FedAvg, with momentum FedAvgM;
      `adaptive` makes FedAdagrad, FedAdam and FedYogi.

  Returns:
    The algorithm; a client sends its delta and keeps nothing.
  """

  def server_update(params, opt_state, mean_delta, share):
    del share
    # Optimizers descend: the direction to go, delta, is minus a gradient.
    pseudo_gradient = jax.tree.map(jnp.negative, mean_delta)
    updates, opt_state = server_optimizer.update(
      pseudo_gradient, opt_state, params
    )
    return optax.apply_updates(params, updates), opt_state

  return Algorithm(
    client_optimizer=client_optimizer,
    message=lambda ended: (ended.delta, ended.client),
    server_init=server_optimizer.init,
    server_update=server_update,
    client_init=lambda params: (),
  )


def decayed_sgd(
  learning_rate: float | jax.Array, factor: float, rounds: int
) -> optax.GradientTransformationExtraArgs:
  """SGD whose rate is multiplied by a factor every so many rounds.

  Args:
    learning_rate: eta of the first rounds.
    factor: 1 keeps it.
    rounds: from one decay to the next.
  """

  def update(updates, state, params=None, **seen):
    del params
    decays = jnp.asarray((seen['round'] - 1) // rounds, jnp.float32)
    rate = learning_rate * jnp.float32(factor) ** decays
    return jax.tree.map(lambda g: -rate * g, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def fedprox(
  mu: float,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
) -> Algorithm:
  """FedProx, Li et al. 2020: FedAvg on `loss + mu / 2 * |y - x|^2`."""
  return fedavg(optax.chain(proximal(mu), client_optimizer), server_optimizer)


def proximal(mu: float) -> optax.GradientTransformationExtraArgs:
  """Adds the gradient of `mu / 2 * |y - x|^2` to a client's gradient."""

  def update(updates, state, params=None, **seen):
    updates = jax.tree.map(
      lambda g, y, x: g + mu * (y - x), updates, params, seen['global_params']
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


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
  """

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


def clip_delta(algorithm: Algorithm, max_norm: float) -> Algorithm:
  """Scales a client's delta down to a Euclidean norm of at most `max_norm`.

  The norm is over all arrays together. The algorithm then makes its message of
  the clipped delta.
  """
  if not max_norm > 0:
    raise InputError(f'max_norm = {max_norm}: must be greater than 0')
  clip = optax.clip_by_global_norm(max_norm)

  def message(ended: Ended):
    delta, _ = clip.update(ended.delta, optax.EmptyState())
    return algorithm.message(ended._replace(delta=delta))

  return algorithm._replace(message=message)


class AdaptiveState(NamedTuple):
  """Attributes: m, v: first and second moment, each like the model."""

  m: Params
  v: Params


def adaptive(
  name: str, learning_rate: float, *, b1: float, b2: float, tau: float
) -> optax.GradientTransformation:
  """Server optimizer of FedAdagrad, FedYogi or FedAdam: no bias correction.

  Reddi et al. 2021, Algorithm 2, with `v_{-1} = tau^2`::

    m <- b1 m + (1 - b1) g        g the pseudo-gradient, -delta
    v <- v + g^2                             adagrad
         v - (1 - b2) g^2 sign(v - g^2)      yogi
         b2 v + (1 - b2) g^2                 adam
    x <- x - learning_rate * m / (sqrt(v) + tau)

  Args:
    name: 'adagrad', 'yogi' or 'adam'.
    learning_rate: the server's.
    b1: decay of the first moment.
    b2: decay of the second; adagrad has none.
    tau: the degree of adaptivity; larger is nearer to plain momentum.

  Returns:
    An optax transformation for `fedavg`.
  """
  if name not in SERVER_OPTIMIZERS[1:]:
    raise InputError(f'name = {name!r}: must be one of {SERVER_OPTIMIZERS[1:]}')
  second_moment = {
    'adagrad': lambda v, g2: v + g2,
    'yogi': lambda v, g2: v - (1 - b2) * g2 * jnp.sign(v - g2),
    'adam': lambda v, g2: b2 * v + (1 - b2) * g2,
  }[name]

  def init(params):
    return AdaptiveState(
      m=jax.tree.map(jnp.zeros_like, params),
      v=jax.tree.map(lambda p: jnp.full_like(p, tau**2), params),
    )

  def update(updates, state, params=None):
    del params
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, updates)
    v = jax.tree.map(lambda v, g: second_moment(v, g * g), state.v, updates)
    updates = jax.tree.map(
      lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), m, v
    )
    return updates, AdaptiveState(m, v)

  return optax.GradientTransformation(init, update)
