"""The folder of a run from Python, from which the same call continues it."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import processes
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs.recorder import snapshot_of
from fedavg_jax.runs.result import Best
from fedavg_jax.runs.result import Result
from fedavg_jax.runs.resume import newest_whole
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.snapshots import Snapshots
from fedavg_jax.runs.snapshots import from_tree
from fedavg_jax.runs.snapshots import put
from fedavg_jax.runs.snapshots import shapes

# In config.json: what a run from Python is made of.
FROM_PYTHON = 'from_python'
_SECONDS = 60.0  # Between two checkpoints.
_KEEP = 2
_BEST = 'best'


class PythonFolder(contextlib.AbstractContextManager):
  """The folder of a run from Python, until its `with` ends.

  Attributes:
    result: what an earlier call has left, None where the run begins.
  """

  def __init__(
    self, path: str | pathlib.Path, simulation: Simulation, keep_best: bool
  ):
    """Takes the folder, and makes it where there is none.

    Args:
      path: of a new folder, or of one that an earlier call has left.
      simulation: that is run.
      keep_best: whether the best model is saved beside the last one.

    Raises:
      InputError: it is another run's, in use, or cannot be written.
    """
    if processes.several():
      raise InputError(
        'folder: needs a single process; `train` saves runs of several'
      )
    self._simulation = simulation
    self.result: Result | None = None
    with contextlib.ExitStack() as stack:
      own = self._own = stack.enter_context(Workdir(pathlib.Path(path)))
      made_of = _made_of(simulation, keep_best)
      saved = None
      if own.began is not None:
        _check_same(own, made_of)
        saved = newest_whole(own)
      else:
        states = jax.eval_shape(simulation.init)
        own.begin(room=checkpoint.bytes_needed(states, _KEEP + 2))
        own.config({FROM_PYTHON: made_of})
      own.open_metrics()
      checkpoints = checkpoint.Checkpoints(own.path, keep=_KEEP)
      stack.callback(checkpoints.close)
      if saved is not None:
        self._continue(saved)
      self._snapshots = Snapshots(
        checkpoints,
        seconds=_SECONDS,
        saved_round=saved.told['round'] if saved else None,
        before=own.sync,
        after=own.mark_saved,
      )
      self._open = stack.pop_all()

  def __exit__(self, *raised: object) -> None:
    with self._open:
      self._snapshots.save()

  def due(self) -> bool:
    """Tells whether it is time for a checkpoint."""
    return self._snapshots.due()

  def take(
    self, record: Record, row: dict[str, Any], best: Best | None
  ) -> None:
    """Writes the row of a round, and a checkpoint where one is due.

    Args:
      record: of the round.
      row: of the history.
      best: the best model so far, None where none is kept.
    """
    before = self._own.seal()
    self._own.line(row)
    if record.state is None or record.client_states is None:
      return
    snapshot = snapshot_of(record, before, self._own.seal())
    if best is not None:
      own, found = snapshot.beside, [best.round, best.value]
      snapshot = snapshot._replace(
        beside=lambda: own() | {_BEST: found}, more={_BEST: best.variables}
      )
    self._snapshots.hold(snapshot)

  def _continue(self, saved: checkpoint.Checkpoint) -> None:
    """Makes the result of what an earlier call has left."""
    simulation = self._simulation
    states = simulation.host_states() if simulation.host_states else None
    like = shapes(simulation, states, saved.told.get('clients', 0))
    if found := saved.told.get(_BEST):
      like[_BEST] = from_tree(like)[0].variables
    tree = checkpoint.restore(saved, like)
    state, client_states = put(tree, simulation, states)
    rows = self._own.lines()
    _check_first(simulation, rows[0], self._own.path)
    self.result = Result(
      simulation,
      {name: _column([row[name] for row in rows]) for name in rows[0]},
      state,
      client_states,
      Best(found[0], found[1], tree[_BEST]) if found else None,
    )


def _made_of(simulation: Simulation, keep_best: bool) -> dict[str, Any]:
  """Returns what must be the same where a run continues."""
  planner, task = simulation.planner, simulation.task
  return {
    'model': task.model.name,
    'loss': getattr(task.loss, '__name__', type(task.loss).__name__),
    'seed': planner.seed,
    'epochs': planner.epochs,
    'batch_size': planner.batch_size,
    'cohort_size': planner.cohort_size,
    'shuffle': planner.shuffle,
    'weighting': planner.weighting,
    'num_clients': len(planner.num_examples),
    'num_examples_sha256': checkpoint.digest([planner.num_examples]),
    'sweep': list(simulation.sweep) if simulation.sweep else None,
    'keep_best': keep_best,
  }


def _check_same(own: Workdir, made_of: dict[str, Any]) -> None:
  """Raises InputError where a folder is another run's."""
  assert own.began is not None
  before = own.began.get(FROM_PYTHON)
  if not isinstance(before, dict):
    raise InputError(
      f'folder = {own.path}: has a run of `train` or of the command, which'
      ' continue it; choose a new folder'
    )
  for name, value in made_of.items():
    if before.get(name) != value:
      raise InputError(
        f'{name} = {value!r}: was {before.get(name)!r} in folder = {own.path};'
        ' set it back, or choose a new folder'
      )


def _check_first(
  simulation: Simulation, row: dict[str, Any], path: pathlib.Path
) -> None:
  """Raises InputError where the first model has another test than it had."""
  if simulation.sweep is not None:
    return
  state, _ = simulation.init()
  for name, value in simulation.evaluate(state.variables).items():
    before = _number(row.get(f'test_{name}'))
    if not np.isclose(before, value, rtol=1e-3, equal_nan=True):
      raise InputError(
        f'folder = {path}: the model before round 1 had the test {name}'
        f' {before:.6g} there, has {value:.6g} here; bring its model and data'
        ' back, or choose a new folder'
      )


def _column(values: list[Any]) -> np.ndarray:
  """Returns a column of a history; null of JSON is NaN."""
  return np.array(np.broadcast_arrays(*map(_number, values)))


def _number(value: Any) -> Any:
  """Returns a number, or an array of them, of JSON."""
  if isinstance(value, list):
    return np.array([_number(one) for one in value])
  return np.nan if value is None else value
