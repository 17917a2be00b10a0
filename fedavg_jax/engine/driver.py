"""Runs the rounds of a compiled federation, one after another.

While the devices work on a call, the host plans and dispatches the next one.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task import results
from fedavg_jax.core import rules
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import processes
from fedavg_jax.engine import superstep
from fedavg_jax.engine.call_queue import Callbacks
from fedavg_jax.engine.call_queue import Calls
from fedavg_jax.engine.call_queue import Record
from fedavg_jax.engine.call_queue import make_record
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.layout import fewer_lanes
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import check_is_simulation
from fedavg_jax.engine.simulation import place

DIVERGED = (
  'the loss or the model is not finite; client.learning_rate or'
  ' server.learning_rate is probably too large'
)


def simulate(
  simulation: Simulation,
  *,
  rounds: int,
  eval_every: int = 1,
  target: float = 0.0,
  start: tuple[compiled_round.ServerState, Any] | None = None,
  host_states: ClientStates | None = None,
  needs_state: Callable[[int], bool] = lambda number: False,
  state_requested: Callable[[], bool] = lambda: False,
  should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Trains round by round, and yields a record after each.

  The first record of a new run is that of the initial model, round 0. The model
  is evaluated before round 1, every `eval_every` rounds and after the last
  round. The run ends early after a round that reaches the target or is not
  finite; a sweep ends once this has happened to each of its values. If a device
  has no memory for its lanes, the run continues with half as many and logs a
  warning.

  Args:
    simulation: the compiled simulation.
    rounds: the number of the last round, at least 1.
    eval_every: the number of rounds between evaluations, at least 1.
    target: the value of the first metric (the accuracy of a classifier) that
      ends the run; 0 is no target.
    start: the server state and client states of an earlier record, from which
      to resume with the following round; None starts with round 0. Client
      states on the devices are donated to the first call, those on the host are
      modified in place.
    host_states: the store of a new run's client states, if these are on the
      host; None stores them in memory.
    needs_state: the argument of `run_calls`.
    state_requested: the argument of `run_calls`.
    should_stop: the argument of `run_calls`.

  Yields:
    A `Record` per round.

  Raises:
    InputError: a value breaks its rule, or one lane does not fit into memory.

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
  >>> for record in fa.simulate(simulation, rounds=4, eval_every=2):
  ...   print(record.round, record.examples, list(record.test))
  0 0 ['loss']
  1 30 []
  2 30 ['loss']
  3 30 []
  4 30 ['loss']
  """
  check_rounds(simulation, rounds, eval_every, target)
  task = simulation.task

  def evaluated(number):
    return number % eval_every == 0 or number == rounds

  reached = _begin(simulation, start, host_states)
  tested = simulation.test_sums(reached.state.variables)
  lanes = simulation.planner.lanes
  if start is None:
    yield make_record(
      0,
      reached.state,
      reached.client_states,
      lanes,
      None,
      results(task, tested),
      0.0,
    )
  if evaluated(reached.round):
    reached = reached.without(task, target, results(task, tested))
  if not reached.going.any():
    return
  enough = task.enough(target, tested)
  while True:
    try:
      if lanes != simulation.planner.lanes:
        simulation, reached = _move(simulation, lanes, reached)
      for record in run_calls(
        simulation,
        reached.state,
        reached.client_states,
        range(reached.round + 1, rounds + 1),
        going=reached.going,
        evaluated=evaluated,
        enough=enough,
        needs_state=needs_state,
        state_requested=state_requested,
        should_stop=should_stop,
      ):
        reached = reached.after(record, task, target)
        yield record
      return
    # The clause does not name JAX's type: an abandoned generator is closed at
    # the interpreter's exit, when modules may be gone.
    except Exception as error:
      if not isinstance(error, jax.errors.JaxRuntimeError):
        raise
      lanes = _lanes_after(error, simulation, lanes, reached)


def check_rounds(
  simulation: Simulation, rounds: int, eval_every: int, target: float
) -> None:
  """Raises InputError if arguments of `simulate` break their rules."""
  check_is_simulation(simulation)
  rules.check_whole('rounds', rounds, 1)
  rules.check_whole('eval_every', eval_every, 1)
  most = min(simulation.task.metrics[0].most, 1e30)
  rules.check_real('target', target, 0 if most == 1 else -1e30, most)


class _Reached(NamedTuple):
  """Holds the last known state of a run, from which its next calls start.

  Attributes:
    round: the number of the last round whose state is available.
    state: the server's state after that round.
    client_states: the client states at the start of the run; those on the
      devices are donated to the first call, those on the host are modified in
      place.
    going: [] bool, or [G] in a sweep: True for values that have not ended.
  """

  round: int
  state: compiled_round.ServerState
  client_states: Any
  going: Any

  def without(
    self, task: Task, target: float, test: dict[str, Any]
  ) -> '_Reached':
    """Returns a copy without the values that reached the target; 0 is none."""
    if not target:
      return self
    first = next(iter(test.values()))
    return self._replace(
      going=self.going & ~np.asarray(task.reaches(first, target))
    )

  def after(self, record: Record, task: Task, target: float) -> '_Reached':
    """Returns a copy updated by a record, or itself if that has no state."""
    if record.state is None:
      return self
    reached = self._replace(
      round=record.round, state=record.state, going=self.going & record.finite
    )
    if not record.test:
      return reached
    return reached.without(task, target, record.test)


def _begin(
  simulation: Simulation,
  start: tuple[compiled_round.ServerState, Any] | None,
  host_states: ClientStates | None,
) -> _Reached:
  """Places the states from which a run starts or resumes."""
  state, client_states = start or simulation.init()
  if start is None and simulation.host_states is not None:
    client_states = host_states or simulation.host_states()
  if processes.is_distributed():
    # Processors may round differently: all use the state of one.
    state = collectives.copy(jax.device_get(state), state)
  if not isinstance(client_states, ClientStates):
    client_states = place(client_states, simulation)
  state = place(state, simulation)
  # In a sweep, values that have ended are at an earlier round than the others.
  numbers = np.asarray(jax.device_get(state.round))
  return _Reached(
    int(numbers.max()), state, client_states, numbers == numbers.max()
  )


def _move(
  simulation: Simulation, lanes: int, reached: _Reached
) -> tuple[Simulation, _Reached]:
  """Compiles with another number of lanes, and moves a run to its devices."""
  simulation = simulation.with_lanes(lanes)
  # The devices may be fewer, so the state moves through the host.
  state = place(jax.device_get(reached.state), simulation)
  client_states = reached.client_states
  if not isinstance(client_states, ClientStates):
    _, client_states = simulation.init()
  return simulation, reached._replace(state=state, client_states=client_states)


def _lanes_after(
  error: Exception, simulation: Simulation, lanes: int, reached: _Reached
) -> int:
  """Returns a smaller number of lanes, or raises the error if none helps."""
  if processes.is_distributed() or (
    reached.round and jax.tree.leaves(reached.client_states)
  ):
    raise error  # The client states were donated to the call that failed.
  return fewer_lanes(lanes, simulation.planner, error)


def run_calls(
  simulation: Simulation,
  state: compiled_round.ServerState,
  client_states: Any,
  numbers: range,
  *,
  evaluated: Callable[[int], bool],
  going: Any = None,
  enough: float | None = None,
  needs_state: Callable[[int], bool] = lambda number: False,
  state_requested: Callable[[], bool] = lambda: False,
  should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Executes the given rounds from a state; `simulate` is built on it.

  Each call is dispatched before the previous one has ended, so that the devices
  never wait for Python, except where the caller requests states, which are
  available only between calls.

  Args:
    simulation: the compiled simulation.
    state: the server's state before the first of these rounds.
    client_states: the states of all clients; those on the devices are donated
      to the first call.
    numbers: the numbers of the rounds.
    evaluated: the function round number -> True if the model is tested after
      it.
    going: [G] bool in a sweep, True for values that have not ended; None runs
      all of them.
    enough: the threshold of a test that ends the run, from `Task.enough`; None
      is no threshold.
    needs_state: the function round number -> True if the record must have its
      state and client states. It is called once per round, before the round is
      dispatched, and must return the same on all processes.
    state_requested: the function () -> True if the next possible record must
      have them; one process suffices.
    should_stop: the function () -> True to dispatch no further call; one
      process suffices. Queued calls are still awaited if they hold client
      states or other processes work on them.

  Yields:
    A `Record` per round.

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
  >>> records = fa.engine.run_calls(
  ...   simulation, *simulation.init(), range(1, 4),
  ...   evaluated=lambda number: number == 3)
  >>> [(record.round, bool(record.test)) for record in records]
  [(1, False), (2, False), (3, True)]
  """
  calls = Calls(
    simulation,
    state,
    client_states,
    numbers,
    superstep.Ends(
      evaluated, simulation.task.never if enough is None else enough
    ),
    going=going,
    callbacks=Callbacks(needs_state, state_requested, should_stop),
  )
  del state, client_states  # They would occupy memory until the last round.
  while calls.fill():
    ended = calls.wait()
    if ended is None:
      return
    yield from calls.records(ended)
    if calls.over:
      return
