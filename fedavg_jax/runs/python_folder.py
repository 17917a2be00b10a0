"""Saves a run from Python in a folder, from which the same call resumes it."""

import contextlib
import pathlib
from typing import Any

import jax

from fedavg_jax.contracts.model import join
from fedavg_jax.contracts.model import split
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import processes
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs.made_of import check_same
from fedavg_jax.runs.made_of import made_of
from fedavg_jax.runs.recorder import snapshot_of
from fedavg_jax.runs.result import Best
from fedavg_jax.runs.result import Result
from fedavg_jax.runs.result import history
from fedavg_jax.runs.resume import newest_intact
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.snapshots import Snapshots
from fedavg_jax.runs.snapshots import from_tree
from fedavg_jax.runs.snapshots import put
from fedavg_jax.runs.snapshots import shapes

# Key in config.json: the components and settings of a run from Python.
FROM_PYTHON = 'from_python'
_SECONDS = 60.0  # Between two checkpoints.
_KEEP = 2


class PythonFolder(contextlib.AbstractContextManager):
  """Manages the folder of a run from Python, until its `with` ends.

  Attributes:
    result: the result that an earlier call has saved, None for a new run.
  """

  def __init__(
    self, path: str | pathlib.Path, simulation: Simulation, keep_best: bool
  ):
    """Locks the folder, after creating it if it does not exist.

    Args:
      path: the path of a new folder, or of one from an earlier call.
      simulation: the simulation to run.
      keep_best: whether the best model is saved in addition to the last one.

    Raises:
      InputError: the folder belongs to another run, is in use, or cannot be
        written.
    """
    if processes.is_distributed():
      raise InputError(
        'folder: needs a single process; `train` saves runs of several'
      )
    self._simulation = simulation
    self.result: Result | None = None
    with contextlib.ExitStack() as stack:
      folder = self._folder = stack.enter_context(
        Workdir(pathlib.Path(path), key='folder')
      )
      now = made_of(simulation, keep_best=keep_best)
      saved = None
      if folder.began is not None:
        before = folder.began.get(FROM_PYTHON)
        check_same(before, now, folder.path)
        saved = newest_intact(folder)
        if before != now:  # Versions differ: the next call compares with these.
          folder.config(folder.began | {FROM_PYTHON: now})
      else:
        states = jax.eval_shape(simulation.init)
        folder.begin(room=checkpoint.bytes_needed(states, _KEEP + 2))
        folder.config({FROM_PYTHON: now})
      folder.open_metrics()
      checkpoints = checkpoint.Checkpoints(folder.path, keep=_KEEP)
      stack.callback(checkpoints.close)
      if saved is not None:
        self._continue(saved)
      self._snapshots = Snapshots(
        checkpoints,
        seconds=_SECONDS,
        saved_round=saved.metadata['round'] if saved else None,
        before=folder.sync,
        after=folder.mark_saved,
      )
      self._open = stack.pop_all()

  def __exit__(self, *raised: object) -> None:
    with self._open:
      self._snapshots.save()

  def due(self) -> bool:
    """Returns whether it is time for a checkpoint."""
    return self._snapshots.due()

  def take(
    self, record: Record, row: dict[str, Any], best: Best | None
  ) -> None:
    """Writes the row of a round, and a checkpoint if one is due.

    Args:
      record: the record of the round.
      row: the row of the history.
      best: the best model so far, None if none is kept.
    """
    before = self._folder.seal()
    self._folder.line(row)
    if record.state is None or record.client_states is None:
      return
    snapshot = snapshot_of(record, before, self._folder.seal())
    if best is not None:
      metadata, found = snapshot.beside, [best.round, best.value]
      snapshot = snapshot._replace(
        beside=lambda: metadata() | {checkpoint.BEST: found},
        more={checkpoint.BEST: _to_tree(best.variables)},
      )
    self._snapshots.hold(snapshot)

  def _continue(self, saved: checkpoint.Checkpoint) -> None:
    """Restores the result that an earlier call has saved."""
    simulation = self._simulation
    states = simulation.host_states() if simulation.host_states else None
    like = shapes(simulation, states, saved.metadata.get('clients', 0))
    if found := saved.metadata.get(checkpoint.BEST):
      like[checkpoint.BEST] = _to_tree(from_tree(like)[0].variables)
    tree = checkpoint.restore(saved, like)
    state, client_states = put(tree, simulation, states)
    best = None
    if found:
      best = Best(*found, variables=join(**tree[checkpoint.BEST]))
    self.result = Result(
      simulation, history(self._folder.lines()), state, client_states, best
    )


def _to_tree(variables: Any) -> dict[str, Any]:
  """Returns a model in the form of a checkpoint."""
  params, state = split(variables)
  return {'params': params, 'state': state}
