"""What the lanes of one device do in a round: pure functions of named states.

A lane trains one client after another. Between its steps stand events, at which
some lanes finish a client and start the next:

    start_clients     the global model, and what the first clients keep
    local_step        one minibatch, or a part of one, of every lane
    finish_clients    messages of those that end, added up by weight
    start_clients     ... and so on, until the plan ends

`local_step.py` has what is written for one client, `compiled_round.py` runs
this on every device and takes the server's step.

Shape letters: L lanes of one device, M clients of the cohort; the others as in
`planning.py`.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine.local_step import Array
from fedavg_jax.engine.local_step import LaneState
from fedavg_jax.engine.local_step import RoundContext
from fedavg_jax.engine.local_step import Step
from fedavg_jax.engine.local_step import Training
from fedavg_jax.engine.local_step import client_message
from fedavg_jax.engine.local_step import local_step
from fedavg_jax.engine.local_step import round_context
from fedavg_jax.engine.prefetch import Buffer
from fedavg_jax.schedule.plan import Plan


class RoundSums(NamedTuple):
  """Sums over the clients of the cohort that have ended, and count.

  Attributes:
    loss: of the examples they read.
    examples: that they read.
    weight: theirs in the mean.
    skipped: clients that have ended and do not count.
    trained: [M] int32, 1 for each of them.
    message: weighted sum of what they sent, in float32.
    client_states: [M, ...] what they keep from now on; zero for others.
  """

  loss: jax.Array
  examples: jax.Array
  weight: jax.Array
  skipped: jax.Array
  trained: jax.Array
  message: Any
  client_states: Any


def train_lanes(
  training: Training,
  state: Any,
  client_states: Any,
  data: Examples | Buffer,
  plan: Plan,
) -> RoundSums:
  """Trains the clients of one device's lanes, as its part of the plan says.

  Args:
    training: what is compiled in.
    state: `compiled_round.ServerState` before the round.
    client_states: [K, ...] what all clients keep.
    data: all clients' examples, or a buffer of this device's.
    plan: with this device's lanes alone.

  Returns:
    The device's sums.
  """
  context = round_context(training, state, plan.seed)
  lanes = empty_lanes(training, context, client_states, plan.start.shape[0])
  lanes = start_clients(
    context, lanes, plan.begins[:, 0] >= 0, plan, 0, client_states
  )
  sums = empty_sums(training, context, lanes, plan.cohort.size)

  def step(t, lanes: LaneState) -> LaneState:
    here = slice(num_lanes(lanes))
    now = Step(
      plan.start[here, t],
      plan.count[here, t],
      plan.batch[here, t],
      plan.completes[here, t],
    )

    def one_lane(lane, now):
      return local_step(training, context, data, plan.order, lane, now)

    return jax.vmap(one_lane)(lanes, now)

  def until_event(s, carry):
    """Takes the steps up to event s; then clients end, and others begin."""
    sums, lanes = carry
    first = jnp.where(s == 0, 0, plan.event[0, s - 1])
    lanes = lax.fori_loop(first, plan.event[0, s], step, lanes)
    here = slice(num_lanes(lanes))
    ends = plan.ends[here, s]
    sums = finish_clients(
      training, context, lanes, sums, ends, plan.weight[here, s]
    )
    lanes = start_clients(context, lanes, ends >= 0, plan, s + 1, client_states)
    return sums, lanes

  done = 0
  for w, width in enumerate(training.widths):
    # The other lanes are idle to the end: the loop continues without them.
    lanes = jax.tree.map(lambda leaf, width=width: leaf[:width], lanes)
    sums, lanes = lax.fori_loop(
      done, plan.until[0, w], until_event, (sums, lanes)
    )
    done = plan.until[0, w]
  return sums


def finish_clients(
  training: Training,
  context: RoundContext,
  lanes: LaneState,
  sums: RoundSums,
  ends: Array,
  weight: Array,
) -> RoundSums:
  """Adds the clients that end at an event to the round's sums.

  Args:
    training: what is compiled in.
    context: of the round.
    lanes: [L, ...].
    sums: so far.
    ends: [L] int32, position in the cohort of the client that ends, else -1.
    weight: [L] float32, that of the client in the mean.
  """
  message, kept = jax.vmap(
    lambda lane: client_message(training, context, lane)
  )(lanes)
  ended = counts = ends >= 0
  if training.skips_clients:
    counts &= jax.vmap(all_finite)((lanes.loss, message, kept))
  # Scatters drop what lies past the end: lanes whose clients do not count.
  slot = jnp.where(counts, ends, sums.trained.size)

  def add(total, message):
    # An idle lane's model is nobody's: left out, not multiplied by zero.
    message = where_lanes(counts, message, jnp.zeros_like(message))
    return total + exact_tensordot(weight, message)

  return RoundSums(
    loss=sums.loss + jnp.sum(jnp.where(counts, lanes.loss, 0.0)),
    examples=sums.examples + jnp.sum(jnp.where(counts, lanes.examples, 0)),
    weight=sums.weight + jnp.sum(jnp.where(counts, weight, 0.0)),
    skipped=sums.skipped + jnp.sum(ended & ~counts, dtype=jnp.int32),
    trained=sums.trained.at[slot].add(1, mode='drop'),
    message=jax.tree.map(add, sums.message, message),
    client_states=jax.tree.map(
      lambda store, new: store.at[slot].set(new, mode='drop'),
      sums.client_states,
      kept,
    ),
  )


def start_clients(
  context: RoundContext,
  lanes: LaneState,
  ended: Array,
  plan: Plan,
  s: int | jax.Array,
  client_states: Any,
) -> LaneState:
  """Gives lanes whose client has ended the global model, and the next client.

  Args:
    context: of the round.
    lanes: [L, ...].
    ended: [L] bool.
    plan: which clients begin.
    s: how many events there were.
    client_states: [K, ...] what all clients keep.
  """

  def restart(begin, now):
    return where_lanes(ended, begin[None], now)

  def begin(store, now):
    begins = plan.begins[: len(now), s]
    return where_lanes(begins >= 0, store[plan.cohort[begins]], now)

  def zero(now):
    return jnp.where(ended, jnp.zeros_like(now), now)

  return LaneState(
    params=jax.tree.map(restart, context.global_params, lanes.params),
    opt_state=jax.tree.map(restart, context.opt_state, lanes.opt_state),
    grads=lanes.grads,  # Zero behind every whole minibatch.
    client=jax.tree.map(begin, client_states, lanes.client),
    updates=zero(lanes.updates),
    loss=zero(lanes.loss),
    examples=zero(lanes.examples),
  )


def empty_lanes(
  training: Training, context: RoundContext, client_states: Any, number: int
) -> LaneState:
  """Makes lanes that have the global model, and no client yet."""

  def everywhere(leaf):
    return jnp.broadcast_to(leaf, (number, *leaf.shape))

  def zeros(leaf):
    return jnp.zeros((number, *leaf.shape), leaf.dtype)

  none = jnp.zeros(number, jnp.int32)
  return LaneState(
    params=jax.tree.map(everywhere, context.global_params),
    opt_state=jax.tree.map(everywhere, context.opt_state),
    grads=(
      jax.tree.map(zeros, context.global_params) if training.accumulates else ()
    ),
    client=jax.tree.map(lambda store: zeros(store[0]), client_states),
    updates=none,
    loss=jnp.zeros(number, jnp.float32),
    examples=none,
  )


def empty_sums(
  training: Training, context: RoundContext, lanes: LaneState, cohort: int
) -> RoundSums:
  """Makes the sums over no client, of a cohort of M."""
  lane = jax.tree.map(lambda leaf: leaf[0], lanes)
  message, _ = jax.eval_shape(
    lambda lane: client_message(training, context, lane), lane
  )
  zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
  return RoundSums(
    loss=zero,
    examples=none,
    weight=zero,
    skipped=none,
    trained=jnp.zeros(cohort, jnp.int32),
    message=jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), message),
    client_states=jax.tree.map(
      lambda leaf: jnp.zeros((cohort, *leaf.shape), leaf.dtype), lane.client
    ),
  )


def num_lanes(lanes: LaneState) -> int:
  """Counts the lanes, L."""
  return lanes.updates.shape[0]


def where_lanes(flags, new, old) -> jax.Array:
  """Picks whole rows: flags [L], new and old [L, ...]."""
  return jnp.where(flags.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def exact_tensordot(weights, stacked) -> jax.Array:
  """[L] x [L, ...] -> [...], in float32 also where matrix units round more."""
  return jnp.tensordot(
    weights,
    stacked.astype(jnp.float32),
    1,
    precision=lax.Precision.HIGHEST,
  )


def all_finite(tree: Any) -> jax.Array:
  """Tells whether all floating-point numbers of a tree are finite, [] bool."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
