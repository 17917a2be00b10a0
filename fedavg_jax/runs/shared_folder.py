"""The folder of a run: real on process 0, silent on the others.

All processes call each method and get the same from it; what is wrong on
process 0 is raised on all of them. Of a single process it is the folder itself.
"""

import contextlib
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple

import jax

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import resume
from fedavg_jax.runs.builders import Prepared
from fedavg_jax.runs.recorder import Run
from fedavg_jax.runs.recorder import follow_rounds
from fedavg_jax.runs.recorder import record_rounds
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.snapshots import put
from fedavg_jax.runs.snapshots import shapes
from fedavg_jax.runs.summary import draw_population


class Left(NamedTuple):
  """What an interrupted run has left, as all processes know it.

  Attributes:
    lanes: to ask for, those of the run where it resumes to the same bits.
    resumes: whether there is a checkpoint.
    num_clients: clients with states in it, where these stay on the host.
  """

  lanes: int
  resumes: bool
  num_clients: int


class SharedFolder(contextlib.AbstractContextManager):
  """The folder of a run, on every process.

  Attributes:
    path: of the folder, as process 0 has it.
  """

  def __init__(
    self, workdir: str | pathlib.Path, cfg: RunConfig, *, extend: bool
  ):
    """Takes the folder; it is made by `begin` alone.

    Args:
      workdir: a new folder, or that of an interrupted run.
      cfg: settings of the run.
      extend: as in `train`.

    Raises:
      InputError: it is another run's, or nobody's, or in use.
    """
    self.path = pathlib.Path(processes.broadcast(str(workdir)))
    self._cfg = cfg
    # Of process 0, as the folder will be read and written.
    self._own = processes.on_primary(lambda: _take(self.path, cfg, extend))
    self._began: dict[str, Any] = {}
    self._saved: checkpoint.Checkpoint | None = None

  def __exit__(self, *raised: object) -> None:
    if self._own is not None:
      self._own.close()

  def last_summary(self) -> dict[str, Any]:
    """Returns what summary.json holds, nothing where there is none."""
    return processes.broadcast(self._own.last_summary() if self._own else {})

  def read(self, now: dict[str, Any]) -> Left:
    """Reads what an interrupted run has left.

    Args:
      now: config.json of a run that would begin here and now.

    Raises:
      InputError: it cannot resume here.
    """
    processes.check_equal({'the data, by SHA-256,': now['data_sha256']})
    found = processes.on_primary(lambda: self._read(now))
    return Left(*processes.broadcast(found or ()))

  def _read(self, now: dict[str, Any]) -> Left:
    assert self._own is not None
    self._began, lanes = now, self._cfg.lanes
    if self._own.began is None:
      return Left(lanes, False, 0)
    saved = self._saved = resume.newest(self._own, now)
    self._began, same_bits = resume.continued(self._own.began, now, saved)
    if saved is None:
      return Left(lanes, False, 0)
    if same_bits and lanes == self._own.began['config'].get('lanes', 0):
      lanes = saved.metadata['lanes']  # What memory is free may have changed.
    return Left(lanes, True, saved.metadata.get('clients', 0))

  def start(
    self, simulation: Simulation, left: Left
  ) -> tuple[tuple[ServerState, Any] | None, ClientStates | None]:
    """Returns the state that a run resumes from.

    Args:
      simulation: compiled.
      left: of `read`.

    Returns:
      Server state and client states, None where the run begins; and the states
      of clients that stay on the host, None where they do not.
    """
    states = self._host_states(simulation)
    if not left.resumes:
      return None, states
    like = shapes(simulation, states, left.num_clients)
    tree = collectives.copy(
      processes.on_primary(lambda: self._restore(like)), like
    )
    return put(tree, simulation, states), states

  def _restore(self, like: Any) -> Any:
    """Returns the tree of the checkpoint, which is then let go."""
    assert self._saved is not None
    tree = checkpoint.restore(self._saved, like)
    self._saved = None
    return tree

  def _host_states(self, simulation: Simulation) -> ClientStates | None:
    if simulation.host_states is None:
      return None
    if self._cfg.client_states_on != 'disk':
      return simulation.host_states(None)
    # What need not stay lies beside the run, or on other processes anywhere.
    beside = self._own.path if self._own else tempfile.gettempdir()
    return simulation.host_states(pathlib.Path(beside))

  def begin(
    self, prepared: Prepared, simulation: Simulation, left: Left
  ) -> None:
    """Writes what the folder has before the first round.

    Raises:
      InputError: it cannot be made, or has no room for the checkpoints.
    """
    room = _room(self._cfg, simulation, left)
    processes.on_primary(lambda: self._begin(prepared, room))

  def _begin(self, prepared: Prepared, room: int) -> None:
    own = self._own
    assert own is not None
    own.begin(room=room)
    if self._began != own.began:
      own.config(self._began)
    if not (own.path / 'partition.png').exists():
      draw_population(self._cfg, prepared, own)

  def record(self, run: Run) -> dict[str, Any]:
    """Runs until an end and keeps what it gives; returns the summary."""
    own = self._own
    return processes.broadcast(
      record_rounds(run, own) if own else follow_rounds(run)
    )


def _take(workdir: pathlib.Path, cfg: RunConfig, extend: bool) -> Workdir:
  own = Workdir(workdir)
  try:
    if own.began is not None:
      config_changes.check_same(cfg, own.began.get('config'), extend=extend)
    elif extend:
      raise InputError(f'workdir = {workdir}: contains no run to resume')
  except InputError:
    own.close()
    raise
  return own


def _room(cfg: RunConfig, simulation: Simulation, left: Left) -> int:
  """Returns the bytes that must be free on the disk."""
  # All that are kept, the best and a new one; on resume the others have theirs.
  number = 1 if left.resumes else cfg.checkpoint.keep + 2
  room = checkpoint.bytes_needed(jax.eval_shape(simulation.init), number)
  if simulation.host_states is not None:
    # Of those clients that can take part; once in the file.
    planner = simulation.planner
    most = min(planner.cohort_size * cfg.rounds, len(planner.num_examples))
    shapes = simulation.host_states().shapes(most)
    room += checkpoint.bytes_needed(shapes, number + 1)
  return room
