"""A communication round as one compiled call.

`round_fn(state, client_states, data, plan)` trains the whole cohort and updates
the global model. What happens to one client is written for one client
(`build_local_step`, `algorithms/`) and vmapped over the lanes; the lanes are
sharded over the devices of a mesh. Trip counts come from the plan, so that one
compilation serves every cohort.

Shape letters: L lanes of one device, B examples of a step, the others as in
`planning.py`.
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

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import Ended
from fedavg_jax.contracts.losses import LossFn
from fedavg_jax.contracts.model import Augment
from fedavg_jax.core import choices
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.engine.prefetch import Buffer
from fedavg_jax.schedule.planning import Plan
from fedavg_jax.schedule.planning import Planner

_TINY = np.finfo(np.float32).tiny

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
    skipped: clients left out, because the loss, the message or what the client
      would keep was not finite; of `on_nan = 'skip_client'`. Loss and examples
      are without theirs.
    finite: False where the loss, the new model or what server or clients would
      keep is not finite; the round then left everything as it was.
  """

  train_loss: jax.Array
  examples: jax.Array
  skipped: jax.Array
  finite: jax.Array


class _Sums(NamedTuple):
  """Over the clients of the cohort that have ended, and count.

  Attributes:
    loss: of the examples they read.
    examples: that they read.
    weight: theirs in the mean.
    skipped: clients that have ended and do not count.
    trained: [M] int32, 1 for each of them.
  """

  loss: jax.Array
  examples: jax.Array
  weight: jax.Array
  skipped: jax.Array
  trained: jax.Array


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
  return collectives.put(state, jax.sharding.NamedSharding(mesh, jax.P()))


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
  return jax.jit(init, out_shardings=everywhere)(
    collectives.put(params, everywhere)
  )


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
  on_nan: str = 'stop',
  augment: Augment | None = None,
) -> jax.stages.Wrapped:
  """Builds the jitted round; the client states that go in are donated.

  Args:
    loss_fn: losses of a batch under one client's model.
    algorithm: such as `algorithms.fedavg`.
    planner: that will make the plans.
    mesh: its devices, from `lane_mesh`.
    on_nan: one of `choices.ON_NAN`. 'skip_client' takes the mean over those
      clients that end with finite numbers, with weights that add up to one; a
      round in which none does changes nothing. With 'stop' one client's Inf is
      the round's. With both, a mean or a server that is not finite is.
    augment: changes an example whenever it is read. Its key depends on seed,
      round, row and the client's updates so far, and on nothing else.

  Returns:
    `round_fn(state, client_states, data, plan) -> (state, client_states,
    metrics)`; data are all clients' examples, or where the planner streams
    what each device's own ones hold.

  Raises:
    InputError: another `on_nan`.
  """
  choices.check_choice('on_nan', on_nan, choices.ON_NAN)
  skips = on_nan == 'skip_client'
  gradient, update = build_local_step(loss_fn, algorithm.client_optimizer)
  step_examples, accumulates = planner.step_examples, planner.accumulates
  everywhere = jax.P()
  data_spec = jax.P('lanes') if planner.streamed else everywhere

  def train_lanes(state, client_states, data: Examples | Buffer, plan: Plan):
    """One device's lanes: what is summed over clients, new client states."""
    params = state.params
    begin_opt = algorithm.client_optimizer.init(params)
    seen = {
      'global_params': params,
      'server': state.server,
      'round': state.round + 1,
    }
    round_key = jax.random.fold_in(
      jax.random.key(planner.seed), state.round + 1
    )
    num_clients = plan.cohort.size

    def stacked(tree, number):
      """`number` rows of zeros like the leaves of a tree."""
      return jax.tree.map(
        lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), tree
      )

    def example_keys(taken, rows):
      """A client reads a row once per epoch, each time after other updates."""
      key = jax.random.fold_in(round_key, taken)
      return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)

    def step(t, carry):
      """One step of the lanes in the carry, the first ones of the device."""
      local, opt_state, grads, client, taken, losses, read = carry
      now = jax.tree.map(
        lambda array: array[: _rows(local), t],
        (plan.start, plan.count, plan.batch),
      )

      def one_lane(local, opt_state, grads, client, taken, start, count, batch):
        rows = lax.dynamic_slice_in_dim(plan.order, start, step_examples)
        mask = jnp.arange(step_examples) < count
        x = data.x[rows]
        if augment is not None:
          # The same keys for an example wherever it is read from.
          numbers = data.row[rows] if isinstance(data, Buffer) else rows
          x = jax.vmap(augment)(example_keys(taken, numbers), x)
        loss, new_grads = gradient(local, x, data.y[rows], mask, jnp.abs(batch))
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

      *new, loss = jax.vmap(one_lane)(
        local, opt_state, grads, client, taken, *now
      )
      # A minibatch may take several steps.
      taken = taken + (now[2] > 0).astype(jnp.int32)
      return *new, client, taken, losses + loss, read + now[1]

    def begin_clients(s, now):
      """What the clients keep that begin at s, in the place of `now`."""

      def begin(now, store):
        begins = plan.begins[: len(now), s]
        return _where(begins >= 0, store[plan.cohort[begins]], now)

      return jax.tree.map(begin, now, client_states)

    def until_event(s, carry):
      """Steps up to event s, then the clients that end there."""
      sums, total, kept, *carry = carry
      first = jnp.where(s == 0, 0, plan.event[0, s - 1])
      local, opt_state, grads, client, taken, losses, read = lax.fori_loop(
        first, plan.event[0, s], step, tuple(carry)
      )
      ends, weight = jax.tree.map(
        lambda array: array[: _rows(local), s], (plan.ends, plan.weight)
      )
      ended = ends >= 0  # [L]

      def one_client(local, client, taken):
        return algorithm.message(
          Ended(
            delta=jax.tree.map(jnp.subtract, local, params),
            client=client,
            updates=jnp.maximum(taken, 1),
            **seen,
          )
        )

      message, new_client = jax.vmap(one_client)(local, client, taken)
      counts = ended
      if skips:
        counts &= jax.vmap(_all_finite)((losses, message, new_client))

      def add(total, message):
        # An idle lane's model is nobody's: left out, not multiplied by zero.
        message = _where(counts, message, jnp.zeros_like(message))
        return total + _exact_tensordot(weight, message)

      def restart(begin, now):
        return _where(ended, begin[None], now)

      total = jax.tree.map(add, total, message)
      # Scatters drop what lies past the end: the lanes whose clients go on.
      slot = jnp.where(counts, ends, num_clients)
      kept = jax.tree.map(
        lambda kept, new: kept.at[slot].set(new, mode='drop'), kept, new_client
      )
      sums = _Sums(
        loss=sums.loss + jnp.sum(jnp.where(counts, losses, 0.0)),
        examples=sums.examples + jnp.sum(jnp.where(counts, read, 0)),
        weight=sums.weight + jnp.sum(jnp.where(counts, weight, 0.0)),
        skipped=sums.skipped + jnp.sum(ended & ~counts, dtype=jnp.int32),
        trained=sums.trained.at[slot].add(1, mode='drop'),
      )
      local = jax.tree.map(restart, params, local)
      opt_state = jax.tree.map(restart, begin_opt, opt_state)
      client = begin_clients(s + 1, client)
      taken, losses, read = jax.tree.map(
        lambda now: jnp.where(ended, jnp.zeros_like(now), now),
        (taken, losses, read),
      )
      lanes = (local, opt_state, grads, client, taken, losses, read)
      return sums, total, kept, *lanes

    one_state = jax.tree.map(lambda store: store[0], client_states)
    message, _ = jax.eval_shape(
      algorithm.message,
      Ended(params, client=one_state, updates=state.round, **seen),
    )
    num_lanes = plan.start.shape[0]
    local, opt_state = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (num_lanes, *leaf.shape)),
      (params, begin_opt),
    )
    grads = stacked(params, num_lanes) if accumulates else ()
    client = begin_clients(0, stacked(one_state, num_lanes))
    losses = jnp.zeros(num_lanes, jnp.float32)
    taken = read = jnp.zeros(num_lanes, jnp.int32)
    lanes = (local, opt_state, grads, client, taken, losses, read)
    total = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message)
    kept = stacked(one_state, num_clients)
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    sums = _Sums(zero, none, zero, none, jnp.zeros(num_clients, jnp.int32))
    done = 0
    for w, width in enumerate(planner.widths):
      # The other lanes are idle to the end: go on without them.
      lanes = jax.tree.map(lambda leaf, width=width: leaf[:width], lanes)
      sums, total, kept, *lanes = lax.fori_loop(
        done, plan.until[0, w], until_event, (sums, total, kept, *lanes)
      )
      done = plan.until[0, w]
    return collectives.sum_over_devices((sums, total, kept))

  train_cohort = jax.shard_map(
    train_lanes,
    mesh=mesh,
    in_specs=(everywhere, everywhere, data_spec, PLAN_SPECS),
    out_specs=everywhere,
    check_vma=False,
  )

  def round_fn(state, client_states, data, plan):
    sums, mean, kept = train_cohort(state, client_states, data, plan)
    # One where nobody is left out: the same bits as without skipping.
    whole = sums.skipped == 0
    weight = jnp.where(whole, 1.0, jnp.maximum(sums.weight, _TINY))
    params, server = algorithm.server_update(
      state.params,
      state.server,
      jax.tree.map(lambda mean: mean / weight, mean),
      plan.share * weight,
    )
    somebody = jnp.any(sums.trained > 0)
    params, server = jax.tree.map(
      lambda new, old: jnp.where(somebody, new, old),
      (params, server),
      (state.params, state.server),
    )
    new_state = ServerState(state.round + 1, params, server)
    finite = _all_finite((mean, params, server, kept))
    if not skips:  # Nobody is left out whose loss is not finite.
      finite &= jnp.isfinite(sums.loss)
    new_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new_state, state
    )
    changed = finite & (sums.trained > 0)  # [M]
    client_states = jax.tree.map(
      lambda store, kept: store.at[plan.cohort].set(
        _where(changed, kept, store[plan.cohort])
      ),
      client_states,
      kept,
    )
    metrics = RoundMetrics(
      train_loss=sums.loss / jnp.maximum(sums.examples, 1).astype(jnp.float32),
      examples=sums.examples,
      skipped=sums.skipped,
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
      sharding(data_spec),
      jax.tree.map(sharding, PLAN_SPECS),
    ),
    out_shardings=replicated,
  )


def place_plan(plan: Plan, mesh: jax.sharding.Mesh) -> Plan:
  """A plan as the round takes it: of several processes each puts its part."""
  if not processes.several():
    return plan
  shardings: Any = jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec), PLAN_SPECS
  )
  return collectives.put(plan, shardings)


def place_examples(
  x: np.ndarray, y: np.ndarray, mesh: jax.sharding.Mesh
) -> Examples:
  """Puts all examples on every device of the mesh, to stay there."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return collectives.put(Examples(x, y), everywhere)


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
