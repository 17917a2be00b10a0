"""Defines models with parts that never leave their client.

FedPer, FedRep, FedBN, LG-FedAvg and adapters differ only in the roles of the
model's leaves. With x the shared leaves, p_i those of client i, f the frozen
ones, and s the number of local updates that train p_i alone::

  client_start   (x, p_i, f)
  local update   x_i and p_i together (s = 0), or p_i alone in the first s
                 updates and x_i alone in the others
  client_finish  sends x_i - x, keeps p_i
  server_update  x <- x + mean of (x_i - x)
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.experimental.roles import Parts
from fedavg_jax.algorithms.experimental.roles import Roles
from fedavg_jax.algorithms.experimental.roles import has_leaves
from fedavg_jax.algorithms.experimental.roles import merge
from fedavg_jax.algorithms.experimental.roles import split_by
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm import keep_nothing
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Params
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError


class PersonalState(NamedTuple):
  """Holds the state of a client.

  Attributes:
    own: the client's values of the personal leaves.
    inner: the state of the algorithm of the shared leaves.
  """

  own: Params
  inner: Any


class _OptimizerStates(NamedTuple):
  """Holds the states of the two optimizers of a client.

  Attributes:
    shared: the state of the algorithm's optimizer, of the shared leaves.
    own: the state of the optimizer of the personal leaves; () without any.
  """

  shared: Any
  own: Any


def personal(
  algorithm: Algorithm,
  roles: Roles,
  optimizer: optax.GradientTransformation | None = None,
  *,
  first: int | Callable[[ClientContext], Array] = 0,
) -> Algorithm:
  """Keeps some leaves of the model with their clients, or freezes them.

  The algorithm sees the shared leaves only: its server state, client states and
  messages have no others, so that SCAFFOLD, FedAdam and FedNova apply to these
  alone. A client that was never drawn has the initial personal leaves.

  ==============  ============================================================
  FedPer          `['head']`, Arivazhagan et al. 2019
  FedRep          `['head']` with `first`, Collins et al. 2021, Algorithm 1
  LG-FedAvg       `Shared(['head'])`, Liang et al. 2020
  FedBN           `['*Norm*']` and `Model(state_of='client')`, Li et al. 2021
  adapters        `Shared(['adapter'], others='frozen')`
  ==============  ============================================================

  Args:
    algorithm: the algorithm of the shared leaves. Clip its deltas before, as in
      `personal(clip_delta(algorithm, 1.0), ...)`: the norm is then that of the
      shared leaves.
    roles: the patterns of the personal leaves; or `Shared` with those of the
      shared ones; or the function path -> role, 'shared', 'personal' or
      'frozen', such as that of 'Dense_0/kernel'. A pattern, with the wildcards
      `*`, `?` and `[...]`, names a leaf or all leaves below it.
    optimizer: the client optimizer of the personal leaves; its context has
      their values at the start of the round as the global ones. None is that of
      the algorithm, which must not have client states.
    first: the number of local updates of a round, from its first one, that
      train the personal leaves alone; the later ones train the shared leaves
      alone. It may be a function of the client's context, such as
      `first_epochs(epochs, batch_size)`. 0 trains all leaves in all updates.

  Returns:
    The algorithm; a client sends what `algorithm` makes of the shared leaves,
    and its state is a `PersonalState`.

  Raises:
    InputError: `first` is negative, `optimizer` is None though the algorithm
      has client states, or the algorithm needs full gradients; when a
      simulation is built, if a pattern names no leaf, a role is unknown or no
      leaf is shared.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> fedper = fa.experimental.personal(fedavg, ['head'])
  >>> params = {'body': jnp.ones(3), 'head': jnp.zeros(2)}
  >>> state = fedper.client_init(params, 0)
  >>> {name: leaf is None for name, leaf in state.own.items()}
  {'body': True, 'head': False}
  """
  if not callable(first):
    rules.check_whole('first', first, 0)
  check_optimizer(algorithm, optimizer)
  of_shared = optax.with_extra_args_support(algorithm.client_optimizer)
  of_own = optax.with_extra_args_support(optimizer or of_shared)
  split = split_by(roles)

  def start(context: ClientContext) -> Params:
    """Returns the model of a client at the start of a round."""
    parts = split(context.global_params)
    shared = parts.shared
    if algorithm.client_start is not None:
      shared = algorithm.client_start(inside(context))
    return merge(Parts(shared, context.client_state.own, parts.frozen))

  def inside(context: ClientContext) -> ClientContext:
    """Returns the context of the shared leaves."""
    return context._replace(
      global_params=split(context.global_params).shared,
      client_state=context.client_state.inner,
    )

  def number_alone(context: ClientContext) -> Array | int:
    return first(context) if callable(first) else first

  def init(params):
    parts = split(params)
    return _OptimizerStates(
      of_shared.init(parts.shared),
      of_own.init(parts.personal) if has_leaves(parts.personal) else (),
    )

  def update(updates, state, params=None, **extra):
    grads, here, context = split(updates), split(params), extra['context']
    frozen = jax.tree.map(jnp.zeros_like, grads.frozen)
    extra['context'] = inside(context)
    shared = of_shared.update(grads.shared, state.shared, here.shared, **extra)
    if not has_leaves(grads.personal):
      return merge(Parts(shared[0], grads.personal, frozen)), (
        state._replace(shared=shared[1])
      )
    mine = context.client_state.own
    extra['context'] = context._replace(global_params=mine, client_state=())
    own = of_own.update(grads.personal, state.own, here.personal, **extra)
    if callable(first) or first:
      alone = extra['step'] < number_alone(context)
      shared = _where(alone, _rest(grads.shared, state.shared), shared)
      own = _where(alone, own, _rest(grads.personal, state.own))
    return merge(Parts(shared[0], own[0], frozen)), (
      _OptimizerStates(shared[1], own[1])
    )

  def client_finish(result: ClientResult):
    params, updates = split(result.params), result.num_updates
    later = jnp.bool_(True)
    if callable(first) or first:
      updates = updates - number_alone(result.context)
      later, updates = updates > 0, jnp.maximum(updates, 1)
    output = algorithm.client_finish(
      result._replace(
        delta=split(result.delta).shared,
        params=params.shared,
        num_updates=updates,
        optimizer_state=result.optimizer_state.shared,
        context=inside(result.context),
      )
    )
    if callable(first) or first:
      # A straggler may end before its first update of the shared leaves: it has
      # nothing to send, and its quotients may be 0 / 0.
      nothing = jax.tree.map(jnp.zeros_like, output.message)
      inner = result.context.client_state.inner
      output = output._replace(
        message=_where(later, output.message, nothing),
        state=_where(later, output.state, inner),
      )
    return output._replace(state=PersonalState(params.personal, output.state))

  def client_init(params, client_id):
    parts = split(params)
    inner = algorithm.client_init(parts.shared, client_id)
    return PersonalState(parts.personal, inner)

  def client_gradient(loss_fn, params, batch, context):
    assert algorithm.client_gradient is not None
    # The model at which a client started takes the place of the global one.
    context = context._replace(
      global_params=start(context), client_state=context.client_state.inner
    )
    return algorithm.client_gradient(loss_fn, params, batch, context)

  def server_update(params, server, aggregate, context):
    parts = split(params)
    shared, server = algorithm.server_update(
      parts.shared, server, aggregate, context
    )
    return merge(parts._replace(shared=shared)), server

  return algorithm._replace(
    client_optimizer=optax.GradientTransformationExtraArgs(init, update),
    server_init=lambda params: algorithm.server_init(split(params).shared),
    server_update=server_update,
    client_finish=client_finish,
    client_init=client_init,
    client_start=start,
    client_gradient=client_gradient if algorithm.client_gradient else None,
    received=lambda params: split(params).shared,
    own_model=start,
  )


def first_epochs(
  epochs: int, batch_size: int
) -> Callable[[ClientContext], Array]:
  """Returns the number of local updates of the first epochs of a client.

  It is the argument `first` of `personal` in FedRep, which trains the head for
  some epochs and then the body.

  Args:
    epochs: the number of epochs, at least 0.
    batch_size: B, as in `fa.Federation`; 0 is one update per epoch.

  Returns:
    The function context -> number of updates, epochs * ceil(n_k / B).

  Raises:
    InputError: an argument is out of range.

  >>> import fedavg_jax as fa
  >>> first = fa.experimental.first_epochs(2, batch_size=10)
  >>> first(fa.ClientContext({}, (), (), 0, 25, 1, key=None))
  6
  """
  rules.check_whole('epochs', epochs, 0)
  rules.check_whole('batch_size', batch_size, 0)

  def first(context: ClientContext) -> Array:
    if not batch_size:
      return jnp.int32(epochs)
    return epochs * -(-context.num_examples // batch_size)

  return first


def check_optimizer(
  algorithm: Algorithm, optimizer: optax.GradientTransformation | None
) -> None:
  """Raises InputError if the algorithm does not fit personal leaves.

  Args:
    algorithm: the algorithm of what is shared.
    optimizer: the client optimizer of what is personal, or None.
  """
  if algorithm.full_gradient:
    raise InputError(
      "algorithm.full_gradient: must be False with personal models: a client's"
      ' gradient at the global model is not that of its own leaves'
    )
  if optimizer is None and algorithm.client_init is not keep_nothing:
    raise InputError(
      'optimizer: must be given with an algorithm that has client states, which'
      ' its own optimizer may need for the shared leaves only'
    )


def _rest(grads: Params, state: Any) -> tuple[Params, Any]:
  """Returns the result of an update that changes nothing."""
  return jax.tree.map(jnp.zeros_like, grads), state


def _where(flag: Array, yes: Any, no: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)
