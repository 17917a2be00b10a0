"""Saves and loads the states that a run or a sweep resumes from.

Single runs, sweeps and the experiments of the paper all use `Snapshots`, so
that only this module decides when a state is saved, and in which form.
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
  """Holds the states after a round.

  Attributes:
    round: the number of the round.
    state: the server state.
    client_states: the states of all clients, on the devices or the host.
    beside: a function that returns the JSON to save with them, called only when
      they are saved.
    score: the result of the model's test, larger is better; None without one.
    changes: the `ClientStates.changes` at that round, 0 for other states.
    more: further trees to save, such as another model.
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
      OSError: the checkpoint cannot be written.
    """
    tree = to_tree(self.state, self.client_states) | self.more
    checkpoints.save(self.round, tree, self.beside(), self.score)


def are_stored(client_states: Any, changes: int) -> bool:
  """Returns whether no later call has consumed or changed client states.

  Args:
    client_states: the states of all clients, on the devices or the host.
    changes: the expected `ClientStates.changes` of states on the host.
  """
  if isinstance(client_states, ClientStates):
    return client_states.changes == changes
  return not any(
    isinstance(leaf, jax.Array) and leaf.is_deleted()
    for leaf in jax.tree.leaves(client_states)
  )


def of(record: Record, beside: Callable[[], dict[str, Any]]) -> Snapshot | None:
  """Returns the snapshot of a record of a sweep, None if it has no states."""
  if record.state is None or record.client_states is None:
    return None
  return Snapshot(record.round, record.state, record.client_states, beside)


class Snapshots:
  """Keeps the newest snapshot of a run, and saves it when that is due.

  Attributes:
    held: the newest snapshot, None if it is not needed any more.
  """

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
    """Starts without a snapshot.

    Args:
      checkpoints: the checkpoints to save to.
      seconds: the seconds between two checkpoints; 0: only `rounds` decides.
      rounds: the rounds between two checkpoints; 0: only `seconds` decides.
      saved_round: the round that the run resumes from, which is saved already.
      before: a function to call before a checkpoint is written.
      after: a function to call after a checkpoint is written.
    """
    self._checkpoints = checkpoints
    self._seconds, self._rounds = seconds, rounds
    self._before, self._after = before, after
    self._saved_round, self._saved_at = saved_round, time.monotonic()
    self.held: Snapshot | None = None

  def due(self) -> bool:
    """Returns whether `seconds` have passed since the last checkpoint."""
    since = time.monotonic() - self._saved_at
    return bool(self._seconds and since >= self._seconds)

  def due_at(self, number: int) -> bool:
    """Returns whether `rounds` makes a checkpoint due after a round."""
    return bool(self._rounds and number and number % self._rounds == 0)

  def hold(self, snapshot: Snapshot | None) -> None:
    """Replaces the newest snapshot, and saves the new one if that is due.

    Args:
      snapshot: the new snapshot, None to drop the old one.
    """
    self.held = snapshot
    if snapshot and (self.due() or self.due_at(snapshot.round)):
      self.save()

  def save(self) -> None:
    """Saves the newest snapshot, unless it is saved or its states are gone.

    Raises:
      OSError: the checkpoint cannot be written; it is not tried again.
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
  """Loads a checkpoint onto the devices of a simulation.

  Args:
    saved: the checkpoint.
    simulation: the compiled simulation.

  Returns:
    Server state and client states, the `start` of `simulate`.

  Raises:
    InputError: the checkpoint is that of another model or algorithm.
  """
  like = shapes(simulation, None, 0)
  return put(checkpoint.restore(saved, like), simulation, None)


def shapes(
  simulation: Simulation, states: ClientStates | None, number: int
) -> Any:
  """Returns the tree of shapes and dtypes in a checkpoint of a simulation.

  Args:
    simulation: the compiled simulation.
    states: the client states that stay on the host, None if they are on the
      devices.
    number: the number of clients whose host states the checkpoint holds.
  """
  state, client_states = jax.eval_shape(simulation.init)
  if states is not None:
    client_states = states.shapes(number)
  return to_tree(state, client_states)


def put(
  tree: Any, simulation: Simulation, states: ClientStates | None
) -> tuple[ServerState, Any]:
  """Puts the tree of a checkpoint onto the devices and the host.

  Args:
    tree: the restored tree, with the structure of `shapes`.
    simulation: the compiled simulation.
    states: the client states on the host, which are set to those of the tree;
      None if they are on the devices.

  Returns:
    Server state and client states, the `start` of `simulate`.
  """
  state, client_states = from_tree(tree)
  if states is None:
    return place((state, client_states), simulation)
  states.scatter(client_states['clients'], client_states['states'])
  return place(state, simulation), states


def to_tree(state: ServerState, client_states: Any) -> Any:
  """Returns the tree of a checkpoint."""
  if isinstance(client_states, ClientStates):
    client_states = client_states.saved()
  return state._asdict() | {'clients': client_states}


def from_tree(tree: Any) -> tuple[ServerState, Any]:
  """Returns the server state and the client states in a checkpoint's tree."""
  server = {name: tree[name] for name in ServerState._fields if name in tree}
  return ServerState(**server), tree['clients']
