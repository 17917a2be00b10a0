"""The rounds of a compiled federation, one after another.

While a call of the device runs, the next one is planned and waits in line.
"""

from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import math
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import processes
from fedavg_jax.engine import superstep
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.client_state_store import Cohorts
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import fewer_lanes
from fedavg_jax.engine.simulation import place

# A call is to take about this long: long beside the cost of a call, short for
# somebody who watches.
_CALL_SECONDS = 0.5
_CALLS_IN_FLIGHT = 2
_WAITER = concurrent.futures.ThreadPoolExecutor(1)
_SECONDS_BETWEEN_LOOKS = 0.1  # At whether somebody wants to stop.

DIVERGED = (
  'the loss or the model is not finite; client.learning_rate or'
  ' server.learning_rate is probably too large'
)


class Record(NamedTuple):
  """What one round told; `None` where nothing was trained or evaluated.

  Of a sweep, states, loss, examples, skipped, finite and both test numbers
  have a leading axis [G]; a value that is not finite has ended, others go on.

  Attributes:
    round: its number; 0 is the initial model.
    state: the server after it; None where the same call did more rounds after
      it, which the device does not stop for.
    client_states: what all clients keep after it, to be read before the next
      record is asked for; None where it went on into the next round. Where it
      stays on the host, the `ClientStates`.
    lanes: of all devices, that trained it.
    train_loss: mean loss over the examples read, each before its own step.
    examples: examples read in all local epochs.
    skipped: clients left out, as in `RoundMetrics`.
    seconds: wall time from the end of the call before to the end of its own,
      over the rounds of the call; evaluation included.
    finite: False where the round diverged; `state` is then the one before.
    test_accuracy: fraction of the test set.
    test_loss: mean cross entropy of the test set.
  """

  round: int
  state: compiled_round.ServerState | None
  client_states: Any
  lanes: int
  train_loss: Any
  examples: Any
  skipped: Any
  seconds: float
  finite: Any
  test_accuracy: Any
  test_loss: Any


def simulate(
  simulation: Simulation,
  *,
  rounds: int,
  eval_every: int = 1,
  target_accuracy: float = 0.0,
  start: tuple[compiled_round.ServerState, Any] | None = None,
  host_states: ClientStates | None = None,
  wanted: Callable[[int], bool] = lambda number: False,
  looking: Callable[[], bool] = lambda: False,
  stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Runs the rounds and gives them one at a time; round 0 first.

  Evaluates before round 1, every `eval_every` rounds and after the last. Ends
  after a round that reaches the target (0 is none) or is not finite; a sweep
  ends once each of its values has done one of these. Where a
  device has no room for its lanes, goes on with half as many and says so.

  Args:
    simulation: compiled.
    rounds: of the whole run.
    eval_every: rounds from one evaluation to the next.
    target_accuracy: ends the run; 0 is none.
    start: server state and client states to go on from, as an earlier record
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
  rules.check_whole('rounds', rounds, 1)
  rules.check_whole('eval_every', eval_every, 1)
  rules.check_fraction('target_accuracy', target_accuracy, one=True)

  def evaluated(number):
    return number % eval_every == 0 or number == rounds

  begins = start is None
  state, client_states = start or simulation.init()
  if start is None and simulation.host_states is not None:
    client_states = host_states or simulation.host_states()
  if processes.several():  # Other processors round otherwise: one has drawn it.
    state = collectives.copy(jax.device_get(state), state)
  state = place(state, simulation)
  if not isinstance(client_states, ClientStates):
    client_states = place(client_states, simulation)
  done = int(np.max(state.round))
  tested = simulation.evaluate(state.params)
  lanes = simulation.planner.lanes
  if begins:
    yield _record(0, state, client_states, lanes, None, tested, 0.0)
  # Of a sweep, those that have ended before are behind the others.
  going = np.asarray(jax.device_get(state.round)) == done
  if target_accuracy and evaluated(done):
    going &= tested.accuracy < target_accuracy
  if not going.any():
    return
  while True:
    try:
      if lanes != simulation.planner.lanes:
        simulation = simulation.with_lanes(lanes)
        # The devices may be fewer: the state moves there, and loses nothing.
        state = place(jax.device_get(state), simulation)
        if not isinstance(client_states, ClientStates):
          _, client_states = simulation.init()
      for record in run_calls(
        simulation,
        state,
        client_states,
        range(done + 1, rounds + 1),
        going=going,
        evaluated=evaluated,
        enough_correct=superstep.enough_correct(
          target_accuracy, int(np.max(tested.count))
        ),
        wanted=wanted,
        looking=looking,
        stopping=stopping,
      ):
        if record.state is not None:
          done, state = record.round, record.state
          going = going & record.finite
          if target_accuracy and record.test_accuracy is not None:
            going = going & (record.test_accuracy < target_accuracy)
        yield record
      return
    # Not the type itself: a generator that is left alone ends when the
    # interpreter does, and modules are gone by then.
    except Exception as error:
      if not isinstance(error, jax.errors.JaxRuntimeError):
        raise
      if processes.several() or (done and jax.tree.leaves(client_states)):
        raise  # What the clients kept went with the call that failed.
      lanes = fewer_lanes(lanes, simulation.planner, error)


def run_calls(
  simulation: Simulation,
  state: compiled_round.ServerState,
  client_states: Any,
  numbers: range,
  *,
  evaluated: Callable[[int], bool],
  going: Any = None,
  enough_correct: float = math.inf,
  wanted: Callable[[int], bool] = lambda number: False,
  looking: Callable[[], bool] = lambda: False,
  stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
  """Runs rounds from a state on; `simulate` is built on it.

  Keeps calls in line, so that the device never waits for Python, but where
  somebody wants what is at hand only between calls.

  Args:
    simulation: compiled.
    state: of the server before the first of them.
    client_states: of all clients; they go with the first call.
    numbers: of the rounds.
    evaluated: round number -> whether its model is tested.
    going: of a sweep, [G] bool, the values that have not ended; None for all.
    enough_correct: ends after a round with so many correct test examples.
    wanted: round number -> whether the record must have its state and client
      states. Asked once for a round, before it begins; the same on all
      processes.
    looking: whether the next record that can have them must, on any process.
    stopping: whether to begin no further call, on any process. Those in line
      are waited for where client states went into them, or other processes
      are at work on them.

  Yields:
    A record per round.
  """
  keeps = bool(jax.tree.leaves(client_states))
  cohorts, all_states = None, client_states
  if isinstance(client_states, ClientStates):
    cohorts = Cohorts(
      client_states,
      simulation.planner.slots,
      lambda states: place(states, simulation),
    )
  alone = not processes.several()
  agreed = superstep.Wishes()  # Of all processes, when they began a call.
  going = np.ones(np.shape(state.round), bool) if going is None else going
  in_flight: list[tuple] = []  # (numbers, evaluated, state, told)
  draining = False  # Nothing more in line until a wanted state was given.
  per_round = math.inf  # Seconds, once known.
  asked = time.perf_counter()
  while numbers or in_flight:
    while numbers and len(in_flight) < _CALLS_IN_FLIGHT and not draining:
      ours = superstep.Wishes(stopping(), looking(), per_round)
      stop, look, seconds = ours if alone else agreed
      if stop:
        break
      many = int(_CALL_SECONDS / seconds) if seconds else len(numbers)
      many = min(max(many, 1), simulation.rounds_per_call)
      if look:
        many, draining = 1, True
      for i, number in enumerate(numbers[:many]):
        if wanted(number):
          many, draining = i + 1, True
          break
      mine, numbers = numbers[:many], numbers[many:]
      schedule = superstep.make_schedule(
        simulation.planner,
        mine,
        simulation.rounds_per_call,
        evaluated,
        enough_correct,
        ours,
      )
      if cohorts:
        client_states = cohorts.begin(mine[0])
      state, client_states, told = simulation.call(
        going,
        state,
        client_states,
        simulation.data(mine),
        simulation.test,
        superstep.place(schedule, simulation.mesh),
      )
      if cohorts:
        cohorts.under_way(mine[0], client_states)
        client_states = all_states
      going = told.going
      in_flight.append((mine, schedule.evaluate, state, told))
    if not in_flight:
      return  # Stopping.
    mine, tests, state_then, told = in_flight.pop(0)
    told = _fetch(told, lambda: alone and stopping() and not keeps)
    if told is None:
      return
    if cohorts:
      cohorts.end(mine[0])
    agreed = told.wishes
    draining = draining and bool(in_flight)
    # Calls in line behind the end of all hand on what they are given.
    gone = keeps and in_flight and np.any(told.going)
    now = time.perf_counter()
    done = int(told.num_rounds)
    per_round = (now - asked) / max(done, 1)
    asked = now
    for i, number in enumerate(mine[:done]):
      metrics, tested = jax.tree.map(
        lambda array, i=i: array[i], (told.rounds, told.tests)
      )
      yield _record(
        number,
        state_then if i == done - 1 else None,
        None if gone or i < done - 1 else client_states,
        simulation.planner.lanes,
        metrics,
        # A round that is not finite left the model of the one before.
        tested if tests[i] and np.any(metrics.finite) else None,
        per_round,
      )
    if not np.any(told.going):
      return


def run(
  simulation: Simulation, *, rounds: int, eval_every: int = 1
) -> dict[str, np.ndarray]:
  """Runs all rounds; returns the history as arrays, for a notebook.

  Returns:
    Arrays with an entry per round, round 0 included: round, train_loss,
    examples, seconds, test_accuracy, test_loss; NaN where there is none. Of a
    sweep [R, G], but for round and seconds.

  Raises:
    DivergedError: the loss or the model is not finite any more.
  """
  names = 'round train_loss examples seconds test_accuracy test_loss'.split()
  history: dict[str, list] = {name: [] for name in names}
  for record in simulate(simulation, rounds=rounds, eval_every=eval_every):
    for name in names:
      value = getattr(record, name)
      history[name].append(np.nan if value is None else value)
    if not np.any(record.finite):
      raise DivergedError(f'round {record.round}: {DIVERGED}')
  return {
    # What a sweep does not have at a round, it has not for each of its values.
    name: np.array(np.broadcast_arrays(*values))
    for name, values in history.items()
  }


def _fetch(told: Any, give_up: Callable[[], bool]) -> Any:
  """What a call tells, once it has ended; None if it gave up before.

  Another thread waits: this one, if it is the main one, takes signals.
  """
  fetched = _WAITER.submit(jax.device_get, told)
  while not concurrent.futures.wait([fetched], _SECONDS_BETWEEN_LOOKS).done:
    if give_up():
      return None
  return fetched.result()


def _record(
  number, state, client_states, lanes, metrics, tested, seconds
) -> Record:
  def plain(value):
    return value.item() if np.ndim(value) == 0 else np.asarray(value)

  if metrics is None:  # Round 0 trains nothing.
    none: Any = np.zeros(np.shape(tested.correct), np.int32)
    metrics = compiled_round.RoundMetrics(none, none, none, none == 0)
  return Record(
    round=number,
    state=state,
    client_states=client_states,
    lanes=lanes,
    train_loss=(
      plain(metrics.train_loss) if np.any(metrics.examples) else None
    ),
    examples=plain(metrics.examples),
    skipped=plain(metrics.skipped),
    seconds=seconds,
    finite=plain(metrics.finite),
    test_accuracy=None if tested is None else plain(tested.accuracy),
    test_loss=None if tested is None else plain(tested.loss),
  )
