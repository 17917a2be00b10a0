"""Shares the folder of a run, which process 0 reads and writes, with all.

All processes call each method and get the same result; an error on process 0 is
raised on every process. In a single process, it is just the folder.
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
  """Describes what an interrupted run has saved, on every process.

  Attributes:
    lanes: the number of lanes to use: that of the run if it resumes to the same
      bits, else that of the config; 0 is automatic.
    resumes: whether there is a checkpoint.
    num_clients: the number of clients whose states it holds, if client states
      stay on the host, else 0.
  """

  lanes: int
  resumes: bool
  num_clients: int


class SharedFolder(contextlib.AbstractContextManager):
  """Manages the folder of a run, on every process.

  Attributes:
    path: the path of the folder on process 0.
  """

  def __init__(
    self, workdir: str | pathlib.Path, cfg: RunConfig, *, extend: bool
  ):
    """Locks the folder if it exists; only `begin` creates one.

    Args:
      workdir: the path of a new folder, or of that of an interrupted run.
      cfg: the config of the run.
      extend: the argument of `train` of this name.

    Raises:
      InputError: the folder belongs to another run or to none, or is in use.
    """
    self.path = pathlib.Path(processes.broadcast(str(workdir)))
    self._cfg = cfg
    # Process 0 alone has the folder.
    self._folder = processes.on_primary(lambda: _take(self.path, cfg, extend))
    self._began: dict[str, Any] = {}
    self._saved: checkpoint.Checkpoint | None = None

  def __exit__(self, *raised: object) -> None:
    if self._folder is not None:
      self._folder.close()

  def last_summary(self) -> dict[str, Any]:
    """Returns the content of summary.json; {} if it is damaged or missing."""
    found = self._folder.last_summary() if self._folder else {}
    return processes.broadcast(found)

  def read(self, now: dict[str, Any]) -> Left:
    """Reads what an interrupted run has saved.

    Args:
      now: the config.json of a run that would start here and now.

    Raises:
      InputError: the run cannot resume here.
    """
    processes.check_equal({'the data, by SHA-256,': now['data_sha256']})
    found = processes.on_primary(lambda: self._read(now))
    return Left(*processes.broadcast(found or ()))

  def _read(self, now: dict[str, Any]) -> Left:
    assert self._folder is not None
    self._began, lanes = now, self._cfg.lanes
    if self._folder.began is None:
      return Left(lanes, False, 0)
    saved = self._saved = resume.newest(self._folder, now)
    self._began, same_bits = resume.continued(self._folder.began, now, saved)
    if saved is None:
      return Left(lanes, False, 0)
    if same_bits and lanes == self._folder.began['config'].get('lanes', 0):
      lanes = saved.metadata['lanes']  # Free memory may have changed.
    return Left(lanes, True, saved.metadata.get('clients', 0))

  def start(
    self, simulation: Simulation, left: Left
  ) -> tuple[tuple[ServerState, Any] | None, ClientStates | None]:
    """Returns the states that a run resumes from.

    Args:
      simulation: the compiled simulation.
      left: the output of `read`.

    Returns:
      Server state and client states, None for a new run; and the client states
      that stay on the host, None if they are on the devices.
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
    """Returns the tree of the checkpoint, and frees the checkpoint."""
    assert self._saved is not None
    tree = checkpoint.restore(self._saved, like)
    self._saved = None
    return tree

  def _host_states(self, simulation: Simulation) -> ClientStates | None:
    if simulation.host_states is None:
      return None
    if self._cfg.client_states_on != 'disk':
      return simulation.host_states(None)
    # The file is temporary; only process 0 has the folder of the run.
    folder = self._folder.path if self._folder else tempfile.gettempdir()
    return simulation.host_states(pathlib.Path(folder))

  def begin(
    self, prepared: Prepared, simulation: Simulation, left: Left
  ) -> None:
    """Creates the folder and writes the files that precede the first round.

    Raises:
      InputError: the folder cannot be created, or the disk has no room for the
        checkpoints.
    """
    room = _room(self._cfg, simulation, left)
    processes.on_primary(lambda: self._begin(prepared, room))

  def _begin(self, prepared: Prepared, room: int) -> None:
    folder = self._folder
    assert folder is not None
    folder.begin(room=room)
    if self._began != folder.began:
      folder.config(self._began)
    if not (folder.path / 'partition.png').exists():
      draw_population(self._cfg, prepared, folder)

  def record(self, run: Run) -> dict[str, Any]:
    """Computes the rounds and saves their results; returns the summary."""
    folder = self._folder
    return processes.broadcast(
      record_rounds(run, folder) if folder else follow_rounds(run)
    )


def _take(workdir: pathlib.Path, cfg: RunConfig, extend: bool) -> Workdir:
  folder = Workdir(workdir)
  try:
    if folder.began is not None:
      config_changes.check_same(cfg, folder.began.get('config'), extend=extend)
    elif extend:
      raise InputError(f'workdir = {workdir}: contains no run to resume')
  except InputError:
    folder.close()
    raise
  return folder


def _room(cfg: RunConfig, simulation: Simulation, left: Left) -> int:
  """Returns the bytes that must be free on the disk."""
  # The kept ones, the best and a new one; on resume only the new one is added.
  number = 1 if left.resumes else cfg.checkpoint.keep + 2
  room = checkpoint.bytes_needed(jax.eval_shape(simulation.init), number)
  if simulation.host_states is not None:
    # The states of all clients that can take part; the file has them once more.
    planner = simulation.planner
    most = min(planner.cohort_size * cfg.rounds, len(planner.num_examples))
    shapes = simulation.host_states().shapes(most)
    room += checkpoint.bytes_needed(shapes, number + 1)
  return room
