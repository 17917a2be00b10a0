"""The states that a run or a sweep resumes from: held, saved when due, loaded.

Single runs, sweeps and the experiments of the paper all follow their rounds
with one `Snapshots`, so that when to save, what to save at the end and how to
load it stands here alone.
"""

from collections.abc import Callable
from collections.abc import Mapping
import time
import types
from typing import Any
from typing import NamedTuple

import jax

from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import place
from fedavg_jax.runs import checkpoint


class Snapshot(NamedTuple):
  """The state after a round.

  Attributes:
    round: its number.
    state: of the server.
    client_states: of all clients, on the devices or the host.
    beside: () -> JSON that is saved with them, called once it is.
    score: of the model's test, larger is better; None where there was none.
    changes: that client states on the host had seen.
    more: that is saved with them, such as another model.
  """

  round: int
  state: ServerState
  client_states: Any
  beside: Callable[[], dict[str, Any]]
  score: float | None = None
  changes: int = 0
  more: Mapping[str, Any] = types.MappingProxyType({})

  def save(self, checkpoints: checkpoint.Checkpoints) -> None:
    """Writes a checkpoint.

    Raises:
      OSError: it cannot be written.
    """
    tree = to_tree(self.state, self.client_states) | self.more
    checkpoints.save(self.round, tree, self.beside(), self.score)


def are_stored(client_states: Any, changes: int) -> bool:
  """Tells whether client states have not gone into a later call.

  Args:
    client_states: of all clients, on the devices or the host.
    changes: that those on the host had seen.
  """
  if isinstance(client_states, ClientStates):
    return client_states.changes == changes
  return not any(
    isinstance(leaf, jax.Array) and leaf.is_deleted()
    for leaf in jax.tree.leaves(client_states)
  )


def of(record: Record, beside: Callable[[], dict[str, Any]]) -> Snapshot | None:
  """Returns the snapshot of a record of a sweep, None where it has no state."""
  if record.state is None or record.client_states is None:
    return None
  return Snapshot(record.round, record.state, record.client_states, beside)


class Snapshots:
  """The newest snapshot of a run, and when it is saved."""

  def __init__(
    self,
    checkpoints: checkpoint.Checkpoints,
    *,
    seconds: float,
    rounds: int = 0,
    saved_round: int | None = None,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
  ):
    """Holds nothing yet.

    Args:
      checkpoints: where they are saved.
      seconds: between two checkpoints, 0 saves by rounds alone.
      rounds: between two checkpoints, 0 saves by time alone.
      saved_round: that the run resumes from, which is saved already.
      before: called before a checkpoint is written.
      after: called once it is.
    """
    self._checkpoints = checkpoints
    self._seconds, self._rounds = seconds, rounds
    self._before, self._after = before, after
    self._saved_round, self._saved_at = saved_round, time.monotonic()
    self.held: Snapshot | None = None

  def due(self) -> bool:
    """Tells whether it is time for a checkpoint, by the clock."""
    since = time.monotonic() - self._saved_at
    return bool(self._seconds and since >= self._seconds)

  def due_at(self, number: int) -> bool:
    """Tells whether the round of this number is to be saved."""
    return bool(self._rounds and number and number % self._rounds == 0)

  def hold(self, snapshot: Snapshot | None) -> None:
    """Replaces what is held, and saves it where that is due.

    Args:
      snapshot: None where what is held is no longer of use.
    """
    self.held = snapshot
    if snapshot and (self.due() or self.due_at(snapshot.round)):
      self.save()

  def save(self) -> None:
    """Saves what is held, unless it was or is there no more.

    Raises:
      OSError: it cannot be written; it is not tried again.
    """
    held = self.held
    if not held or held.round == self._saved_round:
      return
    if not are_stored(held.client_states, held.changes):
      return
    self._saved_round = held.round
    self._before()
    held.save(self._checkpoints)
    self._after()
    self._saved_at = time.monotonic()


def load(
  saved: checkpoint.Checkpoint, simulation: Simulation
) -> tuple[ServerState, Any]:
  """Puts what was saved on the devices of a simulation.

  Returns:
    Server state and client states, as `simulate` takes them for its `start`.

  Raises:
    InputError: they are of another model or algorithm.
  """
  like = shapes(simulation, None, 0)
  return put(checkpoint.restore(saved, like), simulation, None)


def shapes(
  simulation: Simulation, states: ClientStates | None, number: int
) -> Any:
  """Returns the shapes of what a checkpoint of a simulation holds.

  Args:
    simulation: compiled.
    states: of clients that stay on the host, None where they do not.
    number: of these clients in the checkpoint.
  """
  state, kept = jax.eval_shape(simulation.init)
  if states is not None:
    kept = states.shapes(number)
  return to_tree(state, kept)


def put(
  tree: Any, simulation: Simulation, states: ClientStates | None
) -> tuple[ServerState, Any]:
  """Puts what a checkpoint held where a simulation has it.

  Args:
    tree: of `shapes`.
    simulation: compiled.
    states: of clients that stay on the host, which get theirs; None where they
      are on the devices.

  Returns:
    Server state and client states, as `simulate` takes them for its `start`.
  """
  state, kept = from_tree(tree)
  if states is None:
    return place((state, kept), simulation)
  states.scatter(kept['clients'], kept['states'])
  return place(state, simulation), states


def to_tree(state: ServerState, client_states: Any) -> Any:
  """Returns what a checkpoint holds."""
  if isinstance(client_states, ClientStates):
    client_states = client_states.saved()
  return state._asdict() | {'clients': client_states}


def from_tree(tree: Any) -> tuple[ServerState, Any]:
  """Returns server state and client states of what a checkpoint holds."""
  server = {name: tree[name] for name in ServerState._fields}
  return ServerState(**server), tree['clients']
