"""The rounds of a compiled federation, one after another.

While the devices work on a call, the next one is planned and begun.
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
from fedavg_jax.engine.call_queue import Asked
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
  wanted: Callable[[int], bool] = lambda number: False,
  looking: Callable[[], bool] = lambda: False,
  stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Runs the rounds and gives them one at a time; round 0 first.

  Evaluates before round 1, every `eval_every` rounds and after the last. Ends
  after a round that reaches the target (0 is none) or is not finite; a sweep
  ends once each of its values has done one of these. Where a device has no
  room for its lanes, continues with half as many and says so.

  Args:
    simulation: compiled.
    rounds: of the whole run.
    eval_every: rounds from one evaluation to the next.
    target: of the first metric, the accuracy of a classifier, which ends the
      run; 0 is none.
    start: server state and client states to continue from, as an earlier record
      had them, with the round after it; what clients keep goes with the first
      call, or is changed in its place on the host. None begins anew.
    host_states: of a run that begins anew, where its clients' states go if they
      stay on the host; memory if left out.
    wanted: as in `run_calls`.
    looking: as in `run_calls`.
    stopping: as in `run_calls`.

  Yields:
    A record per round.
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
        wanted=wanted,
        looking=looking,
        stopping=stopping,
      ):
        reached = reached.after(record, task, target)
        yield record
      return
    # Not the type itself: a generator that is left alone ends when the
    # interpreter does, and modules are gone by then.
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
  """How far a run has come, and what its next call begins with.

  Attributes:
    round: the last one whose state is at hand.
    state: of the server after it.
    client_states: as the run began; they go with the first call, or are changed
      in their place on the host.
    going: bool, of a sweep [G], the values that have not ended.
  """

  round: int
  state: compiled_round.ServerState
  client_states: Any
  going: Any

  def without(
    self, task: Task, target: float, test: dict[str, Any]
  ) -> '_Reached':
    """Returns it without the values that reached the target; 0 is none."""
    if not target:
      return self
    first = next(iter(test.values()))
    return self._replace(
      going=self.going & ~np.asarray(task.reaches(first, target))
    )

  def after(self, record: Record, task: Task, target: float) -> '_Reached':
    """Returns it after a record, the same where that has no state."""
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
  """Places what a run begins or resumes with."""
  state, client_states = start or simulation.init()
  if start is None and simulation.host_states is not None:
    client_states = host_states or simulation.host_states()
  if processes.several():  # Other processors round otherwise: one has drawn it.
    state = collectives.copy(jax.device_get(state), state)
  if not isinstance(client_states, ClientStates):
    client_states = place(client_states, simulation)
  state = place(state, simulation)
  # Of a sweep, those that have ended before are behind the others.
  numbers = np.asarray(jax.device_get(state.round))
  return _Reached(
    int(numbers.max()), state, client_states, numbers == numbers.max()
  )


def _move(
  simulation: Simulation, lanes: int, reached: _Reached
) -> tuple[Simulation, _Reached]:
  """Compiles with other lanes, and moves a run to their devices."""
  simulation = simulation.with_lanes(lanes)
  # The devices may be fewer: the state loses nothing on its way.
  state = place(jax.device_get(reached.state), simulation)
  client_states = reached.client_states
  if not isinstance(client_states, ClientStates):
    _, client_states = simulation.init()
  return simulation, reached._replace(state=state, client_states=client_states)


def _lanes_after(
  error: Exception, simulation: Simulation, lanes: int, reached: _Reached
) -> int:
  """Returns fewer lanes to continue with; raises the error where none help."""
  if processes.several() or (
    reached.round and jax.tree.leaves(reached.client_states)
  ):
    raise error  # What the clients kept went with the call that failed.
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
  wanted: Callable[[int], bool] = lambda number: False,
  looking: Callable[[], bool] = lambda: False,
  stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Runs rounds from a state on; `simulate` is built on it.

  Begins a call before the one before it has ended, so that the devices never
  wait for Python, but where somebody wants what is at hand only between calls.

  Args:
    simulation: compiled.
    state: of the server before the first of them.
    client_states: of all clients; they go with the first call.
    numbers: of the rounds.
    evaluated: round number -> whether its model is tested.
    going: of a sweep, [G] bool, the values that have not ended; None for all.
    enough: ends after a round whose test has reached it, as `Task.enough` has
      it; None for no round.
    wanted: round number -> whether the record must have its state and client
      states. Asked once for a round, before it begins; the same on all
      processes.
    looking: whether the next record that can have them must, on any process.
    stopping: whether to begin no further call, on any process. Those that have
      begun are waited for where client states went into them, or other
      processes are at work on them.

  Yields:
    A record per round.
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
    asked=Asked(wanted, looking, stopping),
  )
  del state, client_states  # A device would hold them until the last round.
  while calls.fill():
    ended = calls.wait()
    if ended is None:
      return
    yield from calls.records(ended)
    if calls.over:
      return
