"""A communication round as one compiled call.

`round_fn(state, client_states, data, plan)` trains the whole cohort and updates
the global model. What happens to one client is written for one client
(`build_local_step`, `algorithms.py`) and vmapped over the lanes; the lanes are
sharded over the devices of a mesh. Trip counts come from the plan, so that one
compilation serves every cohort.

Shape letters: L lanes of one device, B examples of a step, the others as in
`plan.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax.algorithms import Algorithm
from fedavg_jax.algorithms import Ended
from fedavg_jax.clients import Examples
from fedavg_jax.losses import LossFn
from fedavg_jax.plan import Plan

# Where a plan's arrays live: each device has its own lanes' part of them.
PLAN_SPECS = Plan._make(
  jax.P() if name in ('cohort', 'share', 'order') else jax.P('lanes')
  for name in Plan._fields
)


class ServerState(NamedTuple):
  """What the server keeps between rounds.

  Attributes:
    round: int32 scalar, rounds done.
    params: the global model w_t.
    server: what the algorithm keeps, such as an optimizer's state.
  """

  round: jax.Array
  params: optax.Params
  server: Any


class RoundMetrics(NamedTuple):
  """What one round tells.

  Attributes:
    train_loss: mean loss of the examples read, each before its own step.
    examples: examples read by the cohort in all local epochs.
    finite: False where the loss or the new model is not finite; the round then
      left everything as it was.
  """

  train_loss: jax.Array
  examples: jax.Array
  finite: jax.Array


def lane_mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """The devices along one axis, 'lanes'."""
  return jax.sharding.Mesh(devices, ('lanes',))


def init_state(
  params: optax.Params, algorithm: Algorithm, mesh: jax.sharding.Mesh
) -> ServerState:
  """The state before the first round, on every device of the mesh."""
  state = ServerState(
    round=jnp.zeros((), jnp.int32),
    params=params,
    server=algorithm.server_init(params),
  )
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P()))


def init_client_states(
  params: optax.Params,
  algorithm: Algorithm,
  num_clients: int,
  mesh: jax.sharding.Mesh,
) -> Any:
  """What the K clients keep before round 1, [K, ...], on every device."""

  def init(params):
    return jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (num_clients, *leaf.shape)),
      algorithm.client_init(params),
    )

  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.jit(init, out_shardings=everywhere)(params)


def build_local_step(
  loss_fn: LossFn, client_optimizer: optax.GradientTransformation
) -> tuple[Callable, Callable]:
  """One minibatch step of ONE client, w <- w - eta * grad loss(w; b).

  Returns:
    `gradient(params, x, y, mask, batch)` -> (sum of the losses, gradient) of
    the step's part of a minibatch of `batch` examples; the parts of a minibatch
    add up to the gradient of its mean loss. x [B, ...], y [B], mask [B].
    `update(params, opt_state, grads, **seen)` -> (params, opt_state).
  """

  def gradient(params, x, y, mask, batch):
    def share_of_mean_loss(params):
      losses = jnp.where(mask, loss_fn(params, x, y), 0.0)
      return jnp.sum(losses) / jnp.maximum(batch, 1).astype(losses.dtype)

    share, grads = jax.value_and_grad(share_of_mean_loss)(params)
    return share * batch.astype(share.dtype), grads

  client_optimizer = optax.with_extra_args_support(client_optimizer)

  def update(params, opt_state, grads, **seen):
    updates, opt_state = client_optimizer.update(
      grads, opt_state, params, **seen
    )
    return optax.apply_updates(params, updates), opt_state

  return gradient, update


def build_round(
  loss_fn: LossFn,
  algorithm: Algorithm,
  *,
  step_examples: int,
  accumulates: bool = False,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
  """Builds the jitted round; the client states that go in are donated.

  Args:
    loss_fn: losses of a batch under one client's model.
    algorithm: such as `algorithms.fedavg`.
    step_examples: B, rows of one step (`Planner.step_examples`).
    accumulates: whether a minibatch may take several steps
      (`Planner.accumulates`).
    mesh: the devices, from `lane_mesh`; plans must be made for as many.

  Returns:
    `round_fn(state, client_states, data, plan) -> (state, client_states,
    metrics)`; data are all clients' examples.
  """
  gradient, update = build_local_step(loss_fn, algorithm.client_optimizer)
  everywhere = jax.P()

  def train_lanes(state, client_states, data: Examples, plan: Plan):
    """One device's lanes: sums of messages and losses, new client states."""
    num_lanes = plan.start.shape[0]
    begin = jax.tree.map(
      lambda p: jnp.broadcast_to(p, (num_lanes, *p.shape)), state.params
    )
    begin_opt = jax.vmap(algorithm.client_optimizer.init)(begin)
    seen = {'global_params': state.params, 'server': state.server}

    def begin_clients(s, now):
      """What the clients that begin at s keep, in the place of `now`."""
      k = plan.cohort[plan.begins[:, s]]
      return _where(
        plan.begins[:, s] >= 0,
        jax.tree.map(lambda store: store[k], client_states),
        now,
      )

    def step(t, carry):
      local, opt_state, grads, client, loss_sum, examples = carry

      def one_lane(params, opt_state, grads, client, start, count, batch):
        rows = lax.dynamic_slice_in_dim(plan.order, start, step_examples)
        mask = jnp.arange(step_examples) < count
        loss, new_grads = gradient(
          params, data.x[rows], data.y[rows], mask, jnp.abs(batch)
        )
        if accumulates:
          grads = jax.tree.map(jnp.add, grads, new_grads)
          new = update(params, opt_state, grads, client=client, **seen)
          old = (params, opt_state, grads)
          zeros = jax.tree.map(jnp.zeros_like, grads)
          params, opt_state, grads = jax.tree.map(
            lambda a, b: jnp.where(batch > 0, a, b), (*new, zeros), old
          )
        else:
          params, opt_state = update(
            params, opt_state, new_grads, client=client, **seen
          )
        return params, opt_state, grads, loss

      local, opt_state, grads, loss = jax.vmap(one_lane)(
        local,
        opt_state,
        grads,
        client,
        plan.start[:, t],
        plan.count[:, t],
        plan.batch[:, t],
      )
      loss_sum += jnp.sum(loss)
      examples += jnp.sum(plan.count[:, t])
      return local, opt_state, grads, client, loss_sum, examples

    def until_event(s, carry):
      """Steps up to event s, then the clients that end there."""
      total, kept, *local_carry = carry
      first = jnp.where(s == 0, 0, plan.event[0, s - 1])
      local, opt_state, grads, client, loss_sum, examples = lax.fori_loop(
        first, plan.event[0, s], step, tuple(local_carry)
      )
      ended = plan.ends[:, s] >= 0  # [L]

      def one_client(local, client, updates):
        return algorithm.message(
          Ended(
            delta=jax.tree.map(jnp.subtract, local, state.params),
            global_params=state.params,
            server=state.server,
            client=client,
            updates=jnp.maximum(updates, 1),
          )
        )

      message, new_client = jax.vmap(one_client)(
        local, client, plan.updates[:, s]
      )
      # An idle lane's model is nobody's: left out, not multiplied by zero.
      message = _where(ended, message, jax.tree.map(jnp.zeros_like, message))
      total = jax.tree.map(
        lambda total, m: total + _exact_tensordot(plan.weight[:, s], m),
        total,
        message,
      )
      slot = _slots(plan.ends[:, s], plan)
      kept = jax.tree.map(
        lambda kept, new: kept.at[slot].set(new, mode='drop'), kept, new_client
      )
      local = _where(ended, begin, local)
      opt_state = _where(ended, begin_opt, opt_state)
      client = begin_clients(s + 1, client)
      return total, kept, local, opt_state, grads, client, loss_sum, examples

    def nothing_kept(store):
      return jnp.zeros((plan.cohort.size, *store.shape[1:]), store.dtype)

    def nothing_yet(store):
      return jnp.zeros((num_lanes, *store.shape[1:]), store.dtype)

    client = begin_clients(0, jax.tree.map(nothing_yet, client_states))
    message = jax.eval_shape(
      algorithm.message,
      Ended(
        delta=state.params,
        global_params=state.params,
        server=state.server,
        client=jax.tree.map(lambda store: store[0], client_states),
        updates=plan.updates[0, 0],
      ),
    )[0]
    total, kept, _, _, _, _, loss_sum, examples = lax.fori_loop(
      0,
      plan.num_events[0],
      until_event,
      (
        jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message),
        jax.tree.map(nothing_kept, client_states),
        begin,
        begin_opt,
        jax.tree.map(jnp.zeros_like, begin) if accumulates else (),
        client,
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
      ),
    )
    trained = jnp.zeros(plan.cohort.size, jnp.int32)
    trained = trained.at[_slots(plan.ends, plan)].add(1, mode='drop')
    return lax.psum((total, kept, trained, loss_sum, examples), 'lanes')

  train_cohort = jax.shard_map(
    train_lanes,
    mesh=mesh,
    in_specs=(everywhere, everywhere, everywhere, PLAN_SPECS),
    out_specs=everywhere,
    check_vma=False,
  )

  def round_fn(state, client_states, data, plan):
    mean, kept, trained, loss_sum, examples = train_cohort(
      state, client_states, data, plan
    )
    params, server = algorithm.server_update(
      state.params, state.server, mean, plan.share
    )
    new_state = ServerState(state.round + 1, params, server)
    finite = jnp.isfinite(loss_sum) & _all_finite(params)
    new_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new_state, state
    )
    client_states = jax.tree.map(
      lambda store, kept: store.at[plan.cohort].set(
        _where(finite & (trained > 0), kept, store[plan.cohort])
      ),
      client_states,
      kept,
    )
    metrics = RoundMetrics(
      train_loss=loss_sum / jnp.maximum(examples, 1).astype(jnp.float32),
      examples=examples,
      finite=finite,
    )
    return new_state, client_states, metrics

  def sharding(spec):
    return jax.sharding.NamedSharding(mesh, spec)

  replicated = sharding(everywhere)
  return jax.jit(
    round_fn,
    donate_argnums=1,
    in_shardings=(
      replicated,
      replicated,
      replicated,
      jax.tree.map(sharding, PLAN_SPECS),
    ),
    out_shardings=replicated,
  )


def place_examples(
  x: np.ndarray, y: np.ndarray, mesh: jax.sharding.Mesh
) -> Examples:
  """Puts all examples on every device of the mesh, to stay there."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.device_put(Examples(x, y), everywhere)


def _slots(ends, plan) -> jax.Array:
  """Positions in the cohort; where none ends, one that scatters drop."""
  return jnp.where(ends >= 0, ends, plan.cohort.size)


def _where(flags, new, old):
  """Picks whole rows: flags [L], leaves [L, ...]."""

  def pick(new, old):
    return jnp.where(flags.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

  return jax.tree.map(pick, new, old)


def _exact_tensordot(weights, stacked) -> jax.Array:
  """[L] x [L, ...] -> [...], in float32 also where matrix units round more."""
  return jnp.tensordot(
    weights,
    stacked.astype(jnp.float32),
    1,
    precision=lax.Precision.HIGHEST,
  )


def _all_finite(tree) -> jax.Array:
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
  )
