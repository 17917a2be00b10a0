"""A federation, compiled for the devices at hand.

What a notebook uses; `driver.py` runs it, `train.py` adds a config, a folder.

Shape letters: R rounds of a call at most; the others as in `planning.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.task import Sums
from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task import make_task
from fedavg_jax.contracts.task import results
from fedavg_jax.core import client_data
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import client_state_store
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import layout
from fedavg_jax.engine import prefetch
from fedavg_jax.engine import program
from fedavg_jax.engine import superstep
from fedavg_jax.engine.hyperparameter_axis import Single
from fedavg_jax.engine.hyperparameter_axis import Sweep
from fedavg_jax.engine.laid_out import Parts
from fedavg_jax.engine.laid_out import lay_out
from fedavg_jax.engine.options import Execution
from fedavg_jax.engine.options import Federation
from fedavg_jax.engine.options import Placement
from fedavg_jax.models import layers
from fedavg_jax.schedule import planning


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
    task: what is learned, and by what it is measured.
    test: the test set on the devices.
    evaluate: variables of a model -> results of its test, by name.
    test_sums: variables of a model -> the sums that they are made of.
    compile_seconds: what compiling took, by the wall clock.
    why_lanes: one line, why the planner has the lanes it has.
    with_lanes: number of lanes -> the same federation with other lanes.
    sweep: the values of a sweep, None for a single algorithm.
    host_states: where clients' states stay on the host, a function that makes
      them anew, optionally in a file of some folder; `init` then has none.
  """

  init: Callable[[], tuple[compiled_round.ServerState, Any]]
  planner: planning.Planner
  call: Callable
  rounds_per_call: int
  data: Callable[[Sequence[int]], Any]
  mesh: jax.sharding.Mesh
  task: Task
  test: evaluation.TestSet
  evaluate: Callable[[Any], dict[str, Any]]
  test_sums: Callable[[Any], Sums]
  compile_seconds: float
  why_lanes: str
  with_lanes: Callable[[int], 'Simulation']
  sweep: tuple[float, ...] | None
  host_states: Callable[..., client_state_store.ClientStates] | None
  parts: Parts


def build_simulation(
  model: Model,
  federation: Federation,
  algorithm: Algorithm,
  *,
  loss: Loss = losses.cross_entropy,
  metrics: Sequence[Metric] | None = None,
  execution: Execution = Execution(),  # noqa: B008 (they are frozen)
  placement: Placement = Placement(),  # noqa: B008
) -> Simulation:
  """Compiles a federation for the devices at hand.

  Args:
    model: from `zoo.build_model`, or your own pair of init and apply.
    federation: who trains on what, how much, and how cohorts are drawn.
    algorithm: such as `fedavg(optax.sgd(eta), optax.sgd(1.0))`.
    loss: (outputs, batch) -> [B], see `losses`.
    metrics: of tests, see `metrics`; the first name of the first one is what
      targets go by. None takes accuracy and loss with cross entropy, and the
      mean loss with any other one.
    execution: lanes, devices, rounds per call.
    placement: whether examples and client states stay on the host.

  Returns:
    A `Simulation`.

  Raises:
    InputError: a value breaks its rule, or a hook of the algorithm its form.
  """
  if not isinstance(algorithm, Algorithm):
    raise InputError(
      'algorithm: must be an Algorithm, such as fa.fedavg(...); a function that'
      ' makes one of a value is for build_sweep'
    )
  task = make_task(model, loss, metrics)
  trained = Single(algorithm)
  return _build(Parts(task, federation, trained, execution, placement))


def build_sweep(
  model: Model,
  federation: Federation,
  algorithm_of: Callable[[jax.Array], Algorithm],
  values: Sequence[float],
  *,
  loss: Loss = losses.cross_entropy,
  metrics: Sequence[Metric] | None = None,
  execution: Execution = Execution(),  # noqa: B008 (they are frozen)
  placement: Placement = Placement(),  # noqa: B008
) -> Simulation:
  """Compiles a federation that runs with several values at once.

  All begin with the same weights and read the same examples; each value's model
  is the one that it would have by itself.

  Args:
    model: as in `build_simulation`.
    federation: as in `build_simulation`.
    algorithm_of: makes the algorithm of a value, a float32 scalar.
    values: [G], such as learning rates.
    loss: as in `build_simulation`.
    metrics: as in `build_simulation`.
    execution: as in `build_simulation`.
    placement: as in `build_simulation`; what clients keep is on the devices.

  Returns:
    A `Simulation` whose records have an entry per value.

  Raises:
    InputError: as `build_simulation`, or there is no value.
  """
  trained = Sweep(algorithm_of, tuple(float(value) for value in values))
  task = make_task(model, loss, metrics)
  return _build(Parts(task, federation, trained, execution, placement))


def lower_simulation(
  model: Model,
  federation: Federation,
  algorithm: Algorithm,
  *,
  loss: Loss = losses.cross_entropy,
  metrics: Sequence[Metric] | None = None,
  execution: Execution = Execution(),  # noqa: B008 (they are frozen)
  placement: Placement = Placement(),  # noqa: B008
) -> program.Program:
  """Lays a federation out and places nothing: its devices need not be here.

  Args:
    model: as in `build_simulation`.
    federation: as in `build_simulation`.
    algorithm: as in `build_simulation`.
    loss: as in `build_simulation`.
    metrics: as in `build_simulation`.
    execution: its devices may be those of `jax.experimental.topologies`.
    placement: as in `build_simulation`.

  Returns:
    A program, whose `lower()` gives what XLA compiles for these devices, and
    `export(platform)` what it gets for another platform.
  """
  trained = Single(algorithm)
  task = make_task(model, loss, metrics)
  laid_out = lay_out(Parts(task, federation, trained, execution, placement))
  return laid_out.program(laid_out.planner)


def _build(parts: Parts) -> Simulation:
  """Compiles; with fewer lanes where the devices have no memory for them."""
  laid_out = lay_out(parts)
  clients, test = (
    laid_out.parts.federation.clients,
    laid_out.parts.federation.test,
  )

  @functools.cache  # Fewer lanes find the data where it is.
  def on_devices(number: int):
    mesh = compiled_round.lane_mesh(laid_out.devices[:number])
    data: Any = None
    if not laid_out.planner.streamed:
      # Read, where they are on disk.
      x, y = (trees.map_arrays(np.asarray, own) for own in clients[:2])
      data = compiled_round.place_examples(x, y, mesh)
    return data, evaluation.place_test_set(test, mesh)

  def with_lanes(lanes: int, why: str) -> Simulation:
    planner = laid_out.planner
    if lanes != planner.lanes:
      planner = layout.lay_out(planner, lanes, min(planner.num_devices, lanes))
    own = laid_out.program(planner)
    data, test_set = on_devices(planner.num_devices)
    source: Any = functools.partial(_resident, data)
    if planner.streamed:
      source = prefetch.Stream(clients, planner, own.mesh)
    return _compile(
      own,
      laid_out.parts,
      source,
      data,
      test_set,
      why_lanes=why,
      with_lanes=lambda fewer: with_lanes(fewer, 'limited by device memory'),
    )

  lanes, why = laid_out.planner.lanes, laid_out.why
  while True:
    try:
      return with_lanes(lanes, why)
    except jax.errors.JaxRuntimeError as error:
      lanes = layout.fewer_lanes(lanes, laid_out.planner, error)
      why = 'limited by device memory'


def _compile(
  own: program.Program,
  parts: Parts,
  source: Callable[[Sequence[int]], Any],
  data: client_data.Examples | None,
  test_set: evaluation.TestSet,
  *,
  why_lanes: str,
  with_lanes: Callable[[int], Simulation],
) -> Simulation:
  """Compiles once what serves every round."""
  going, states, kept, shapes, _, schedule = own.arguments()
  start = time.perf_counter()
  call = own.compile(
    (
      going,
      states,
      kept,
      shapes if data is None else data,
      test_set,
      superstep.place(schedule, own.mesh),
    )
  )
  with layers.for_platform(own.platform):
    evaluate = own.evaluate().lower(states.variables, test_set).compile()

  def test_sums(variables):
    return jax.device_get(evaluate(variables, test_set))

  return Simulation(
    init=own.init,
    host_states=own.host_states if own.planner.gathers else None,
    planner=own.planner,
    call=call,
    rounds_per_call=own.rounds_per_call,
    data=source,
    mesh=own.mesh,
    task=own.task,
    test=test_set,
    evaluate=lambda variables: results(own.task, test_sums(variables)),
    test_sums=test_sums,
    compile_seconds=time.perf_counter() - start,
    why_lanes=why_lanes,
    with_lanes=with_lanes,
    sweep=own.trained.values,
    parts=parts,
  )


def check_is_simulation(found: Any) -> None:
  """Raises InputError where something else stands for a simulation."""
  if not isinstance(found, Simulation):
    raise InputError(
      f'simulation: is {type(found).__name__}, must be what `build_simulation`'
      ' or `build_sweep` returns'
    )


def place(tree: Any, simulation: Simulation) -> Any:
  """Arrays, on every device of a simulation."""
  return collectives.put(
    tree, jax.sharding.NamedSharding(simulation.mesh, jax.P())
  )


def _resident(data: client_data.Examples, numbers: Sequence[int]):
  """What every round reads from, where all of it is on the devices."""
  del numbers
  return data
