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
from fedavg_jax.plan import Planner

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
    finite: False where the loss, the new model or what server or clients would
      keep is not finite; the round then left everything as it was.
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
      lambda leaf: jnp.broadcast_to(leaf, (num_clients, *jnp.shape(leaf))),
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
  planner: Planner,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
  """Builds the jitted round; the client states that go in are donated.

  Args:
    loss_fn: losses of a batch under one client's model.
    algorithm: such as `algorithms.fedavg`.
    planner: that will make the plans.
    mesh: its devices, from `lane_mesh`.

  Returns:
    `round_fn(state, client_states, data, plan) -> (state, client_states,
    metrics)`; data are all clients' examples.
  """
  gradient, update = build_local_step(loss_fn, algorithm.client_optimizer)
  step_examples, accumulates = planner.step_examples, planner.accumulates
  everywhere = jax.P()

  def train_lanes(state, client_states, data: Examples, plan: Plan):
    """One device's lanes: sums of messages and losses, new client states."""
    params = state.params
    begin_opt = algorithm.client_optimizer.init(params)
    seen = {'global_params': params, 'server': state.server}
    num_clients = plan.cohort.size

    def stacked(tree, number):
      """`number` rows of zeros like the leaves of a tree."""
      return jax.tree.map(
        lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), tree
      )

    def step(t, carry):
      """One step of the lanes in the carry, the first ones of the device."""
      local, opt_state, grads, client, loss_sum, examples = carry
      now = jax.tree.map(
        lambda array: array[: _rows(local), t],
        (plan.start, plan.count, plan.batch),
      )

      def one_lane(local, opt_state, grads, client, start, count, batch):
        rows = lax.dynamic_slice_in_dim(plan.order, start, step_examples)
        mask = jnp.arange(step_examples) < count
        loss, new_grads = gradient(
          local, data.x[rows], data.y[rows], mask, jnp.abs(batch)
        )
        if not accumulates:
          new = update(local, opt_state, new_grads, client=client, **seen)
          return *new, grads, loss
        grads = jax.tree.map(jnp.add, grads, new_grads)
        new = update(local, opt_state, grads, client=client, **seen)
        new = (*new, jax.tree.map(jnp.zeros_like, grads))
        # The minibatch goes on: only its gradient has grown.
        new = jax.tree.map(
          lambda new, old: jnp.where(batch > 0, new, old),
          new,
          (local, opt_state, grads),
        )
        return *new, loss

      *new, loss = jax.vmap(one_lane)(local, opt_state, grads, client, *now)
      loss_sum += jnp.sum(loss)
      examples += jnp.sum(now[1])
      return *new, client, loss_sum, examples

    def begin_clients(s, now):
      """What the clients keep that begin at s, in the place of `now`."""

      def begin(now, store):
        begins = plan.begins[: len(now), s]
        return _where(begins >= 0, store[plan.cohort[begins]], now)

      return jax.tree.map(begin, now, client_states)

    def until_event(s, carry):
      """Steps up to event s, then the clients that end there."""
      total, kept, *carry = carry
      first = jnp.where(s == 0, 0, plan.event[0, s - 1])
      local, opt_state, grads, client, loss_sum, examples = lax.fori_loop(
        first, plan.event[0, s], step, tuple(carry)
      )
      ends, weight, updates = jax.tree.map(
        lambda array: array[: _rows(local), s],
        (plan.ends, plan.weight, plan.updates),
      )
      ended = ends >= 0  # [L]

      def one_client(local, client, updates):
        return algorithm.message(
          Ended(
            delta=jax.tree.map(jnp.subtract, local, params),
            client=client,
            updates=jnp.maximum(updates, 1),
            **seen,
          )
        )

      message, new_client = jax.vmap(one_client)(local, client, updates)

      def add(total, message):
        # An idle lane's model is nobody's: left out, not multiplied by zero.
        message = _where(ended, message, jnp.zeros_like(message))
        return total + _exact_tensordot(weight, message)

      def restart(begin, now):
        return _where(ended, begin[None], now)

      total = jax.tree.map(add, total, message)
      # Scatters drop what lies past the end: the lanes whose clients go on.
      slot = jnp.where(ended, ends, num_clients)
      kept = jax.tree.map(
        lambda kept, new: kept.at[slot].set(new, mode='drop'), kept, new_client
      )
      local = jax.tree.map(restart, params, local)
      opt_state = jax.tree.map(restart, begin_opt, opt_state)
      client = begin_clients(s + 1, client)
      return total, kept, local, opt_state, grads, client, loss_sum, examples

    one_state = jax.tree.map(lambda store: store[0], client_states)
    message, _ = jax.eval_shape(
      algorithm.message,
      Ended(params, client=one_state, updates=plan.updates[0, 0], **seen),
    )
    num_lanes = plan.start.shape[0]
    local, opt_state = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (num_lanes, *leaf.shape)),
      (params, begin_opt),
    )
    grads = stacked(params, num_lanes) if accumulates else ()
    client = begin_clients(0, stacked(one_state, num_lanes))
    lanes = (local, opt_state, grads, client)
    total = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message)
    kept = stacked(one_state, num_clients)
    loss_sum, examples = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    done = 0
    for w, width in enumerate(planner.widths):
      # The other lanes are idle to the end: go on without them.
      lanes = jax.tree.map(lambda leaf, width=width: leaf[:width], lanes)
      total, kept, *lanes, loss_sum, examples = lax.fori_loop(
        done,
        plan.until[0, w],
        until_event,
        (total, kept, *lanes, loss_sum, examples),
      )
      done = plan.until[0, w]
    slots = jnp.where(plan.ends >= 0, plan.ends, num_clients)
    trained = jnp.zeros(num_clients, jnp.int32).at[slots].add(1, mode='drop')
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
    finite = _all_finite((loss_sum, mean, params, server, kept))
    new_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new_state, state
    )
    changed = finite & (trained > 0)  # [M]
    client_states = jax.tree.map(
      lambda store, kept: store.at[plan.cohort].set(
        _where(changed, kept, store[plan.cohort])
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


def _rows(tree) -> int:
  """Length of the leading axis that all leaves share."""
  return jax.tree.leaves(tree)[0].shape[0]


def _where(flags, new, old) -> jax.Array:
  """Picks whole rows: flags [L], new and old [L, ...]."""
  return jnp.where(flags.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _exact_tensordot(weights, stacked) -> jax.Array:
  """[L] x [L, ...] -> [...], in float32 also where matrix units round more."""
  return jnp.tensordot(
    weights,
    stacked.astype(jnp.float32),
    1,
    precision=lax.Precision.HIGHEST,
  )


def _all_finite(tree) -> jax.Array:
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
