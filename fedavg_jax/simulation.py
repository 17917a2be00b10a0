"""A federation, compiled for the devices at hand, and its rounds one by one.

What a notebook uses; `train.py` adds a config and a folder to it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import os
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedavg_jax import clients as clients_lib
from fedavg_jax import evaluate as evaluate_lib
from fedavg_jax import losses
from fedavg_jax import models
from fedavg_jax import plan as plan_lib
from fedavg_jax import round as round_lib
from fedavg_jax.errors import DivergedError
from fedavg_jax.errors import InputError

# Lanes that an accelerator gets unless told otherwise: not measured yet.
_MOST_LANES = 64

DIVERGED = (
  'the loss or the model is not finite; client.learning_rate or'
  ' server.learning_rate is probably too large'
)


class Simulation(NamedTuple):
  """A federation ready to run: compiled, its data on the device.

  Attributes:
    init_state: () -> the state before round 1; the same one every time.
    planner: round number -> plan.
    round_fn: (state, data, plan) -> (state, metrics), one compiled call; the
      state that goes in is donated.
    data: all clients' examples on the devices.
    evaluate: state -> test metrics.
    compile_seconds: what compiling took, by the wall clock.
  """

  init_state: Callable[[], round_lib.ServerState]
  planner: plan_lib.Planner
  round_fn: Callable
  data: clients_lib.Examples
  evaluate: Callable[[round_lib.ServerState], evaluate_lib.TestMetrics]
  compile_seconds: float


class Record(NamedTuple):
  """What one round told; `None` where nothing was trained or evaluated.

  Attributes:
    round: its number; 0 is the initial model.
    state: the server after it, valid until the next round is asked for.
    train_loss: mean loss over the examples read, each before its own step.
    examples: examples read in all local epochs.
    seconds: wall time of the round, evaluation not included.
    finite: False where the round diverged; `state` is then the one before.
    test_accuracy: fraction of the test set.
    test_loss: mean cross entropy of the test set.
  """

  round: int
  state: round_lib.ServerState
  train_loss: float | None
  examples: int
  seconds: float
  finite: bool
  test_accuracy: float | None
  test_loss: float | None


def build_simulation(
  model: models.Model,
  clients: clients_lib.Clients,
  test: clients_lib.Examples,
  *,
  client_fraction: float,
  epochs: int,
  batch_size: int,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
  unavailable_fraction: float = 0.0,
  shuffle: str = 'epoch',
  seed: int = 0,
  lanes: int = 0,
) -> Simulation:
  """Compiles a federation for the devices at hand.

  Args:
    model: from `models.build_model`, or your own pair of init and apply.
    clients: the population, from `clients.build_clients`.
    test: the central test set.
    client_fraction: C; the cohort is max(int(C * K), 1) clients.
    epochs: E.
    batch_size: B, 0 for all local examples in one step.
    client_optimizer: `optax.sgd(eta)` in the paper.
    server_optimizer: `optax.sgd(1.0)` is FedAvg.
    unavailable_fraction: of the clients, out of reach in a round.
    shuffle: one of `plan.SHUFFLES`.
    seed: of initial weights, cohorts and orders.
    lanes: clients that train side by side, on all devices together; 0 chooses.
      Never changes what is computed, but for rounding.

  Returns:
    A `Simulation`.
  """
  cohort = plan_lib.cohort_size(clients.num_clients, client_fraction)
  num_devices, lanes = choose_lanes(lanes, cohort)
  mesh = round_lib.lane_mesh(jax.devices()[:num_devices])
  planner = plan_lib.Planner(
    num_examples=clients.num_examples,
    cohort_size=cohort,
    num_unavailable=plan_lib.num_unavailable(
      clients.num_clients, unavailable_fraction
    ),
    epochs=epochs,
    batch_size=batch_size,
    shuffle=shuffle,
    seed=seed,
    lanes=lanes,
    num_devices=num_devices,
  )
  loss_fn = losses.cross_entropy(model.apply)
  data = round_lib.place_examples(clients.x, clients.y, mesh)
  test_set = evaluate_lib.place_test_set(test, mesh)

  def init_state():
    params = model.init(jax.random.key(seed))
    return round_lib.init_state(params, server_optimizer, mesh)

  state = init_state()
  start = time.perf_counter()
  round_fn = round_lib.build_round(
    loss_fn,
    client_optimizer,
    server_optimizer,
    step_examples=planner.step_examples,
    mesh=mesh,
  )
  round_fn = round_fn.lower(state, data, planner(1)).compile()
  evaluate = evaluate_lib.build_evaluate(model.apply, loss_fn, mesh)
  evaluate = evaluate.lower(state.params, test_set).compile()
  compile_seconds = time.perf_counter() - start
  return Simulation(
    init_state=init_state,
    planner=planner,
    round_fn=round_fn,
    data=data,
    evaluate=lambda state: evaluate(state.params, test_set),
    compile_seconds=compile_seconds,
  )


def simulate(
  simulation: Simulation, *, rounds: int, eval_every: int = 1
) -> Iterator[Record]:
  """Runs the rounds, one at a time as they are asked for; round 0 first.

  Evaluates before round 1, every `eval_every` rounds and after the last. Ends
  after a round that is not finite.
  """
  state = simulation.init_state()
  yield _record(simulation, state, None, 0.0, number=0, evaluated=True)
  plan = simulation.planner(1)
  for number in range(1, rounds + 1):
    start = time.perf_counter()
    state, told = simulation.round_fn(state, simulation.data, plan)
    if number < rounds:  # While the device works.
      plan = simulation.planner(number + 1)
    told = jax.device_get(told)
    seconds = time.perf_counter() - start
    evaluated = number % eval_every == 0 or number == rounds
    record = _record(simulation, state, told, seconds, number, evaluated)
    yield record
    if not record.finite:
      return


def run(
  simulation: Simulation, *, rounds: int, eval_every: int = 1
) -> dict[str, np.ndarray]:
  """Runs all rounds; returns the history as arrays, for a notebook.

  Returns:
    Arrays with an entry per round, round 0 included: round, train_loss,
    examples, seconds, test_accuracy, test_loss; NaN where there is none.

  Raises:
    DivergedError: the loss or the model is not finite any more.
  """
  names = 'round train_loss examples seconds test_accuracy test_loss'.split()
  history: dict[str, list] = {name: [] for name in names}
  for record in simulate(simulation, rounds=rounds, eval_every=eval_every):
    for name in names:
      value = getattr(record, name)
      history[name].append(np.nan if value is None else value)
    if not record.finite:
      raise DivergedError(f'round {record.round}: {DIVERGED}')
  return {name: np.array(values) for name, values in history.items()}


def use_cpu_devices(number: int) -> None:
  """Gives each CPU core a virtual device of its own: before JAX starts.

  A small step cannot feed several cores, whole clients can. Without effect
  where JAX runs already, on accelerators, or where JAX_NUM_CPU_DEVICES or
  XLA_FLAGS have decided.

  Args:
    number: of devices, 0 for one per core this process may use.
  """
  config: Any = jax.config
  flags = os.environ.get('XLA_FLAGS', '')
  if config.jax_num_cpu_devices > 0 or 'host_platform_device_count' in flags:
    return
  if hasattr(os, 'sched_getaffinity'):  # Where a process can be pinned.
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  try:
    jax.config.update('jax_num_cpu_devices', number or cores)
  except RuntimeError:
    pass  # JAX runs already: keep its devices.


def choose_lanes(lanes: int, cohort_size: int) -> tuple[int, int]:
  """How many devices and lanes a cohort gets.

  A CPU core is fastest with one client at a time: its caches hold one model. An
  accelerator gets many lanes, which is a guess until it is measured.

  Args:
    lanes: wished, of all devices together; 0 chooses.
    cohort_size: m, more lanes than that would be idle.

  Returns:
    (devices, lanes); lanes are rounded up to a multiple of the devices.
  """
  if lanes < 0:
    raise InputError(f'lanes = {lanes}: must be at least 0')
  devices = jax.device_count()
  if lanes == 0:
    per_device = 1 if jax.default_backend() == 'cpu' else _MOST_LANES
    lanes = devices * per_device
  lanes = min(lanes, cohort_size)
  devices = min(devices, lanes)
  return devices, -(-lanes // devices) * devices


def _record(simulation, state, told, seconds, number, evaluated) -> Record:
  test = jax.device_get(simulation.evaluate(state)) if evaluated else None
  return Record(
    round=number,
    state=state,
    train_loss=None if told is None else float(told.train_loss),
    examples=0 if told is None else int(told.examples),
    seconds=seconds,
    finite=told is None or bool(told.finite),
    test_accuracy=None if test is None else test.accuracy,
    test_loss=None if test is None else test.loss,
  )
