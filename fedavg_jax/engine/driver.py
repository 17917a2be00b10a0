"""The rounds of a compiled federation, one after another.

While the devices work on a call, the next one is planned and begun.
"""

import collections
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

  state, client_states = _first_states(simulation, start, host_states)
  done = int(np.max(state.round))
  tested = simulation.evaluate(state.params)
  lanes = simulation.planner.lanes
  if start is None:
    yield _record(0, state, client_states, lanes, None, tested, 0.0)
  # Of a sweep, those that have ended before are behind the others.
  going = np.asarray(jax.device_get(state.round)) == done
  if target_accuracy and evaluated(done):
    going &= tested.accuracy < target_accuracy
  if not going.any():
    return
  enough_correct = superstep.enough_correct(
    target_accuracy, int(np.max(tested.count))
  )
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
        enough_correct=enough_correct,
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


def _first_states(
  simulation: Simulation,
  start: tuple[compiled_round.ServerState, Any] | None,
  host_states: ClientStates | None,
) -> tuple[compiled_round.ServerState, Any]:
  """Returns server state and client states of a run that begins or resumes."""
  state, client_states = start or simulation.init()
  if start is None and simulation.host_states is not None:
    client_states = host_states or simulation.host_states()
  if processes.several():  # Other processors round otherwise: one has drawn it.
    state = collectives.copy(jax.device_get(state), state)
  if not isinstance(client_states, ClientStates):
    client_states = place(client_states, simulation)
  return place(state, simulation), client_states


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
  calls = Calls(
    simulation,
    state,
    client_states,
    numbers,
    superstep.Ends(evaluated, enough_correct),
    going=going,
    asked=Asked(wanted, looking, stopping),
  )
  while calls.fill():
    ended = calls.wait()
    if ended is None:
      return
    yield from calls.records(*ended)
    if calls.over:
      return


class Call(NamedTuple):
  """A call that has begun.

  Attributes:
    numbers: of its rounds.
    tests: [R] bool, rounds after which the model is tested.
    state: of the server after it, on the devices.
    told: what it will return beside the states.
  """

  numbers: range
  tests: np.ndarray
  state: compiled_round.ServerState
  told: superstep.Told


class Asked(NamedTuple):
  """What the caller of `run_calls` asks for, see there."""

  wanted: Callable[[int], bool]
  looking: Callable[[], bool]
  stopping: Callable[[], bool]


class Calls:
  """The calls of a run: begun before the device needs them, then waited for.

  Attributes:
    numbers: of the rounds that are in no call yet.
    in_flight: calls that have begun, the oldest first.
    over: whether no value of a sweep, or not the only one, goes on.
  """

  def __init__(
    self,
    simulation: Simulation,
    state: compiled_round.ServerState,
    client_states: Any,
    numbers: range,
    ends: superstep.Ends,
    *,
    going: Any,
    asked: Asked,
  ):
    """Begins no call yet; the arguments are those of `run_calls`."""
    self.numbers, self.over = numbers, False
    self.in_flight: collections.deque[Call] = collections.deque()
    self._simulation, self._ends, self._asked = simulation, ends, asked
    self._going = (
      np.ones(np.shape(state.round), bool) if going is None else going
    )
    self._state, self._client_states = state, client_states
    self._keeps = bool(jax.tree.leaves(client_states))
    self._cohorts = None  # Where what clients keep stays on the host.
    if isinstance(client_states, ClientStates):
      self._cohorts = Cohorts(
        client_states,
        simulation.planner.slots,
        lambda states: place(states, simulation),
      )
    self._alone = not processes.several()
    self._agreed = superstep.Wishes()  # Of all processes, at the oldest call.
    self._draining = False  # No further call until a wanted state was given.
    self._seconds = math.inf  # Of a round, once known.
    self._ended_at = time.perf_counter()
    self._waiter = concurrent.futures.ThreadPoolExecutor(1)

  def fill(self) -> bool:
    """Begins calls until the devices have enough; False if there are none."""
    while (
      self.numbers
      and len(self.in_flight) < superstep.CALLS_IN_FLIGHT
      and not self._draining
    ):
      ours = superstep.Wishes(
        self._asked.stopping(), self._asked.looking(), self._seconds
      )
      agreed = ours if self._alone else self._agreed
      if agreed.stop:
        break
      many = self._rounds_of_next_call(agreed)
      mine, self.numbers = self.numbers[:many], self.numbers[many:]
      self._begin(mine, ours)
    return bool(self.in_flight)

  def _rounds_of_next_call(self, agreed: superstep.Wishes) -> int:
    """Returns how many rounds it has; notes whether none may follow it yet."""
    most = self._simulation.rounds_per_call
    if agreed.look:
      self._draining = True
      most = 1
    elif agreed.seconds:
      most = min(max(int(_CALL_SECONDS / agreed.seconds), 1), most)
    most = min(most, len(self.numbers))
    for i, number in enumerate(self.numbers[:most]):
      if self._asked.wanted(number):
        self._draining = True
        return i + 1
    return most

  def _begin(self, numbers: range, ours: superstep.Wishes) -> None:
    """Plans a call and hands it to the devices."""
    simulation = self._simulation
    schedule = superstep.make_schedule(
      simulation.planner,
      numbers,
      simulation.rounds_per_call,
      self._ends.evaluated,
      self._ends.enough_correct,
      ours,
    )
    states = self._client_states
    if self._cohorts:
      states = self._cohorts.begin(numbers[0])
    self._state, states, told = simulation.call(
      self._going,
      self._state,
      states,
      simulation.data(numbers),
      simulation.test,
      superstep.place(schedule, simulation.mesh),
    )
    if self._cohorts:
      self._cohorts.under_way(numbers[0], states)
    else:
      self._client_states = states
    self._going = told.going
    self.in_flight.append(Call(numbers, schedule.evaluate, self._state, told))

  def wait(self) -> tuple[Call, superstep.Told] | None:
    """Waits for the oldest call.

    Returns:
      The call, and what it returned, on the host; None if the caller asked to
      stop meanwhile and nothing of the call is needed.
    """
    call = self.in_flight.popleft()
    told = self._fetch(call.told)
    if told is None:
      return None
    if self._cohorts:
      self._cohorts.end(call.numbers[0])
    self._agreed = told.wishes
    self._draining = self._draining and bool(self.in_flight)
    self.over = not np.any(told.going)
    now = time.perf_counter()
    self._seconds = (now - self._ended_at) / max(int(told.num_rounds), 1)
    self._ended_at = now
    return call, told

  def _fetch(self, told: superstep.Told) -> Any:
    """Returns what a call returned, once it has ended; None if given up.

    Another thread waits: this one, if it is the main one, takes signals.
    """
    fetched = self._waiter.submit(jax.device_get, told)
    while not concurrent.futures.wait([fetched], _SECONDS_BETWEEN_LOOKS).done:
      if self._alone and self._asked.stopping() and not self._keeps:
        return None
    return fetched.result()

  def records(self, call: Call, told: superstep.Told) -> Iterator[Record]:
    """Yields a record per round of a call that has ended."""
    # A call that has begun meanwhile has taken what the clients keep; behind
    # the end of all it hands on what it was given.
    gone = self._keeps and self.in_flight and not self.over
    last = int(told.num_rounds) - 1
    for i, number in enumerate(call.numbers[: last + 1]):
      metrics, tested = jax.tree.map(
        lambda array, i=i: array[i], (told.rounds, told.tests)
      )
      yield _record(
        number,
        call.state if i == last else None,
        None if gone or i < last else self._client_states,
        self._simulation.planner.lanes,
        metrics,
        # A round that is not finite left the model of the one before.
        tested if call.tests[i] and np.any(metrics.finite) else None,
        self._seconds,
      )


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
