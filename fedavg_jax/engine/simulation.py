"""A federation, compiled for the devices at hand.

What a notebook uses; `driver.py` runs it, `train.py` adds a config, a folder.

Shape letters: R rounds of a call at most; the others as in `planning.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import check_algorithm
from fedavg_jax.contracts.algorithm import traffic
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.core import client_data
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import client_state_store
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import cost
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import examples
from fedavg_jax.engine import hyperparameter_axis
from fedavg_jax.engine import layout
from fedavg_jax.engine import prefetch
from fedavg_jax.engine import processes
from fedavg_jax.engine import superstep
from fedavg_jax.engine.devices import check_jax
from fedavg_jax.schedule import planning
from fedavg_jax.schedule.participation import EVERYBODY
from fedavg_jax.schedule.participation import Participation

# Of a call at most: rounds, and bytes of their plans.
_MOST_ROUNDS, _MOST_PLAN_BYTES = 64, 2**24
# That have their data on a device at most: begun, and read ahead.
_CALLS_WITH_DATA = superstep.CALLS_IN_FLIGHT + prefetch.AHEAD
# Rows of a step unless told otherwise, where a minibatch has more.
_MICRO_BATCH = 256
# XLA:CPU finds more arrays of a loop that it can update in place: a CNN step is
# 8 % faster, one of the 2NN 5 %.
_COMPILER_OPTIONS: dict[str, dict[str, bool | str]] = {
  'cpu': {'xla_cpu_copy_insertion_use_region_analysis': True}
}


class Simulation(NamedTuple):
  """A federation ready to run: compiled, its data on the device.

  Attributes:
    init: () -> (server state, client states) before round 1; the same ones
      every time.
    planner: round number -> plan.
    call: from `superstep.build_call`, compiled.
    rounds_per_call: R.
    data: numbers of a call's rounds -> the examples that they read, on the
      devices: all clients' ones, or a buffer of the cohort's.
    mesh: the devices.
    test: the test set on the devices.
    evaluate: params -> test metrics.
    compile_seconds: what compiling took, by the wall clock.
    why_lanes: one line, why the planner has the lanes it has.
    with_lanes: number of lanes -> the same federation with other lanes.
    sweep: the values of a sweep, None for a single experiment.
    host_states: where clients' states stay on the host, a function that makes
      them anew, optionally in a file of some folder; `init` then has none.
  """

  init: Callable[[], tuple[compiled_round.ServerState, Any]]
  planner: planning.Planner
  call: Callable
  rounds_per_call: int
  data: Callable[[Sequence[int]], Any]
  mesh: jax.sharding.Mesh
  test: client_data.Examples
  evaluate: Callable[[Any], evaluation.TestMetrics]
  compile_seconds: float
  why_lanes: str
  with_lanes: Callable[[int], 'Simulation']
  sweep: tuple[float, ...] | None
  host_states: Callable[..., client_state_store.ClientStates] | None


def build_simulation(
  model: Model,
  clients: client_data.Clients,
  test: client_data.Examples,
  *,
  algorithm: Algorithm | Callable[[jax.Array], Algorithm],
  client_fraction: float,
  epochs: int,
  batch_size: int,
  participation: Participation = EVERYBODY,
  weighting: str = 'examples',
  on_nan: str = 'stop',
  shuffle: str = 'epoch',
  seed: int = 0,
  lanes: int = 0,
  widths: Sequence[int] | None = None,
  micro_batch: int = 0,
  rounds_per_call: int = 0,
  devices: Sequence[jax.Device] | None = None,
  sweep: Sequence[float] | None = None,
  stream: bool = False,
  keep_on_host: bool = False,
) -> Simulation:
  """Compiles a federation for the devices at hand.

  Args:
    model: from `zoo.build_model`, or your own pair of init and apply.
    clients: the population, from `client_data.build_clients`.
    test: the central test set.
    algorithm: such as `fedavg(optax.sgd(eta), optax.sgd(1.0))`; of a sweep, a
      function that makes one of a value.
    client_fraction: C; the cohort is max(int(C * K), 1) clients.
    epochs: E.
    batch_size: B, 0 for all local examples in one step.
    participation: who can be drawn, stragglers, and how fast clients are.
    weighting: one of `choices.WEIGHTINGS`.
    on_nan: one of `choices.ON_NAN`.
    shuffle: one of `choices.SHUFFLES`.
    seed: of initial weights, cohorts and orders.
    lanes: clients that train side by side, on all devices together; 0 chooses.
      Never changes what is computed, but for rounding.
    widths: lanes of a device that step together, the first of them all, the
      next once the others are idle; chosen if left out.
    micro_batch: examples of a step at most; a larger minibatch takes several
      steps and one update. 0 chooses.
    rounds_per_call: at most; 0 chooses, and fewer where rounds are long.
    devices: to run on; all of JAX's default backend if left out.
    sweep: runs the federation with each of these values at once; all begin with
      the same weights and read the same examples.
    stream: keeps on the devices only what a round's cohort holds, read ahead by
      threads, one round a call; the clients' arrays may be memory maps. The
      same bits as without.
    keep_on_host: keeps what clients keep, such as SCAFFOLD's control variates,
      on the host; the devices have the cohort's alone, one round a call. The
      same bits as without.

  Returns:
    A `Simulation`.

  Raises:
    InputError: a value breaks its rule, or a hook of the algorithm its form.
  """
  check_jax()
  devices = list(jax.devices() if devices is None else devices)
  rules.check_seed(seed)
  rules.check_whole('rounds_per_call', rounds_per_call, 0)
  planner = planning.Planner(
    num_examples=clients.num_examples,
    cohort_size=planning.cohort_size(clients.num_clients, client_fraction),
    participation=participation,
    epochs=epochs,
    batch_size=batch_size,
    micro_batch=micro_batch or _MICRO_BATCH,
    shuffle=shuffle,
    weighting=weighting,
    seed=seed,
    streamed=stream,
  )
  if (stream or keep_on_host) and rounds_per_call > 1:
    raise InputError(
      f'rounds_per_call = {rounds_per_call}: must be 1 where examples or states'
      ' of clients stay on the host'
    )
  params = examples.init_shapes(model, seed)
  clients, test = examples.check(
    model, params, clients, test, on_nan=on_nan, stream=stream
  )
  loss_fn = losses.cross_entropy(model.apply)
  if sweep is not None:
    sweep = tuple(float(value) for value in sweep)
    if not sweep:
      raise InputError('sweep = (): must hold at least one value')
  elif not isinstance(algorithm, Algorithm):
    raise InputError('algorithm: must be an Algorithm where there is no sweep')
  one = _one(algorithm, sweep)
  together = 1  # Experiments that train side by side.
  if sweep is not None and devices[0].platform != 'cpu':
    together = len(sweep)
  check_algorithm(one, params)
  down, up = traffic(one, params)
  state_bytes = num_bytes(jax.eval_shape(one.client_init, params))
  gathers = keep_on_host and state_bytes > 0
  if gathers and sweep is not None:
    raise InputError(
      'keep_on_host, or client_states_on of a config: must not be asked of a'
      ' sweep'
    )
  planner = dataclasses.replace(
    planner, bytes_down=down, bytes_up=up, gathers=gathers
  )
  # Clients whose states are on the devices.
  kept = clients.num_clients
  if gathers:
    kept = _CALLS_WITH_DATA * planner.cohort_size
  planner, why = layout.choose_lanes(
    lanes,
    planner,
    devices,
    num_weights=together * num_parameters(params),
    lane_bytes=together
    * _lane_bytes(loss_fn, one, model.augment, params, planner, clients),
    other_bytes=_data_bytes(clients, planner)
    + len(sweep or (0,)) * kept * state_bytes,
  )
  logging.info('%d lanes: %s', planner.lanes, why)
  if widths is not None:
    planner = dataclasses.replace(planner, widths=tuple(widths))

  @functools.cache  # Fewer lanes find the data where it is.
  def on_devices(number: int):
    mesh = compiled_round.lane_mesh(devices[:number])
    data: Any = None
    if not stream:
      x, y = map(np.asarray, clients[:2])  # Read, where they are on disk.
      data = compiled_round.place_examples(x, y, mesh)
    return mesh, data, evaluation.place_test_set(test, mesh)

  def with_lanes(lanes: int, why: str) -> Simulation:
    laid_out = planner
    if lanes != planner.lanes:
      laid_out = layout.lay_out(planner, lanes, min(planner.num_devices, lanes))
    mesh, data, test_set = on_devices(laid_out.num_devices)
    if stream:
      data = prefetch.shapes(clients, laid_out)
      source = prefetch.Stream(clients, laid_out, mesh)
    else:
      source = functools.partial(_resident, data)
    return _compile(
      model,
      loss_fn,
      algorithm,
      laid_out,
      mesh,
      (source, data, test_set),
      on_nan=on_nan,
      sweep=sweep,
      rounds_per_call=1 if stream or gathers else rounds_per_call,
      why_lanes=why,
      with_lanes=lambda fewer: with_lanes(fewer, 'memory holds no more'),
    )

  lanes = planner.lanes
  while True:
    try:
      return with_lanes(lanes, why)
    except jax.errors.JaxRuntimeError as error:
      lanes, why = fewer_lanes(lanes, planner, error), 'memory holds no more'


def _compile(
  model,
  loss_fn,
  algorithm,
  planner,
  mesh,
  data_on_devices,
  *,
  on_nan,
  sweep,
  rounds_per_call,
  why_lanes,
  with_lanes,
) -> Simulation:
  """Compiles once what serves every round."""
  source, data, test_set = data_on_devices
  seed, num_clients = planner.seed, len(planner.num_examples)
  platform = mesh.devices.flat[0].platform

  def init_of(algorithm):
    params = model.init(jax.random.key(seed))
    return (
      compiled_round.init_state(params, algorithm, mesh),
      ()
      if planner.gathers
      else compiled_round.init_client_states(
        params, algorithm, num_clients, mesh
      ),
    )

  def host_states(folder=None):
    return client_state_store.ClientStates(
      algorithm.client_init(model.init(jax.random.key(seed))),
      num_clients,
      folder,
    )

  def init():
    if sweep is None:
      return init_of(algorithm)
    # What a server begins with may depend on the value, as FedAdam's does.
    return hyperparameter_axis.stack(
      [init_of(algorithm(jnp.float32(value))) for value in sweep]
    )

  if not rounds_per_call:
    plan_bytes = sum(array.nbytes for array in planner(1))
    rounds_per_call = min(_MOST_ROUNDS, _MOST_PLAN_BYTES // plan_bytes)
    rounds_per_call = max(1, rounds_per_call)
  start = time.perf_counter()

  def make_round(algorithm):
    return compiled_round.build_round(
      loss_fn, algorithm, planner, mesh, on_nan, model.augment
    )

  test_one = evaluation.build_evaluate(model.apply, mesh)
  if sweep is None:
    round_one, evaluate = make_round(algorithm), test_one

    def round_fn(going, *args):
      del going  # Or the call would have ended.
      return round_one(*args)

  else:
    round_fn = hyperparameter_axis.build_round(
      lambda value: make_round(algorithm(value)), sweep, platform
    )

    @jax.jit
    def evaluate(params, test):
      return hyperparameter_axis.over(
        lambda one: test_one(one, test), platform
      )(params)

  states, kept = jax.eval_shape(init)
  if planner.gathers:
    kept = host_states().shapes(planner.cohort_size)['states']
  going = np.ones(() if sweep is None else len(sweep), bool)
  schedule = superstep.place(
    superstep.make_schedule(planner, [1], rounds_per_call, lambda _: True), mesh
  )
  call = superstep.build_call(
    round_fn, evaluate, mesh, jax.P('lanes') if planner.streamed else jax.P()
  )
  with examples.lowering(model, data.x.shape[1:]):
    call = call.lower(going, states, kept, data, test_set, schedule)
  call = call.compile(_COMPILER_OPTIONS.get(platform))
  evaluate = evaluate.lower(states.params, test_set).compile()
  return Simulation(
    init=init,
    host_states=host_states if planner.gathers else None,
    planner=planner,
    call=call,
    rounds_per_call=rounds_per_call,
    data=source,
    mesh=mesh,
    test=test_set,
    evaluate=lambda params: jax.device_get(evaluate(params, test_set)),
    compile_seconds=time.perf_counter() - start,
    why_lanes=why_lanes,
    with_lanes=with_lanes,
    sweep=sweep,
  )


def _one(algorithm: Any, sweep) -> Algorithm:
  """The algorithm, of a sweep with its first value."""
  return algorithm if sweep is None else algorithm(jnp.float32(sweep[0]))


def _lane_bytes(loss_fn, algorithm, augment, params, planner, clients) -> int:
  """About what a lane needs: models, their states, one step's results."""

  def gradient(params, x, y):
    if augment is not None:
      x = jax.vmap(augment, in_axes=(None, 0))(jax.random.key(0), x)
    return jax.grad(lambda params: jnp.sum(loss_fn(params, x, y)))(params)

  def shapes(array):
    return jax.ShapeDtypeStruct(
      (planner.step_examples, *array.shape[1:]), array.dtype
    )

  step = cost.count(gradient, params, shapes(clients.x), shapes(clients.y))
  held = (
    params,  # The local model, and the global one to return to.
    params,
    jax.eval_shape(algorithm.client_optimizer.init, params),
    jax.eval_shape(algorithm.client_init, params),
    params if planner.accumulates else (),
  )
  return step.bytes + num_bytes(held)


def fewer_lanes(lanes: int, planner, error: Exception) -> int:
  """Half the lanes, where the device had no memory for them; else raises."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  if processes.several():  # The others know nothing of it.
    raise InputError(
      f'lanes = {lanes}: memory holds no more; give fewer, the same for all'
      ' processes'
    ) from error
  if lanes == 1:
    raise InputError(
      'lanes = 1: not even one lane of this model fits into memory; it must be'
      ' smaller, or micro_batch'
    ) from error
  devices = min(planner.num_devices, lanes)
  if lanes > devices:
    fewer = max(lanes // devices // 2, 1) * devices
  else:
    fewer = lanes // 2
  logging.warning(
    'out of memory with %d lanes: goes on with %d, the same up to rounding',
    lanes,
    fewer,
  )
  return fewer


def place(tree: Any, simulation: Simulation) -> Any:
  """Arrays, on every device of a simulation."""
  return collectives.put(
    tree, jax.sharding.NamedSharding(simulation.mesh, jax.P())
  )


def _resident(data: client_data.Examples, numbers: Sequence[int]):
  """What every round reads from, where all of it is on the devices."""
  del numbers
  return data


def _data_bytes(clients, planner) -> int:
  """Of examples, on a device: all of them, or what calls in line read."""
  if not planner.streamed:
    return clients.x.nbytes + clients.y.nbytes
  return _CALLS_WITH_DATA * num_bytes(prefetch.shapes(clients, planner))
