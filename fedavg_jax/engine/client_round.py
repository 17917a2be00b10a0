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

from fedavg_jax.contracts.aggregation import exact_tensordot
from fedavg_jax.contracts.model import Array
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import keys
from fedavg_jax.engine.local_step import LaneState
from fedavg_jax.engine.local_step import RoundContext
from fedavg_jax.engine.local_step import Step
from fedavg_jax.engine.local_step import Training
from fedavg_jax.engine.local_step import client_context
from fedavg_jax.engine.local_step import client_output
from fedavg_jax.engine.local_step import local_step
from fedavg_jax.engine.local_step import round_context
from fedavg_jax.engine.prefetch import Buffer
from fedavg_jax.schedule.plan import Plan


class Kept(NamedTuple):
  """What clients keep where each keeps the state of its model too.

  Attributes:
    algorithm: what `client_finish` has it keep.
    model_state: what is not trained.
  """

  algorithm: Any
  model_state: Any


def kept(state_of: str, state: Any, model_state: Any) -> Any:
  """Returns what a client keeps: its state, and its model's where it has one.

  Args:
    state_of: as of `Model`.
    state: what the algorithm has it keep.
    model_state: of its model.
  """
  return Kept(state, model_state) if state_of == 'client' else state


class RoundSums(NamedTuple):
  """Sums over the clients of the cohort that have ended, and count.

  Attributes:
    loss: of the examples they read.
    examples: that they read.
    weight: theirs in the mean.
    skipped: clients that have ended and do not count.
    trained: [M] int32, 1 for each of them.
    messages: of the algorithm's aggregator, over what they sent.
    client_states: [M, ...] what they keep from now on; zero for others.
    model_state: weighted sum of the states of their models.
    info: name -> float32, sum of what they report of themselves.
    coded: float32, bytes of their messages where these depend on the numbers
      in them, else 0.
  """

  loss: jax.Array
  examples: jax.Array
  weight: jax.Array
  skipped: jax.Array
  trained: jax.Array
  messages: Any
  client_states: Any
  model_state: Any
  info: dict[str, jax.Array]
  coded: jax.Array


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
    training, context, lanes, plan.begins[:, 0] >= 0, plan, 0, client_states
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
    lanes = start_clients(
      training, context, lanes, ends >= 0, plan, s + 1, client_states
    )
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
  output = jax.vmap(lambda lane: client_output(training, context, lane))(lanes)
  own = kept(training.model.state_of, output.state, lanes.model_state)
  ended = counts = ends >= 0
  if training.skips_clients:
    counts &= jax.vmap(all_finite)((lanes.loss, output.message, own))
  # Scatters drop what lies past the end: lanes whose clients do not count.
  position = jnp.where(counts, ends, sums.trained.size)

  def of_counted(values):
    # An idle lane's model is nobody's: left out, not multiplied by zero.
    return where_lanes(counts, values, jnp.zeros_like(values))

  algorithm = training.algorithm
  messages = jax.tree.map(of_counted, output.message)
  coded = sums.coded
  if training.counts_bytes and algorithm.num_bytes is not None:
    num_bytes = jax.vmap(algorithm.num_bytes)(messages).astype(jnp.float32)
    coded += jnp.sum(of_counted(num_bytes))
  return RoundSums(
    loss=sums.loss + jnp.sum(jnp.where(counts, lanes.loss, 0.0)),
    examples=sums.examples + jnp.sum(jnp.where(counts, lanes.examples, 0)),
    weight=sums.weight + jnp.sum(jnp.where(counts, weight, 0.0)),
    skipped=sums.skipped + jnp.sum(ended & ~counts, dtype=jnp.int32),
    trained=sums.trained.at[position].add(1, mode='drop'),
    messages=algorithm.aggregate.add(sums.messages, messages, weight, position),
    client_states=jax.tree.map(
      lambda store, new: store.at[position].set(new, mode='drop'),
      sums.client_states,
      own,
    ),
    model_state=jax.tree.map(
      lambda total, own: total + exact_tensordot(weight, of_counted(own)),
      sums.model_state,
      lanes.model_state,
    ),
    info=jax.tree.map(
      lambda total, own: total + jnp.sum(of_counted(own.astype(jnp.float32))),
      sums.info,
      output.info,
    ),
    coded=coded,
  )


def start_clients(
  training: Training,
  context: RoundContext,
  lanes: LaneState,
  ended: Array,
  plan: Plan,
  s: int | jax.Array,
  client_states: Any,
) -> LaneState:
  """Gives lanes whose client has ended a model, and the next client.

  Args:
    training: what is compiled in.
    context: of the round.
    lanes: [L, ...].
    ended: [L] bool.
    plan: which clients begin.
    s: how many events there were.
    client_states: [K, ...] what all clients keep.
  """
  begins = plan.begins[: num_lanes(lanes), s]  # Positions in the cohort.

  def restart(begin, now):
    return where_lanes(ended, begin[None], now)

  def begin(store, now):
    return where_lanes(begins >= 0, store[plan.slots[begins]], now)

  def of_next(cohort, now):
    return jnp.where(begins >= 0, cohort[begins], now)

  def zero(now):
    return jnp.where(ended, jnp.zeros_like(now), now)

  own = client_states
  model_state = jax.tree.map(restart, context.model_state, lanes.model_state)
  if training.model.state_of == 'client':
    own = client_states.algorithm
    model_state = jax.tree.map(
      begin, client_states.model_state, lanes.model_state
    )
  started = lanes._replace(
    model_state=model_state,
    client_state=jax.tree.map(begin, own, lanes.client_state),
    client_id=of_next(plan.cohort, lanes.client_id),
    num_examples=of_next(plan.num_examples, lanes.num_examples),
    updates=zero(lanes.updates),  # Gradients are zero behind whole minibatches.
    loss=zero(lanes.loss),
    examples=zero(lanes.examples),
  )
  alike = training.algorithm.client_start is None
  if alike and not keys.holds_keys(context.opt_state):
    params, opt_state = jax.tree.map(
      restart,
      (context.global_params, context.opt_state),
      (lanes.params, lanes.opt_state),
    )
  else:
    params, opt_state = jax.tree.map(
      lambda new, now: where_lanes(ended, new, now),
      jax.vmap(lambda lane: first_model(training, context, lane))(started),
      (lanes.params, lanes.opt_state),
    )
  return started._replace(params=params, opt_state=opt_state)


def first_model(
  training: Training, context: RoundContext, lane: LaneState
) -> tuple[Any, Any]:
  """Returns the model that ONE client begins with, and its optimizer state."""
  algorithm = training.algorithm
  params, opt_state = context.global_params, context.opt_state
  if algorithm.client_start is not None:
    key = keys.of_start(context.clients, lane.client_id)
    params = algorithm.client_start(client_context(context, lane, key))
    opt_state = algorithm.client_optimizer.init(params)
  return params, keys.own_keys(opt_state, context.clients, lane.client_id)


def empty_lanes(
  training: Training, context: RoundContext, client_states: Any, number: int
) -> LaneState:
  """Makes lanes that have the global model, and no client yet."""

  def everywhere(leaf):
    return jnp.broadcast_to(leaf, (number, *leaf.shape))

  def zeros(leaf):
    return jnp.zeros((number, *leaf.shape), leaf.dtype)

  none = jnp.zeros(number, jnp.int32)
  if training.model.state_of == 'client':
    client_states = client_states.algorithm
  return LaneState(
    params=jax.tree.map(everywhere, context.global_params),
    model_state=jax.tree.map(everywhere, context.model_state),
    opt_state=jax.tree.map(everywhere, context.opt_state),
    grads=(
      jax.tree.map(zeros, context.global_params) if training.accumulates else ()
    ),
    client_state=jax.tree.map(lambda store: zeros(store[0]), client_states),
    client_id=none,
    num_examples=none,
    updates=none,
    loss=jnp.zeros(number, jnp.float32),
    examples=none,
  )


def empty_sums(
  training: Training, context: RoundContext, lanes: LaneState, cohort: int
) -> RoundSums:
  """Makes the sums over no client, of a cohort of M."""
  lane = jax.tree.map(lambda leaf: leaf[0], lanes)
  output = jax.eval_shape(
    lambda lane: client_output(training, context, lane), lane
  )
  own = kept(training.model.state_of, lane.client_state, lane.model_state)
  zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
  return RoundSums(
    loss=zero,
    examples=none,
    weight=zero,
    skipped=none,
    trained=jnp.zeros(cohort, jnp.int32),
    messages=training.algorithm.aggregate.init(output.message, cohort),
    client_states=jax.tree.map(
      lambda leaf: jnp.zeros((cohort, *leaf.shape), leaf.dtype), own
    ),
    model_state=jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, jnp.float32), lane.model_state
    ),
    info=jax.tree.map(lambda _: zero, output.info),
    coded=zero,
  )


def num_lanes(lanes: LaneState) -> int:
  """Counts the lanes, L."""
  return lanes.updates.shape[0]


def where_lanes(flags, new, old) -> jax.Array:
  """Picks whole rows: flags [L], new and old [L, ...]."""
  return jnp.where(flags.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def all_finite(tree: Any) -> jax.Array:
  """Tells whether all floating-point numbers of a tree are finite, [] bool."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
