"""Compiles a federation for the available devices.

Notebooks start here; `driver.py` runs the rounds, `train.py` adds a config and
a run folder.

Shape letters: R, the most rounds of a call; the others as in `planning.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import time
from typing import Any
from typing import NamedTuple

from absl import logging
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
from fedavg_jax.engine import arithmetic
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
from fedavg_jax.schedule import planning


class Simulation(NamedTuple):
  """Holds a federation that is ready to run: compiled, with data placed.

  `build_simulation` and `build_sweep` build it; `simulate` and `run` run it.

  Attributes:
    init: the function () -> (`ServerState`, client states) before round 1; its
      results are equal every time.
    planner: the planner, round number -> `Plan`.
    call: the compiled call, from `superstep.build_call`.
    lowered: the program that it was compiled from.
    rounds_per_call: R, the largest number of rounds of a call.
    data: the function numbers of a call's rounds -> their examples on the
      devices: those of all clients, or a buffer of the cohort's.
    mesh: the devices.
    task: the model, its loss and the metrics of tests.
    test: the test set on the devices.
    evaluate: the function variables of a model -> test results by name.
    test_sums: the function variables of a model -> the sums that test results
      are computed from.
    compile_seconds: the wall time of compiling in seconds.
    layout_reason: the reason for the number of lanes, one line.
    with_lanes: the function number of lanes -> the same federation with so many
      lanes.
    sweep: the G numbers of a sweep, None for a single algorithm.
    host_states: the function (folder=None) -> new `ClientStates`, if client
      states are on the host; `init` then returns none. Otherwise None.
    parts: the arguments from which the simulation was built.

  >>> import fedavg_jax as fa
  >>> fa.Simulation._fields[:3]
  ('init', 'planner', 'call')
  """

  init: Callable[[], tuple[compiled_round.ServerState, Any]]
  planner: planning.Planner
  call: jax.stages.Compiled
  lowered: jax.stages.Lowered
  rounds_per_call: int
  data: Callable[[Sequence[int]], Any]
  mesh: jax.sharding.Mesh
  task: Task
  test: evaluation.TestSet
  evaluate: Callable[[Any], dict[str, Any]]
  test_sums: Callable[[Any], Sums]
  compile_seconds: float
  layout_reason: str
  with_lanes: Callable[[int], 'Simulation']
  sweep: tuple[float, ...] | None
  host_states: Callable[..., client_state_store.ClientStates] | None
  parts: Parts

  @property
  def arithmetic(self) -> arithmetic.Arithmetic:
    """Returns how the simulation computes on its devices."""
    own = self.parts.execution
    return arithmetic.Arithmetic(
      self.mesh.devices.flat[0].platform,
      own.precision,
      own.deterministic,
      own.gpu_graphs,
    )


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
  """Compiles a federation for the available devices.

  Args:
    model: the model, from `build_model`, or a user-defined `Model`.
    federation: the clients, their local training and the drawing of cohorts.
    algorithm: the algorithm, such as `fedavg(optax.sgd(eta), optax.sgd(1.0))`.
    loss: the function (outputs, batch) -> losses [B]; see `losses`.
    metrics: the metrics of tests; see `metrics`. Targets refer to the first
      name of the first one. None takes accuracy and loss with cross entropy,
      and the mean loss with any other loss.
    execution: the settings of lanes, devices and calls.
    placement: the places of examples and client states, device or host.

  Returns:
    A `Simulation`.

  Raises:
    InputError: a value breaks its rule; the examples, model, loss and metrics
      do not fit each other; or a hook of the algorithm returns the wrong form.

  >>> import numpy as np, optax
  >>> import fedavg_jax as fa
  >>> x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
  >>> data = fa.Examples(x, x.sum(axis=1))
  >>> federation = fa.Federation(
  ...   fa.build_clients(data, np.arange(30).reshape(3, 10)), data,
  ...   client_fraction=1.0, epochs=1, batch_size=10)
  >>> model = fa.Model('linear', lambda key: np.zeros(4), lambda w, x: x @ w)
  >>> simulation = fa.build_simulation(
  ...   model, federation, fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  ...   loss=fa.losses.squared_error)
  >>> state, _ = simulation.init()
  >>> state.params.shape, list(simulation.evaluate(state.params))
  ((4,), ['loss'])
  """
  if not isinstance(algorithm, Algorithm):
    raise InputError(
      'algorithm: must be an Algorithm, such as fa.fedavg(...); pass a function'
      ' of a value to build_sweep'
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
  """Compiles a federation that trains with several values at once.

  All values start with the same weights and read the same examples; the model
  of each equals that of a run with this value alone.

  Args:
    model: the model; see `build_simulation`.
    federation: the clients, their local training and the drawing of cohorts.
    algorithm_of: the function value -> algorithm; the value is a float32 scalar
      that may be traced.
    values: the G values, such as learning rates; at least one.
    loss: the function (outputs, batch) -> losses [B].
    metrics: the metrics of tests; see `build_simulation`.
    execution: the settings of lanes, devices and calls.
    placement: the places of examples and client states; the latter must be
      'device'.

  Returns:
    A `Simulation` whose records have a leading axis [G].

  Raises:
    InputError: there is no value, or `build_simulation` would raise it.

  >>> import numpy as np, optax
  >>> import fedavg_jax as fa
  >>> x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
  >>> data = fa.Examples(x, x.sum(axis=1))
  >>> federation = fa.Federation(
  ...   fa.build_clients(data, np.arange(30).reshape(3, 10)), data,
  ...   client_fraction=1.0, epochs=1, batch_size=10)
  >>> model = fa.Model('linear', lambda key: np.zeros(4), lambda w, x: x @ w)
  >>> algorithm_of = lambda eta: fa.fedavg(optax.sgd(eta), optax.sgd(1.0))
  >>> simulation = fa.build_sweep(
  ...   model, federation, algorithm_of, values=[0.1, 0.01],
  ...   loss=fa.losses.squared_error)
  >>> simulation.init()[0].params.shape  # [G, ...]
  (2, 4)
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
  """Prepares a federation for lowering; its devices may be absent.

  Nothing is placed on a device.

  Args:
    model: the model; see `build_simulation`.
    federation: the clients, their local training and the drawing of cohorts.
    algorithm: the algorithm, such as `fedavg(optax.sgd(eta), optax.sgd(1.0))`.
    loss: the function (outputs, batch) -> losses [B].
    metrics: the metrics of tests; see `build_simulation`.
    execution: the settings of lanes, devices and calls; its devices may be
      those of `jax.experimental.topologies`.
    placement: the places of examples and client states, device or host.

  Returns:
    A `Program`: its `lower()` returns the `jax.stages.Lowered` call for these
    devices, its `export(platform)` the `jax.export.Exported` call for another
    platform.

  Raises:
    InputError: `build_simulation` would raise it.

  >>> import numpy as np, optax
  >>> import fedavg_jax as fa
  >>> x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
  >>> data = fa.Examples(x, x.sum(axis=1))
  >>> federation = fa.Federation(
  ...   fa.build_clients(data, np.arange(30).reshape(3, 10)), data,
  ...   client_fraction=1.0, epochs=1, batch_size=10)
  >>> model = fa.Model('linear', lambda key: np.zeros(4), lambda w, x: x @ w)
  >>> program = fa.lower_simulation(
  ...   model, federation, fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  ...   loss=fa.losses.squared_error)
  >>> program.planner.cohort_size
  3
  """
  trained = Single(algorithm)
  task = make_task(model, loss, metrics)
  laid_out = lay_out(Parts(task, federation, trained, execution, placement))
  return laid_out.program(laid_out.planner)


def _build(parts: Parts) -> Simulation:
  """Compiles a simulation, with fewer lanes if they do not fit into memory."""
  laid_out = lay_out(parts)
  clients, test = (
    laid_out.parts.federation.clients,
    laid_out.parts.federation.test,
  )

  @functools.cache  # Data are placed once, whatever the number of lanes.
  def on_devices(number: int, test_batch: int):
    mesh = compiled_round.lane_mesh(laid_out.devices[:number])
    data: Any = None
    if not laid_out.planner.streamed:
      # This reads rows that are on disk.
      x, y = (trees.map_arrays(np.asarray, own) for own in clients[:2])
      data = compiled_round.place_examples(x, y, mesh)
    return data, evaluation.place_test_set(test, mesh, test_batch)

  def with_lanes(lanes: int, why: str) -> Simulation:
    planner = laid_out.planner
    if lanes != planner.lanes:
      planner = layout.lay_out(planner, lanes, min(planner.num_devices, lanes))
    own = laid_out.program(planner)
    data, test_set = on_devices(planner.num_devices, own.test_batch())
    source: Any = functools.partial(_resident, data)
    if planner.streamed:
      source = prefetch.Stream(clients, planner, own.mesh)
    return _compile(
      own,
      laid_out.parts,
      source,
      data,
      test_set,
      layout_reason=why,
      with_lanes=lambda fewer: with_lanes(fewer, 'limited by device memory'),
    )

  lanes, why = laid_out.planner.lanes, laid_out.why
  while True:
    try:
      simulation = with_lanes(lanes, why)
    except jax.errors.JaxRuntimeError as error:
      lanes = layout.fewer_lanes(lanes, laid_out.planner, error)
      why = 'limited by device memory'
      continue
    planner = simulation.planner
    lane_bytes = layout.lane_bytes_compiled(simulation.call, planner)
    if lane_bytes is None:
      return simulation
    why += f'; {lane_bytes / 2**20:.3g} MiB as compiled'
    fit = layout.lanes_that_fit_compiled(
      lane_bytes, planner, laid_out.devices[: planner.num_devices]
    )
    if fit == planner.lanes:
      return simulation._replace(layout_reason=why)
    logging.warning('%d lanes do not fit: %s; %d do', planner.lanes, why, fit)
    lanes, why = fit, 'limited by device memory'


def _compile(
  own: program.Program,
  parts: Parts,
  source: Callable[[Sequence[int]], Any],
  data: client_data.Examples | None,
  test_set: evaluation.TestSet,
  *,
  layout_reason: str,
  with_lanes: Callable[[int], Simulation],
) -> Simulation:
  """Compiles the call and the evaluation of a program."""
  going, states, kept, shapes, _, schedule = own.arguments()
  start = time.perf_counter()
  lowered = own.lower(
    (
      going,
      states,
      kept,
      shapes if data is None else data,
      test_set,
      superstep.place(schedule, own.mesh),
    )
  )
  call = own.compile(lowered)
  with own.arithmetic.tracing():
    evaluate = own.evaluate().lower(states.variables, test_set)
  evaluate = arithmetic.compiled(evaluate, own.arithmetic.options())

  def test_sums(variables):
    return jax.device_get(evaluate(variables, test_set))

  return Simulation(
    init=own.init,
    host_states=own.host_states if own.planner.gathers else None,
    planner=own.planner,
    call=call,
    lowered=lowered,
    rounds_per_call=own.rounds_per_call,
    data=source,
    mesh=own.mesh,
    task=own.task,
    test=test_set,
    evaluate=lambda variables: results(own.task, test_sums(variables)),
    test_sums=test_sums,
    compile_seconds=time.perf_counter() - start,
    layout_reason=layout_reason,
    with_lanes=with_lanes,
    sweep=own.trained.values,
    parts=parts,
  )


def check_is_simulation(found: Any) -> None:
  """Raises InputError unless the value is a `Simulation`."""
  if not isinstance(found, Simulation):
    raise InputError(
      'simulation: expected the result of `build_simulation` or `build_sweep`,'
      f' got {type(found).__name__}'
    )


def place(tree: Any, simulation: Simulation) -> Any:
  """Places arrays on every device of a simulation."""
  return collectives.put(
    tree, jax.sharding.NamedSharding(simulation.mesh, jax.P())
  )


def _resident(data: client_data.Examples, numbers: Sequence[int]):
  """Returns the examples of all clients, which every round reads."""
  del numbers
  return data
