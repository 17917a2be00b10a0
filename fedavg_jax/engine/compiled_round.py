"""A communication round as one compiled call.

`round_fn(state, client_states, data, plan)` trains the whole cohort and updates
the global model. What happens to one client is written for one client
(`local_step.py`, `algorithms/`) and vmapped over the lanes; the lanes are
sharded over the devices of a mesh. Trip counts come from the plan, so that one
compilation serves every cohort.

Shape letters: M clients of the cohort, the others as in `planning.py`.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import join
from fedavg_jax.contracts.model import split
from fedavg_jax.core import choices
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import collectives
from fedavg_jax.engine import keys
from fedavg_jax.engine import processes
from fedavg_jax.engine.client_round import RoundSums
from fedavg_jax.engine.client_round import all_finite
from fedavg_jax.engine.client_round import kept
from fedavg_jax.engine.client_round import train_lanes
from fedavg_jax.engine.client_round import where_lanes
from fedavg_jax.engine.local_step import Training
from fedavg_jax.schedule.plan import Plan
from fedavg_jax.schedule.planning import Planner

_TINY = np.finfo(np.float32).tiny

# Where a plan's arrays live: each device has its own lanes' part of the others.
_OF_ALL = 'cohort', 'slots', 'num_examples', 'share', 'order', 'seed'
PLAN_SPECS = Plan._make(
  jax.P() if name in _OF_ALL else jax.P('lanes') for name in Plan._fields
)


class ServerState(NamedTuple):
  """What the server keeps between rounds.

  Attributes:
    round: int32 scalar, rounds done.
    params: the global model w_t.
    server: what the algorithm keeps, such as an optimizer's state.
    model_state: of the global model, what is not trained; () where there is
      none.
  """

  round: jax.Array
  params: optax.Params
  server: Any
  model_state: Any = ()

  @property
  def variables(self) -> Any:
    """What the functions of the model take."""
    return join(self.params, self.model_state)


class RoundMetrics(NamedTuple):
  """What one round reports.

  Attributes:
    train_loss: mean loss of the examples read, each before its own step.
    examples: examples read by the cohort in all local epochs.
    skipped: clients left out, because the loss, the message or what the client
      would keep was not finite; of `on_nan = 'skip_client'`. Loss and examples
      are without theirs.
    info: name -> mean of `ClientOutput.info` over the clients that count.
    coded: float32, bytes of the messages that count, where these depend on the
      numbers in them, else 0.
    finite: False where the loss, the new model or what server or clients would
      keep is not finite; the round then left everything as it was.
  """

  train_loss: jax.Array
  examples: jax.Array
  skipped: jax.Array
  info: dict[str, jax.Array]
  coded: jax.Array
  finite: jax.Array


def lane_mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """The devices along one axis, 'lanes'."""
  return jax.sharding.Mesh(devices, ('lanes',))


def init_state(
  variables: Any, algorithm: Algorithm, mesh: jax.sharding.Mesh
) -> ServerState:
  """The state before the first round, on every device of the mesh."""
  params, model_state = split(variables)
  state = ServerState(
    round=jnp.zeros((), jnp.int32),
    params=params,
    server=algorithm.server_init(params),
    model_state=model_state,
  )
  return collectives.put(state, jax.sharding.NamedSharding(mesh, jax.P()))


def init_client_states(
  variables: Any,
  algorithm: Algorithm,
  num_clients: int,
  mesh: jax.sharding.Mesh,
  state_of: str = 'everybody',
) -> Any:
  """What the K clients keep before round 1, [K, ...], on every device."""

  def init(variables):
    clients = jnp.arange(num_clients, dtype=jnp.int32)
    return first_states(algorithm, state_of, variables, clients)

  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.jit(init, out_shardings=everywhere)(
    collectives.put(variables, everywhere)
  )


def first_states(
  algorithm: Algorithm, state_of: str, variables: Any, clients: jax.Array
) -> Any:
  """Returns what some clients keep before they are first drawn.

  Args:
    algorithm: any.
    state_of: as of `Model`.
    variables: of the first global model.
    clients: [M] int32, their numbers.

  Returns:
    [M, ...].
  """

  def init(variables, client):
    params, model_state = split(variables)
    return kept(state_of, algorithm.client_init(params, client), model_state)

  return jax.vmap(init, in_axes=(None, 0))(variables, clients)


def build_round(
  model: Model,
  algorithm: Algorithm,
  planner: Planner,
  mesh: jax.sharding.Mesh,
  *,
  loss: Loss = losses.cross_entropy,
  on_nan: str = 'stop',
  counts_bytes: bool = False,
) -> jax.stages.Wrapped:
  """Builds the jitted round; the client states that go in are donated.

  Args:
    model: that the clients train. The key of its augmentation depends on seed,
      round, row and the client's updates so far, and on nothing else.
    algorithm: such as `algorithms.fedavg`.
    planner: that will make the plans.
    mesh: its devices, from `lane_mesh`.
    loss: of the model's outputs.
    on_nan: one of `choices.ON_NAN`. 'skip_client' takes the mean over those
      clients that end with finite numbers, with weights that add up to one; a
      round in which none does changes nothing. With 'stop' one client's Inf is
      the round's. With both, a mean or a server that is not finite is.
    counts_bytes: whether the algorithm's `num_bytes` is asked for each message.

  Returns:
    `round_fn(state, client_states, data, plan) -> (state, client_states,
    metrics)`; data are all clients' examples, or where the planner streams
    what each device's own ones hold.

  Raises:
    InputError: another `on_nan`.
  """
  choices.check_choice('on_nan', on_nan, choices.ON_NAN)
  training = Training(
    model=model,
    loss=loss,
    algorithm=algorithm,
    step_examples=planner.step_examples,
    accumulates=planner.accumulates,
    skips_clients=on_nan == 'skip_client',
    counts_bytes=counts_bytes,
    widths=planner.widths,
  )
  everywhere = jax.P()
  data_spec = jax.P('lanes') if planner.streamed else everywhere

  def train_device(*args):
    return collectives.sum_over_devices(train_lanes(training, *args))

  train_cohort = jax.shard_map(
    train_device,
    mesh=mesh,
    in_specs=(everywhere, everywhere, data_spec, PLAN_SPECS),
    out_specs=everywhere,
    check_vma=False,
  )

  def round_fn(state, client_states, data, plan):
    sums = train_cohort(state, client_states, data, plan)
    new_state, finite = server_step(training, state, sums, plan)
    client_states = keep_states(client_states, sums, plan.slots, finite)
    return new_state, client_states, round_metrics(sums, finite)

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


def server_step(
  training: Training, state: ServerState, sums: RoundSums, plan: Plan
) -> tuple[ServerState, jax.Array]:
  """Makes the next global model of the sums over all devices.

  Args:
    training: what is compiled in.
    state: before the round.
    sums: over all clients of the cohort.
    plan: of the round.

  Returns:
    The state after the round, or the one before where something is not finite;
    and whether all is finite, [] bool.
  """
  # One where nobody is left out: the same bits as without skipping.
  complete = sums.skipped == 0
  weight = jnp.where(complete, 1.0, jnp.maximum(sums.weight, _TINY))
  number = state.round + 1
  aggregate = training.algorithm.aggregate.result(sums.messages, weight)
  params, server = training.algorithm.server_update(
    state.params,
    state.server,
    aggregate,
    ServerContext(
      round=number,
      key=keys.of_server(plan.seed, number),
      share=plan.share * weight,
      clients=plan.cohort,
      reported=sums.trained > 0,
    ),
  )
  model_state = jax.tree.map(
    lambda total, old: (total / weight).astype(old.dtype),
    sums.model_state,
    state.model_state,
  )
  if training.model.state_of == 'nobody':
    model_state = state.model_state
  somebody = jnp.any(sums.trained > 0)
  params, server, model_state = jax.tree.map(
    lambda new, old: jnp.where(somebody, new, old),
    (params, server, model_state),
    (state.params, state.server, state.model_state),
  )
  finite = all_finite(
    (aggregate, params, server, model_state, sums.client_states)
  )
  if not training.skips_clients:  # Nobody is left out whose loss is not finite.
    finite &= jnp.isfinite(sums.loss)
  new_state = ServerState(number, params, server, model_state)
  return jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), new_state, state
  ), finite


def keep_states(
  client_states: Any, sums: RoundSums, slots: jax.Array, finite: jax.Array
) -> Any:
  """Writes what the trained clients keep into the states of all, [K, ...]."""
  changed = finite & (sums.trained > 0)  # [M]
  return jax.tree.map(
    lambda store, kept: store.at[slots].set(
      where_lanes(changed, kept, store[slots])
    ),
    client_states,
    sums.client_states,
  )


def round_metrics(sums: RoundSums, finite: jax.Array) -> RoundMetrics:
  """Turns the sums of a round into its metrics."""
  examples = jnp.maximum(sums.examples, 1).astype(jnp.float32)
  return RoundMetrics(
    train_loss=sums.loss / examples,
    examples=sums.examples,
    skipped=sums.skipped,
    info=jax.tree.map(
      lambda total: (
        total / jnp.maximum(jnp.sum(sums.trained), 1).astype(jnp.float32)
      ),
      sums.info,
    ),
    coded=sums.coded,
    finite=finite,
  )


def place_plan(plan: Plan, mesh: jax.sharding.Mesh) -> Plan:
  """A plan as the round takes it: of several processes each puts its part."""
  if not processes.several():
    return plan
  shardings: Any = jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec), PLAN_SPECS
  )
  return collectives.put(plan, shardings)


def place_examples(x: Any, y: Any, mesh: jax.sharding.Mesh) -> Examples:
  """Puts all examples on every device of the mesh, to stay there."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return collectives.put(Examples(x, y), everywhere)
