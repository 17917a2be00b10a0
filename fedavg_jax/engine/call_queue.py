"""Queues the calls of a run, so that the devices never wait for Python.

While the devices work on a call, the host plans and dispatches the next one.
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

from fedavg_jax.contracts.task import results
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import processes
from fedavg_jax.engine import superstep
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.client_state_store import Cohorts
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import place

# The aim for the duration of a call: long compared with the cost of a call,
# short for a user who watches.
_CALL_SECONDS = 0.5
_SECONDS_BETWEEN_LOOKS = 0.1  # The interval of checks for a stop request.


class Record(NamedTuple):
  """Holds the results of one round.

  In a sweep of G values, states, loss, examples, skipped, info, coded, finite
  and test have a leading axis [G]; a value that is not finite has ended.

  Attributes:
    round: the round's number; 0 is the initial model.
    state: the `ServerState` after the round; None if the same call continued
      with further rounds, because the device does not stop in between.
    client_states: the states of all clients after the round, to be read before
      the next record is requested; None if the next round already uses them.
      If client states are on the host, this is the `ClientStates`.
    lanes: the number of lanes, over all devices, that trained the round.
    train_loss: the mean loss over the examples read, each before its own step;
      None if none was read.
    examples: the number of examples read in all local epochs.
    skipped: the number of dropped clients, as in `RoundMetrics`.
    info: name -> mean over the clients that count; empty in round 0.
    coded: the size of the messages in bytes, as in `RoundMetrics`.
    seconds: the wall time in seconds per round of the round's call, from the
      end of the previous call, evaluation included.
    finite: False if the round diverged; `state` is then the previous one.
    test: name -> result of each metric on the test set; empty if the model was
      not tested.

  >>> import fedavg_jax as fa
  >>> record = fa.engine.Record(
  ...   round=0, state=None, client_states=None, lanes=2, train_loss=None,
  ...   examples=0, skipped=0, info={}, coded=0, seconds=0.0, finite=True,
  ...   test={'accuracy': 0.5})
  >>> record.test_accuracy, record.test_loss
  (0.5, None)
  """

  round: int
  state: compiled_round.ServerState | None
  client_states: Any
  lanes: int
  train_loss: Any
  examples: Any
  skipped: Any
  info: dict[str, Any]
  coded: Any
  seconds: float
  finite: Any
  test: dict[str, Any]

  @property
  def test_accuracy(self) -> Any:
    """Returns the accuracy on the test set, in [0, 1]; None if not tested."""
    return self.test.get('accuracy')

  @property
  def test_loss(self) -> Any:
    """Returns the mean loss on the test set; None if not tested."""
    return self.test.get('loss')


class Call(NamedTuple):
  """Holds a call that has been dispatched, or has ended.

  Attributes:
    numbers: the numbers of its rounds.
    tests: [R] bool, True for rounds after which the model is tested.
    state: the server's state after the call, on the devices.
    result: the call's other results, on the host once the call has ended.
  """

  numbers: range
  tests: np.ndarray
  state: compiled_round.ServerState
  result: superstep.CallResult


class Callbacks(NamedTuple):
  """Holds the requests of the caller of `run_calls`, which describes them."""

  needs_state: Callable[[int], bool]
  state_requested: Callable[[], bool]
  should_stop: Callable[[], bool]


class Calls:
  """Dispatches the calls of a run ahead of the devices, and awaits them.

  Attributes:
    numbers: the numbers of the rounds that are in no call yet.
    in_flight: the calls that have been dispatched, the oldest first.
    over: True once every value of a sweep, or the only one, has ended.
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
    callbacks: Callbacks,
  ):
    """Dispatches no call yet; the arguments are those of `run_calls`."""
    self.numbers, self.over = numbers, False
    self.in_flight: collections.deque[Call] = collections.deque()
    self._simulation, self._ends, self._callbacks = simulation, ends, callbacks
    self._going = (
      np.ones(np.shape(state.round), bool) if going is None else going
    )
    self._state, self._client_states = state, client_states
    self._has_client_states = bool(jax.tree.leaves(client_states))
    self._cohorts = None  # Set if client states are on the host.
    if isinstance(client_states, ClientStates):
      self._cohorts = Cohorts(
        client_states,
        simulation.planner.slots,
        lambda states: place(states, simulation),
      )
    self._alone = not processes.is_distributed()
    self._agreed = superstep.Requests()  # All processes', at the oldest call.
    self._draining = False  # No further call until a state is returned.
    self._seconds = math.inf  # Seconds per round, once known.
    self._ended_at = time.perf_counter()
    self._waiter = concurrent.futures.ThreadPoolExecutor(1)

  def fill(self) -> bool:
    """Dispatches calls until enough are queued; returns whether any is."""
    while (
      self.numbers
      and len(self.in_flight) < superstep.CALLS_IN_FLIGHT
      and not self._draining
    ):
      ours = superstep.Requests(
        self._callbacks.should_stop(),
        self._callbacks.state_requested(),
        self._seconds,
      )
      agreed = ours if self._alone else self._agreed
      if agreed.stop:
        break
      many = self._rounds_of_next_call(agreed)
      mine, self.numbers = self.numbers[:many], self.numbers[many:]
      self._begin(mine, ours)
    return bool(self.in_flight)

  def _rounds_of_next_call(self, agreed: superstep.Requests) -> int:
    """Returns the number of rounds; notes if no call may follow for now."""
    most = self._simulation.rounds_per_call
    if agreed.state:
      self._draining = True
      most = 1
    elif agreed.seconds:
      most = min(max(int(_CALL_SECONDS / agreed.seconds), 1), most)
    most = min(most, len(self.numbers))
    for i, number in enumerate(self.numbers[:most]):
      if self._callbacks.needs_state(number):
        self._draining = True
        return i + 1
    return most

  def _begin(self, numbers: range, ours: superstep.Requests) -> None:
    """Plans a call and dispatches it to the devices."""
    simulation = self._simulation
    schedule = superstep.make_schedule(
      simulation.planner,
      numbers,
      simulation.rounds_per_call,
      self._ends.evaluated,
      self._ends.enough,
      ours,
    )
    states = self._client_states
    if self._cohorts:
      states = self._cohorts.begin(numbers[0])
    self._state, states, result = simulation.call(
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
    self._going = result.going
    self.in_flight.append(Call(numbers, schedule.evaluate, self._state, result))

  def wait(self) -> Call | None:
    """Waits for the oldest call.

    Returns:
      The call that has ended; None if the caller requested a stop meanwhile and
      nothing of the call is needed.
    """
    call = self.in_flight.popleft()
    result = self._fetch(call.result)
    if result is None:
      return None
    if self._cohorts:
      self._cohorts.end(call.numbers[0])
    self._agreed = result.wishes
    self._draining = self._draining and bool(self.in_flight)
    self.over = not np.any(result.going)
    now = time.perf_counter()
    self._seconds = (now - self._ended_at) / max(int(result.num_rounds), 1)
    self._ended_at = now
    return call._replace(result=result)

  def _fetch(self, result: superstep.CallResult) -> Any:
    """Returns a call's results on the host; None if the run is to stop.

    Another thread waits, because this one may be the main thread, which
    handles signals.
    """
    fetched = self._waiter.submit(jax.device_get, result)
    while not concurrent.futures.wait([fetched], _SECONDS_BETWEEN_LOOKS).done:
      if (
        self._alone
        and self._callbacks.should_stop()
        and not self._has_client_states
      ):
        return None
    return fetched.result()

  def records(self, call: Call) -> Iterator[Record]:
    """Yields a record per round of a call that has ended."""
    # A call queued behind this one has taken the client states; once the run
    # is over, it returns them unchanged.
    taken = self._has_client_states and self.in_flight and not self.over
    result = call.result
    last = int(result.num_rounds) - 1
    for i, number in enumerate(call.numbers[: last + 1]):
      metrics, tested = jax.tree.map(
        lambda array, i=i: array[i], (result.rounds, result.tests)
      )
      yield make_record(
        number,
        call.state if i == last else None,
        None if taken or i < last else self._client_states,
        self._simulation.planner.lanes,
        metrics,
        # A round that is not finite has left the model unchanged.
        results(self._simulation.task, tested)
        if call.tests[i] and np.any(metrics.finite)
        else {},
        self._seconds,
      )


def make_record(
  number: int,
  state: compiled_round.ServerState | None,
  client_states: Any,
  lanes: int,
  metrics: compiled_round.RoundMetrics | None,
  test: dict[str, Any],
  seconds: float,
) -> Record:
  """Returns the record of a round, with scalars as Python numbers.

  Args:
    number: the number of the round.
    state: the value of `Record.state`.
    client_states: the value of `Record.client_states`.
    lanes: the value of `Record.lanes`.
    metrics: the metrics of the round, on the host; None for round 0, which
      trains nothing.
    test: the value of `Record.test`.
    seconds: the value of `Record.seconds`.
  """

  def plain(value):
    return value.item() if np.ndim(value) == 0 else np.asarray(value)

  if metrics is None:  # Round 0 trains nothing.
    none: Any = np.zeros(np.shape(state.round if state else 0), np.int32)
    metrics = compiled_round.RoundMetrics(none, none, none, {}, none, none == 0)
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
    info={name: plain(value) for name, value in metrics.info.items()},
    coded=plain(metrics.coded),
    seconds=seconds,
    finite=plain(metrics.finite),
    test={name: plain(value) for name, value in test.items()},
  )
