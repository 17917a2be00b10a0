"""Runs the learning rates of a cell as one sweep, in slices of any length."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import datetime
import hashlib
import json
import pathlib
import shutil
import subprocess
import time
from typing import Any

import filelock
import jax
import numpy as np

from experiments import cells
from experiments import results
import fedavg_jax as fa
from fedavg_jax import checkpoint
from fedavg_jax import metrics
from fedavg_jax import resume
from fedavg_jax.progress import say
from fedavg_jax.simulation import place

# What a kill may cost, and how often somebody who watches is told.
_SECONDS_BETWEEN_SAVES, _SECONDS_BETWEEN_LINES = 60.0, 30.0


def run(
  cell: cells.Cell,
  learning_rates: Sequence[float],
  seed: int,
  store: results.Results,
  *,
  data: str,
  stopping: Callable[[], bool],
) -> bool:
  """Trains a cell with every learning rate and appends a row for each.

  The sweep ends when the first of its rates, or one of an earlier sweep, has
  reached the target and the next round has come that the paper evaluates: what
  the paper prints is the best rate's number. The others tell how far they came.

  Args:
    cell: the setting.
    learning_rates: [G].
    seed: as in `cells.build`.
    store: to append to; beside it lies what is not over.
    data: folder of the data sets.
    stopping: whether to save and come back.

  Returns:
    Whether the sweep is over; if not, the same call goes on with it.

  Raises:
    InputError: bad data.
  """
  key = {**cell.setting(), 'seed': seed, 'learning_rates': list(learning_rates)}
  digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
  folder = store.path.with_suffix('.parts') / digest.hexdigest()[:16]
  folder.mkdir(parents=True, exist_ok=True)
  lock = filelock.FileLock(folder / 'lock')
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    say('  another process is at it')
    return False
  with (
    lock,
    contextlib.closing(checkpoint.Checkpoints(folder, keep=1)) as saved,
  ):
    rows = _run(cell, learning_rates, seed, store, saved, data, stopping)
    if rows is None:
      return False
    store.append(rows)
  shutil.rmtree(folder)
  return True


def _run(
  cell, learning_rates, seed, store, saved, data, stopping
) -> list[dict[str, Any]] | None:
  """The rows, or None where it was stopped before."""
  simulation = cells.build(
    cell, learning_rates, seed, cells.load(cell.dataset, data)
  )
  # Accuracies and losses are lists of [G].
  told: dict[str, Any] = {'seconds': 0.0, 'accuracy': [], 'loss': []}
  told['lasted'] = [0] * len(learning_rates)  # Rounds until each diverged.
  start = None
  if (newest := saved.newest()) is not None:
    like = resume.to_tree(*jax.eval_shape(simulation.init))
    start = resume.from_tree(
      place(checkpoint.restore(newest.leaves, like), simulation)
    )
    told = newest.told
    say(f'  goes on after round {told["round"]}')
  best = store.best(cell, seed)
  first = best.rounds if best else None
  saved_at = said_at = time.monotonic()
  at_hand = None
  for record in fa.simulate(
    simulation,
    rounds=cell.rounds,
    eval_every=cell.eval_every,
    start=start,
    stopping=stopping,
  ):
    finite = np.broadcast_to(record.finite, len(learning_rates))
    told['round'] = record.round
    told['seconds'] += record.seconds
    told['lasted'] = np.where(finite, record.round, told['lasted']).tolist()
    if record.test_accuracy is not None:
      told['accuracy'].append(record.test_accuracy.tolist())
      told['loss'].append(record.test_loss.tolist())
      if first is None and 0 < cell.target_accuracy <= max(
        record.test_accuracy[finite], default=0
      ):
        first = record.round
    if _is_over(cell, record.round, first) or not finite.any():
      return _rows(cell, learning_rates, seed, told)
    now = time.monotonic()
    if now - said_at > _SECONDS_BETWEEN_LINES:
      said_at = now
      say(f'  round {record.round}: {max(told["accuracy"][-1]):.4f}')
    at_hand = record if record.state is not None else None
    if at_hand and now - saved_at > _SECONDS_BETWEEN_SAVES:
      _save(saved, at_hand, told)
      saved_at = now
  if at_hand:
    _save(saved, at_hand, told)
  return None


def _is_over(cell: cells.Cell, number: int, first: int | None) -> bool:
  """Whether the paper evaluates after this round, the target passed before."""
  if number == cell.rounds:
    return True
  reached = first is not None and number >= first
  return reached and (cell.eval_every > 1 or metrics.on_paper_grid(number))


def _save(saved: checkpoint.Checkpoints, at_hand: fa.Record, told: Any) -> None:
  assert at_hand.state is not None
  tree = resume.to_tree(at_hand.state, at_hand.client_states)
  saved.save(at_hand.round, tree, told, None)


def _rows(cell, learning_rates, seed, told) -> list[dict[str, Any]]:
  """A row for each learning rate; where it diverged its curve ends."""
  accuracies, losses = np.array(told['accuracy']), np.array(told['loss'])
  environment = metrics.environment()
  rows = []
  for g, rate in enumerate(learning_rates):
    tests = told['lasted'][g] // cell.eval_every + 1
    diverged = told['lasted'][g] < told['round']
    curve = [float(f'{a:.5g}') for a in accuracies[:tests, g]]
    row = {
      'table': cell.table,
      **cell.setting(),
      'u': cell.u,
      'target_accuracy': cell.target_accuracy,
      'algorithm': cell.algorithm,
      'learning_rate': rate,
      'seed': seed,
      'status': 'diverged' if diverged else 'overtaken',
      'rounds': told['lasted'][g],
      'rounds_to_target': None,
      'rounds_to_target_paper_grid': None,
      'best_accuracy': max(curve),
      'curve': curve,
    }
    if cell.target_accuracy:
      row |= results.crossings(row, cell.target_accuracy)
    if row['rounds_to_target'] is not None:
      row['status'] = 'reached'
    elif told['lasted'][g] == cell.rounds:
      row['status'] = 'finished'
    if cell.measured == 'train':
      row['loss_curve'] = [float(f'{x:.4g}') for x in losses[:tests, g]]
    rows.append(
      row
      | {
        'seconds': round(told['seconds'] / len(learning_rates), 1),
        **provenance(environment),
      }
    )
  return rows


def provenance(environment: dict[str, Any]) -> dict[str, Any]:
  """What stands beside every number: device, versions, commit, date."""
  names = ('device', 'processor', 'num_devices', 'versions')
  return {
    **{name: environment[name] for name in names},
    'commit': _commit(),
    'date': datetime.date.today().isoformat(),
  }


def _commit() -> str:
  """Of the code that runs, with a + where files differ; '' without git."""
  try:
    told = subprocess.run(
      ['git', 'describe', '--always', '--dirty=+', '--exclude=*'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
    )
  except OSError:
    return ''
  return told.stdout.strip()
