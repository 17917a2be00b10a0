"""Trains the lanes of one device for a round, in pure functions.

A lane trains one client after another. After some of its steps there is an
event, at which some lanes finish a client and start the next:

    start_clients     the global model, and the first clients' states
    local_step        one minibatch, or a part of one, in every lane
    finish_clients    the weighted sum of the messages of clients that finish
    start_clients     ... and so on, until the plan ends

`local_step.py` has the code for one client, `compiled_round.py` runs this on
every device and takes the server's step.

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
from fedavg_jax.engine.local_step import in_first_epoch
from fedavg_jax.engine.local_step import initial_model
from fedavg_jax.engine.local_step import local_step
from fedavg_jax.engine.local_step import measure
from fedavg_jax.engine.local_step import round_context
from fedavg_jax.engine.prefetch import Buffer
from fedavg_jax.schedule.plan import Plan


class Kept(NamedTuple):
  """Holds a client state that includes the state of the client's model.

  Attributes:
    algorithm: the client state that `client_finish` returns.
    model_state: the model's state, which is not trained.
  """

  algorithm: Any
  model_state: Any


def kept(state_of: str, state: Any, model_state: Any) -> Any:
  """Returns the client state to store, with the model's state if per client.

  Args:
    state_of: the value of `Model.state_of`.
    state: the client state of the algorithm.
    model_state: the state of the client's model.
  """
  return Kept(state, model_state) if state_of == 'client' else state


class RoundSums(NamedTuple):
  """Holds running sums over the finished clients of a cohort.

  Dropped clients, whose updates are not finite, count only in `skipped`.

  Attributes:
    loss: the sum of the losses of the examples read.
    examples: the number of examples read.
    weight: the sum of the clients' weights in the mean.
    skipped: the number of dropped clients.
    trained: [M] int32, 1 for each client that counts.
    messages: the sums of the algorithm's aggregator over the messages.
    client_states: [M, ...] new client states; zero for other clients.
    model_state: the weighted sum of the clients' model states.
    info: name -> float32 sum of `ClientOutput.info`.
    coded: float32, the size of the messages in bytes where it depends on their
      values, else 0.
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
  """Trains the clients of one device's lanes by its part of the plan.

  Args:
    training: the static settings, compiled in.
    state: the `compiled_round.ServerState` before the round.
    client_states: [K, ...] states of all clients.
    data: the examples of all clients, or this device's buffer.
    plan: the plan, with this device's lanes only.

  Returns:
    The sums of this device.
  """
  context = round_context(training, state, plan.seed)
  lanes = empty_lanes(
    training,
    context,
    client_states,
    plan.start.shape[0],
    asynchronous=plan.staleness is not None,
  )
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

    def in_lanes(of_lane):
      return jax.vmap(
        lambda lane, now: of_lane(
          training, context, data, plan.order, lane, now
        )
      )

    if training.algorithm.full_gradient:
      lanes = lax.cond(
        jnp.any(jax.vmap(in_first_epoch)(lanes, now)),
        in_lanes(measure),
        lambda lanes, now: lanes,
        lanes,
        now,
      )
    return in_lanes(local_step)(lanes, now)

  def until_event(s, carry):
    """Takes the steps up to event s, then finishes and starts clients."""
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
    # The other lanes stay idle to the end: the loop continues without them.
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
  """Adds the clients that finish at an event to the round's sums.

  Args:
    training: the static settings, compiled in.
    context: the context of the round.
    lanes: [L, ...] states of the lanes.
    sums: the sums so far.
    ends: [L] int32, the position in the cohort of the client that finishes in
      each lane, else -1.
    weight: [L] float32, the client's weight in the mean.
  """
  output = jax.vmap(lambda lane: client_output(training, context, lane))(lanes)
  own = kept(training.model.state_of, output.state, lanes.model_state)
  ended = counts = ends >= 0
  if training.skips_clients:
    counts &= jax.vmap(all_finite)((lanes.loss, output.message, own))
  # Scatters drop positions past the end: lanes whose clients do not count.
  position = jnp.where(counts, ends, sums.trained.size)

  def of_counted(values):
    # An idle lane's values may be NaN: exclude them, since 0 * NaN is not 0.
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
  """Starts the next client in lanes whose client has finished.

  Args:
    training: the static settings, compiled in.
    context: the context of the round.
    lanes: [L, ...] states of the lanes.
    ended: [L] bool, True where a client has finished.
    plan: the plan, which names the clients to start.
    s: the number of events so far.
    client_states: [K, ...] states of all clients.
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

  started = lanes
  if plan.staleness is not None:
    started = lanes._replace(staleness=of_next(plan.staleness, lanes.staleness))
    model_state = jax.tree.map(
      lambda new, now: where_lanes(ended, new, now),
      jax.vmap(lambda lane: initial_model(context, lane)[1])(started),
      lanes.model_state,
    )
  else:
    model_state = jax.tree.map(restart, context.model_state, lanes.model_state)
  own = client_states
  if training.model.state_of == 'client':
    own = client_states.algorithm
    model_state = jax.tree.map(
      begin, client_states.model_state, lanes.model_state
    )
  started = started._replace(
    model_state=model_state,
    client_state=jax.tree.map(begin, own, lanes.client_state),
    client_id=of_next(plan.cohort, lanes.client_id),
    num_examples=of_next(plan.num_examples, lanes.num_examples),
    updates=zero(lanes.updates),  # `grads` is zero after a full minibatch.
    loss=zero(lanes.loss),
    examples=zero(lanes.examples),
    full_gradient=jax.tree.map(
      lambda now: where_lanes(ended, jnp.zeros_like(now), now),
      lanes.full_gradient,
    ),
  )
  same_start = training.algorithm.client_start is None
  same_start &= plan.staleness is None
  if same_start and not keys.holds_keys(context.opt_state):
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
  """Returns ONE client's initial model and optimizer state."""
  algorithm = training.algorithm
  (params, _), opt_state = initial_model(context, lane), context.opt_state
  if algorithm.client_start is not None:
    key = keys.of_start(context.clients, lane.client_id)
    params = algorithm.client_start(client_context(context, lane, key))
  if params is not context.global_params:
    opt_state = algorithm.client_optimizer.init(params)
  return params, keys.own_keys(opt_state, context.clients, lane.client_id)


def empty_lanes(
  training: Training,
  context: RoundContext,
  client_states: Any,
  number: int,
  *,
  asynchronous: bool = False,
) -> LaneState:
  """Returns the states of lanes that have the global model but no client."""

  def everywhere(leaf):
    return jnp.broadcast_to(leaf, (number, *leaf.shape))

  def zeros(leaf):
    return jnp.zeros((number, *leaf.shape), leaf.dtype)

  def zeros_if(needed):
    return jax.tree.map(zeros, context.global_params) if needed else ()

  none = jnp.zeros(number, jnp.int32)
  if training.model.state_of == 'client':
    client_states = client_states.algorithm
  return LaneState(
    params=jax.tree.map(everywhere, context.global_params),
    model_state=jax.tree.map(everywhere, context.model_state),
    opt_state=jax.tree.map(everywhere, context.opt_state),
    grads=zeros_if(training.accumulates),
    client_state=jax.tree.map(lambda store: zeros(store[0]), client_states),
    client_id=none,
    num_examples=none,
    updates=none,
    loss=jnp.zeros(number, jnp.float32),
    examples=none,
    staleness=none if asynchronous else None,
    full_gradient=zeros_if(training.algorithm.full_gradient),
  )


def empty_sums(
  training: Training, context: RoundContext, lanes: LaneState, cohort: int
) -> RoundSums:
  """Returns the sums over no client, for a cohort of M."""
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
  """Returns rows of `new` where flags [L] are True, else of `old`, [L, ...]."""
  return jnp.where(flags.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def all_finite(tree: Any) -> jax.Array:
  """Returns whether all floating-point leaves of a tree are finite, [] bool."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
