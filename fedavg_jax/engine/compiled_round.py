"""Builds a communication round as one compiled call.

`round_fn(state, client_states, data, plan)` trains the cohort and updates the
global model. The code for one client (`local_step.py`, `algorithms/`) is
vmapped over the lanes; the lanes are sharded over the devices of a mesh. Trip
counts come from the plan, so that one compilation serves every cohort.

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
from fedavg_jax.engine import earlier_models
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

# The placement of a plan's arrays: every device has the replicated ones, and of
# the others the part of its own lanes.
_REPLICATED = (
  *('cohort', 'slots', 'num_examples', 'share', 'order', 'seed'),
  'staleness',
)
PLAN_SPECS = Plan._make(
  jax.P() if name in _REPLICATED else jax.P('lanes') for name in Plan._fields
)


class ServerState(NamedTuple):
  """Holds the global model and the server's state between rounds.

  In a sweep of G values every leaf has a leading axis [G].

  Attributes:
    round: int32 scalar, the number of rounds done.
    params: the parameters of the global model, w_t.
    server: the algorithm's server state, such as that of an optimizer.
    model_state: the state of the global model that is not trained, such as the
      statistics of BatchNorm; () if there is none.
    earlier: the last models of asynchronous clients, [H, ...], parameters and
      model state; () where clients start from the newest model.

  >>> import fedavg_jax as fa
  >>> state = fa.engine.ServerState(round=0, params={'w': 1.0}, server=())
  >>> state.variables
  {'w': 1.0}
  >>> state._replace(model_state={'mean': 0.0}).variables
  Variables(params={'w': 1.0}, state={'mean': 0.0})
  """

  round: jax.Array
  params: optax.Params
  server: Any
  model_state: Any = ()
  earlier: Any = ()

  @property
  def variables(self) -> Any:
    """Returns the argument of the model's functions, params or `Variables`."""
    return join(self.params, self.model_state)


class RoundMetrics(NamedTuple):
  """Holds the metrics of one round, scalars on the devices.

  Attributes:
    train_loss: float32, the mean loss of the examples read, each before its own
      step.
    examples: int32, the number of examples that the cohort read in all local
      epochs.
    skipped: int32, the number of clients dropped by `on_nan = 'skip_client'`,
      whose loss, message or new state was not finite. Loss and examples exclude
      theirs.
    info: name -> float32, the mean of `ClientOutput.info` over the clients that
      count, and what `Algorithm.server_info` returns.
    coded: float32, the size in bytes of the messages that count, if it depends
      on their values, else 0.
    finite: bool, False if the loss, the new model or a new state of the server
      or a client is not finite; the round has then changed nothing.

  >>> import fedavg_jax as fa
  >>> fa.engine.RoundMetrics._fields
  ('train_loss', 'examples', 'skipped', 'info', 'coded', 'finite')
  """

  train_loss: jax.Array
  examples: jax.Array
  skipped: jax.Array
  info: dict[str, jax.Array]
  coded: jax.Array
  finite: jax.Array


def lane_mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """Returns a mesh of the devices with one axis, 'lanes'.

  Args:
    devices: the devices of the mesh, at least one.

  >>> import jax
  >>> import fedavg_jax as fa
  >>> dict(fa.engine.lane_mesh(jax.devices()[:1]).shape)
  {'lanes': 1}
  """
  return jax.sharding.Mesh(devices, ('lanes',))


def init_state(
  variables: Any,
  algorithm: Algorithm,
  mesh: jax.sharding.Mesh,
  num_models: int = 0,
) -> ServerState:
  """Returns the server's state before round 1, on every device of the mesh.

  Args:
    variables: the initial global model, from `Model.init`.
    algorithm: the algorithm, whose `server_init` makes the server state.
    mesh: the devices, from `lane_mesh`.
    num_models: H, the number of last models to store for asynchronous clients.

  >>> import jax, optax
  >>> import fedavg_jax as fa
  >>> algorithm = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> mesh = fa.engine.lane_mesh(jax.devices()[:1])
  >>> state = fa.engine.init_state({'w': jax.numpy.ones(4)}, algorithm, mesh)
  >>> int(state.round), state.params['w'].shape
  (0, (4,))
  """
  params, model_state = split(variables)
  state = ServerState(
    round=jnp.zeros((), jnp.int32),
    params=params,
    server=algorithm.server_init(params),
    model_state=model_state,
    earlier=earlier_models.first((params, model_state), num_models),
  )
  return collectives.put(state, jax.sharding.NamedSharding(mesh, jax.P()))


def init_client_states(
  variables: Any,
  algorithm: Algorithm,
  num_clients: int,
  mesh: jax.sharding.Mesh,
  state_of: str = 'everybody',
) -> Any:
  """Returns the states of K clients before round 1, on every device.

  Args:
    variables: the initial global model, from `Model.init`.
    algorithm: the algorithm, whose `client_init` makes a client's state.
    num_clients: K, the number of clients.
    mesh: the devices, from `lane_mesh`.
    state_of: the value of `Model.state_of`; with 'client' each client also has
      its own model state.

  Returns:
    A tree of arrays [K, ...], without leaves if clients have no state.

  >>> import jax, optax
  >>> import fedavg_jax as fa
  >>> algorithm = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> mesh = fa.engine.lane_mesh(jax.devices()[:1])
  >>> fa.engine.init_client_states(
  ...   {'w': jax.numpy.ones(4)}, algorithm, num_clients=3, mesh=mesh)
  ()
  """

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
  """Returns the states of some clients before they are first drawn.

  Args:
    algorithm: the algorithm, whose `client_init` makes a client's state.
    state_of: the value of `Model.state_of`.
    variables: the initial global model.
    clients: [M] int32 client ids.

  Returns:
    A tree of arrays [M, ...].
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
  """Builds the jitted round, Algorithm 1 of McMahan et al. 2017.

  The client states passed to it are donated.

  Args:
    model: the model that the clients train. The key of its augmentation depends
      only on seed, round, row and the client's updates so far.
    algorithm: the algorithm, such as `fa.fedavg(...)`.
    planner: the planner of the rounds' plans.
    mesh: the planner's devices, from `lane_mesh`.
    loss: the loss of the model's outputs, (outputs, batch) -> [B].
    on_nan: the reaction to clients that are not finite, one of
      `choices.ON_NAN`. With 'skip_client' they are dropped, and the weights of
      the others are divided by their sum; a round that drops all clients
      changes nothing. With 'stop' one such client makes the round not finite.
      With both, so does a mean or a server state that is not finite.
    counts_bytes: True to count each message with `Algorithm.num_bytes`.

  Returns:
    `round_fn(state, client_states, data, plan) -> (state, client_states,
    metrics)`; data are the examples of all clients, or with a streamed planner
    the buffers of the devices. Metrics are `RoundMetrics`.

  Raises:
    InputError: `on_nan` is not one of `choices.ON_NAN`.

  >>> import jax, numpy as np, optax
  >>> import fedavg_jax as fa
  >>> w, x, y = np.zeros((4, 2)), np.ones((30, 4)), np.zeros(30, np.int32)
  >>> model = fa.Model('linear', lambda key: w, lambda w, x: x @ w)
  >>> algorithm = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> planner = fa.engine.Planner(
  ...   num_examples=np.array([20, 10]), cohort_size=2, epochs=2, batch_size=5,
  ...   seed=0)
  >>> mesh = fa.engine.lane_mesh(jax.devices()[:1])
  >>> round_fn = fa.engine.build_round(model, algorithm, planner, mesh)
  >>> state, _, metrics = round_fn(
  ...   fa.engine.init_state(w, algorithm, mesh), (),
  ...   fa.engine.place_examples(x, y, mesh), planner(1))
  >>> int(state.round), int(metrics.examples)
  (1, 60)
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
    own = algorithm.server_info(state.server) if algorithm.server_info else {}
    return new_state, client_states, round_metrics(sums, finite, own)

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
  """Computes the next global model from the sums over all devices.

  Args:
    training: the static settings, compiled in.
    state: the state before the round.
    sums: the sums over all clients of the cohort.
    plan: the plan of the round.

  Returns:
    The state after the round, or the previous one if a value is not finite; and
    whether all values are finite, [] bool.
  """
  # The weight is 1 if no client was dropped: the same bits as without skipping.
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
  # A private round shows nobody whether there was a client in it.
  private = training.algorithm.mechanism is not None
  any_trained = private or jnp.any(sums.trained > 0)
  params, server, model_state = jax.tree.map(
    lambda new, old: jnp.where(any_trained, new, old),
    (params, server, model_state),
    (state.params, state.server, state.model_state),
  )
  finite = all_finite(
    (aggregate, params, server, model_state, sums.client_states)
  )
  if not training.skips_clients:  # Losses that are not finite are in the sum.
    finite &= jnp.isfinite(sums.loss)
  earlier = earlier_models.write(state.earlier, (params, model_state), number)
  new_state = ServerState(number, params, server, model_state, earlier)
  return jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), new_state, state
  ), finite


def keep_states(
  client_states: Any, sums: RoundSums, slots: jax.Array, finite: jax.Array
) -> Any:
  """Writes the trained clients' states into those of all clients, [K, ...]."""
  changed = finite & (sums.trained > 0)  # [M]
  return jax.tree.map(
    lambda store, kept: store.at[slots].set(
      where_lanes(changed, kept, store[slots])
    ),
    client_states,
    sums.client_states,
  )


def round_metrics(
  sums: RoundSums, finite: jax.Array, info: dict[str, Any]
) -> RoundMetrics:
  """Computes the metrics of a round; `info` has those of the server."""
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
    )
    | info,
    coded=sums.coded,
    finite=finite,
  )


def place_plan(plan: Plan, mesh: jax.sharding.Mesh) -> Plan:
  """Places a plan for the round; each of several processes places its part."""
  if not processes.is_distributed():
    return plan
  shardings: Any = jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec), PLAN_SPECS
  )
  return collectives.put(plan, shardings)


def place_examples(x: Any, y: Any, mesh: jax.sharding.Mesh) -> Examples:
  """Places all examples on every device of the mesh.

  Args:
    x: [n, ...] inputs, or a tree of such arrays.
    y: [n, ...] targets, or a tree of such arrays.
    mesh: the devices, from `lane_mesh`.

  >>> import jax, numpy as np
  >>> import fedavg_jax as fa
  >>> mesh = fa.engine.lane_mesh(jax.devices()[:1])
  >>> x = np.ones((30, 4), np.float32)
  >>> data = fa.engine.place_examples(x, np.zeros(30, np.int32), mesh)
  >>> data.x.shape, data.y.shape
  ((30, 4), (30,))
  """
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return collectives.put(Examples(x, y), everywhere)
