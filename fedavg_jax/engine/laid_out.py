"""Checks a federation and chooses its lanes, without placing any data.

Shape letters are those of `planning.py`.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp

from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm_checks import Traffic
from fedavg_jax.contracts.algorithm_checks import check_algorithm
from fedavg_jax.contracts.algorithm_checks import check_asynchronous
from fedavg_jax.contracts.algorithm_checks import message_shapes
from fedavg_jax.contracts.algorithm_checks import traffic
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import join
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.contracts.model import split
from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task_checks import check_task
from fedavg_jax.core import client_data
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import arithmetic
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import examples
from fedavg_jax.engine import layout
from fedavg_jax.engine import prefetch
from fedavg_jax.engine import program
from fedavg_jax.engine import step_cost
from fedavg_jax.engine import superstep
from fedavg_jax.engine.arithmetic import Arithmetic
from fedavg_jax.engine.devices import check_jax
from fedavg_jax.engine.hyperparameter_axis import Trained
from fedavg_jax.engine.options import Execution
from fedavg_jax.engine.options import Federation
from fedavg_jax.engine.options import Placement
from fedavg_jax.engine.options import check_calls
from fedavg_jax.engine.private_checks import check_private
from fedavg_jax.models import rewriting
from fedavg_jax.schedule import planning
from fedavg_jax.schedule import sampling

# The most calls with data on a device: those in flight, and those prefetched.
_CALLS_WITH_DATA = superstep.CALLS_IN_FLIGHT + prefetch.AHEAD
# A program may need more memory than its trace shows: measured on compiled
# programs, up to 1.3 times on a GPU and 4 times on a TPU, which pads arrays.
_MARGIN = {'tpu': 4.0}
_USUAL_MARGIN = 1.5
# The default limit of examples per step, for larger minibatches.
_MICRO_BATCH = 256


class Parts(NamedTuple):
  """Holds the arguments from which a simulation is built.

  Attributes:
    task: the model, its loss and the metrics of tests.
    federation: the clients, their training and the drawing of cohorts.
    trained: the algorithm, or those of a sweep.
    execution: the settings of lanes, devices and calls.
    placement: the places of examples and client states.
  """

  task: Task
  federation: Federation
  trained: Trained
  execution: Execution
  placement: Placement


class LaidOut(NamedTuple):
  """Holds a checked federation with the lanes chosen for its devices.

  Attributes:
    parts: the arguments, with checked examples.
    planner: the planner, with lanes.
    devices: the devices that may be used.
    why: the reason for the number of lanes, one line.
    traffic: the bytes that a client receives and sends in a round.
  """

  parts: Parts
  planner: planning.Planner
  devices: tuple[jax.Device, ...]
  why: str
  traffic: Traffic

  def program(self, planner: planning.Planner) -> program.Program:
    """Returns the program for a planner, which may have other lanes."""
    mesh = compiled_round.lane_mesh(self.devices[: planner.num_devices])
    most = self.parts.execution.rounds_per_call
    if planner.streamed or planner.gathers:
      most = 1
    return program.Program(
      task=self.parts.task,
      federation=self.parts.federation,
      trained=self.parts.trained,
      planner=planner,
      mesh=mesh,
      platform=self.devices[0].platform,
      rounds_per_call=most or program.rounds_per_call(planner),
      counts_bytes=self.traffic.coded,
      precision=self.parts.execution.precision,
      gpu_graphs=self.parts.execution.gpu_graphs,
      deterministic=self.parts.execution.deterministic,
    )


def lay_out(parts: Parts) -> LaidOut:
  """Checks the arguments together, and chooses the lanes.

  Raises:
    InputError: the examples, model, algorithm, lanes or placement do not fit
      each other or the devices.
  """
  check_jax()
  task = parts.task._replace(model=rewriting.fast_model(parts.task.model))
  parts = parts._replace(task=task)
  _, federation, trained, execution, placement = parts
  check_calls(execution, placement)
  devices = execution.devices
  devices = tuple(jax.devices() if devices is None else devices)
  own = Arithmetic(devices[0].platform, execution.precision)
  arithmetic.check(own, devices[0])
  stream = placement.examples_on == 'host'
  variables = examples.init_shapes(task.model, federation.seed)
  with own.tracing():
    clients, test = examples.check(
      task,
      variables,
      federation.clients,
      federation.test,
      on_nan=federation.on_nan,
      stream=stream,
    )
  federation = dataclasses.replace(federation, clients=clients, test=test)
  algorithm = trained.first
  size, poisson = sampling.cohort_size, federation.participation.poisson
  if poisson:
    size = sampling.most_drawn
  cohort_size = size(clients.num_clients, federation.client_fraction)
  buffer = federation.participation.buffer
  if algorithm.mechanism is not None:
    check_private(algorithm, task.model, variables, federation)
  check_algorithm(algorithm, variables, buffer or cohort_size)
  if buffer:
    check_asynchronous(algorithm, variables)
  with own.tracing():
    check_task(
      task, algorithm, variables, clients.x, clients.y, federation.seed
    )
  one_client = traffic(algorithm, variables, task.model.state_of)
  state_bytes = num_bytes(_first_state(task.model, algorithm, variables))
  gathers = placement.client_states_on == 'host' and state_bytes > 0
  if gathers and trained.values is not None:
    raise InputError(
      "client_states_on = 'host': is not supported with sweeps; must be"
      " 'device'"
    )
  planner = planning.Planner(
    num_examples=clients.num_examples,
    cohort_size=buffer or cohort_size,
    concurrency=cohort_size if buffer else 0,
    rate=(
      sampling.poisson_rate(clients.num_clients, federation.client_fraction)
      if poisson
      else 0.0
    ),
    participation=federation.participation,
    epochs=federation.epochs,
    batch_size=federation.batch_size,
    micro_batch=execution.micro_batch or _MICRO_BATCH,
    shuffle=federation.shuffle,
    weighting=federation.weighting,
    seed=federation.seed,
    streamed=stream,
    bytes_down=one_client.down,
    bytes_up=one_client.up,
    gathers=gathers,
  )
  mechanism = algorithm.mechanism
  if mechanism is not None and mechanism.check_schedule is not None:
    mechanism.check_schedule(planner.cohort)
  parts = parts._replace(federation=federation)
  with own.tracing():
    planner, why = _choose_lanes(
      parts, planner, devices, variables, state_bytes
    )
  logging.info('%d lanes: %s', planner.lanes, why)
  if execution.widths is not None:
    planner = dataclasses.replace(planner, widths=tuple(execution.widths))
  return LaidOut(parts, planner, devices, why, one_client)


def _choose_lanes(
  parts: Parts,
  planner: planning.Planner,
  devices: Sequence[jax.Device],
  variables: Any,
  state_bytes: int,
) -> tuple[planning.Planner, str]:
  """Chooses lanes by the memory that they need and that devices have."""
  clients, trained = parts.federation.clients, parts.trained
  algorithms = len(trained.values or (0,))
  # The algorithms that train in parallel; on a CPU they take turns.
  together = 1 if devices[0].platform == 'cpu' else algorithms
  # The number of clients whose states are on the devices.
  kept = clients.num_clients
  if planner.gathers:
    kept = _CALLS_WITH_DATA * planner.cohort_size
  algorithm, (params, _) = trained.first, split(variables)
  step = _step(parts.task, variables, planner, clients)
  margin = _MARGIN.get(devices[0].platform, _USUAL_MARGIN)
  # Where it is unknown, the compiled call alone decides.
  step_bytes = 0 if step is None else int(margin * step.memory)
  lane_bytes = step_bytes + num_bytes(
    _lane_state(parts.task.model, algorithm, variables, planner)
  )
  cohort_bytes = algorithm.aggregate.num_bytes(
    message_shapes(algorithm, variables), planner.cohort_size
  )
  return layout.choose_lanes(
    parts.execution.lanes,
    planner,
    devices,
    num_weights=together * num_parameters(params),
    lane_bytes=together * lane_bytes,
    other_bytes=_data_bytes(clients, planner)
    + algorithms * planner.num_models * num_bytes(variables)
    + algorithms * kept * state_bytes
    + together * cohort_bytes,
    step=step
    and step._replace(
      bytes=together * step.bytes,
      # The loop over steps is one of unknown length.
      host_reads=step.host_reads + (not parts.execution.gpu_graphs),
    ),
  )


def _first_state(model: Model, algorithm: Algorithm, variables: Any) -> Any:
  """Returns the shapes of one client's state, [1, ...]."""
  return jax.eval_shape(
    functools.partial(compiled_round.first_states, algorithm, model.state_of),
    variables,
    jax.ShapeDtypeStruct((1,), jnp.int32),
  )


def _step(
  task: Task,
  variables: Any,
  planner: planning.Planner,
  clients: client_data.Clients,
) -> step_cost.StepCost | None:
  """Estimates the cost of a step of one lane, that of plain SGD."""
  augment = task.model.augment
  params, state = split(variables)

  def step(params, state, x, y):
    if augment is not None:
      x = jax.vmap(augment, in_axes=(None, 0))(jax.random.key(0), x)
    loss = losses.of_examples(task.model.apply, task.loss)
    grads = jax.grad(lambda params: jnp.sum(loss(join(params, state), x, y)))(
      params
    )
    return jax.tree.map(jnp.subtract, params, grads)

  def shape(array):
    return jax.ShapeDtypeStruct(
      (planner.step_examples, *array.shape[1:]), array.dtype
    )

  x, y = (trees.map_arrays(shape, own) for own in clients[:2])
  return step_cost.estimate(step, params, state, x, y)


def _lane_state(
  model: Model, algorithm: Algorithm, variables: Any, planner: planning.Planner
) -> Any:
  """Returns the shapes of what a lane holds between two steps."""
  params, _ = split(variables)
  return (
    variables,  # The local model, and the global model to restart from.
    variables,
    jax.eval_shape(algorithm.client_optimizer.init, params),
    _first_state(model, algorithm, variables),
    params if planner.accumulates else (),
    params if algorithm.full_gradient else (),
  )


def _data_bytes(clients, planner) -> int:
  """Returns the bytes of a device's examples: all, or queued calls' buffers."""
  if not planner.streamed:
    return sum(array.nbytes for array in trees.arrays(tuple(clients[:2])))
  return _CALLS_WITH_DATA * num_bytes(prefetch.shapes(clients, planner))
