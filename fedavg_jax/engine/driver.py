"""The rounds of a compiled federation, one after another.

While the devices work on a call, the next one is planned and begun.
"""

from collections.abc import Callable
from collections.abc import Iterator
import math
from typing import Any

import jax
import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.errors import DivergedError
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
    yield make_record(0, state, client_states, lanes, None, tested, 0.0)
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
