"""Runs the learning rates of a cell as one sweep, which can be interrupted."""

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
import numpy as np

from experiments.paper import cells
from experiments.paper import results
import fedavg_jax as fa
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import provenance
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.snapshots import Snapshots
from fedavg_jax.runs.snapshots import load
from fedavg_jax.runs.snapshots import of

# The most work that a kill loses, and the interval of progress lines.
_SECONDS_BETWEEN_SAVES, _SECONDS_BETWEEN_LINES = 60.0, 30.0


def run(
  cell: cells.Cell,
  learning_rates: Sequence[float],
  seed: int,
  store: results.Results,
  *,
  data: str,
  should_stop: Callable[[], bool],
) -> bool:
  """Trains a cell with the missing learning rates and appends a row for each.

  The sweep ends with the first round of the paper's evaluation grid in which
  one of its rates, or of an earlier sweep, is at the target: the paper prints
  the number of the best rate. Rows of the other rates have the rounds and
  accuracies up to there.

  Args:
    cell: the setting.
    learning_rates: the learning rates of the grid, [G].
    seed: the seed, as in `cells.build`.
    store: the file to append to; checkpoints of an unfinished sweep are in a
      folder next to it.
    data: the folder of the data sets.
    should_stop: a function that returns whether to save and return.

  Returns:
    Whether the sweep is finished; if not, the same call resumes it.

  Raises:
    InputError: the data are bad, or a file cannot be written.
  """
  parts = store.path.with_suffix('.parts')
  try:
    parts.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise fa.InputError(
      f'--results {store.path}: {parts} cannot be made ({error.strerror})'
    ) from error
  name = _digest({**cell.setting(), 'seed': seed})
  lock = filelock.FileLock(parts / f'{name}.lock')
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    say('  skipped: another process is running this cell')
    return False
  with lock:
    store.read()  # Another process may have finished it.
    store.append([])
    rates = store.wanted(cell, seed, learning_rates)
    if rates:
      say('  learning rates ' + ', '.join(f'{rate:g}' for rate in rates))
      folder = parts / f'{name}-{_digest(rates)}'
      folder.mkdir(exist_ok=True)
      with contextlib.closing(checkpoint.Checkpoints(folder, keep=1)) as saved:
        rows = _run(cell, rates, seed, store, saved, data, should_stop)
      if rows is None:
        return False
      store.append(rows)
    for folder in parts.glob(f'{name}-*'):
      shutil.rmtree(folder)
  return True


def _run(
  cell, learning_rates, seed, store, saved, data, should_stop
) -> list[dict[str, Any]] | None:
  """Returns the rows, or None if the sweep was stopped before its end."""
  dataset = cells.load(cell.dataset, data)
  sha256 = cells.digest(cell.dataset, data)
  for row in store.of(cell):
    if row.get('data_sha256', sha256) != sha256:
      raise fa.InputError(
        f'--results {store.path}: has runs of this cell on other data of'
        f' {cell.dataset}; choose another file, or the folder of those data'
      )
  simulation = cells.build(cell, learning_rates, seed, dataset)
  # Accuracies and losses are lists of [G]; `lasted` is the last round before
  # each rate diverged, [G].
  tracked: dict[str, Any] = {'seconds': 0.0, 'accuracy': [], 'loss': []}
  tracked |= {'round': 0, 'lasted': [0] * len(learning_rates), 'data': sha256}
  start = None
  newest = saved.newest()
  if newest is not None and newest.metadata['data'] == sha256:
    start = load(newest, simulation)
    tracked = newest.metadata
    say(f'  resumes after round {tracked["round"]}')
  end = store.end(cell, seed)
  if start is not None and _is_over(cell, tracked, end):
    return _rows(cell, learning_rates, seed, tracked)
  said_at = time.monotonic()
  snapshots = Snapshots(
    saved, seconds=_SECONDS_BETWEEN_SAVES, saved_round=tracked['round']
  )
  for record in fa.simulate(
    simulation,
    rounds=cell.rounds,
    eval_every=cell.eval_every,
    start=start,
    should_stop=should_stop,
  ):
    tracked['round'] = record.round
    tracked['seconds'] += record.seconds
    tracked['lasted'] = np.where(
      record.finite, record.round, tracked['lasted']
    ).tolist()
    if record.test_accuracy is not None:
      tracked['accuracy'].append(record.test_accuracy.tolist())
      tracked['loss'].append(record.test_loss.tolist())
    if _is_over(cell, tracked, end):
      return _rows(cell, learning_rates, seed, tracked)
    now = time.monotonic()
    if now - said_at > _SECONDS_BETWEEN_LINES:
      said_at = now
      say(f'  round {record.round}: {max(tracked["accuracy"][-1]):.4f}')
    snapshots.hold(of(record, lambda: tracked))
  snapshots.save()
  return None


def _is_over(
  cell: cells.Cell, tracked: dict[str, Any], end: int | None
) -> bool:
  """Returns whether more rounds could not change a sweep's result."""
  number = tracked['round']
  alive = np.array(tracked['lasted']) == number
  if number >= min(cell.rounds, end or cell.rounds) or not alive.any():
    return True
  if not cell.target_accuracy or number % cell.eval_every or not number:
    return False
  reached = np.array(tracked['accuracy'][-1]) >= cell.target_accuracy
  return bool((reached & alive).any()) and results.ends_at(cell, number)


def _rows(cell, learning_rates, seed, tracked) -> list[dict[str, Any]]:
  """Returns a row for each learning rate; its curve ends where it diverged.

  If `cell.rounds` is lower than the rounds that were run, the rows are cut.
  """
  accuracies, losses = np.array(tracked['accuracy']), np.array(tracked['loss'])
  beside = {
    'seconds': round(tracked['seconds'] / len(learning_rates), 1),
    'data_sha256': tracked['data'],
    **beside_numbers(provenance.environment()),
  }
  rows = []
  for g, rate in enumerate(learning_rates):
    lasted = min(tracked['lasted'][g], cell.rounds)
    tests = lasted // cell.eval_every + 1
    diverged = tracked['lasted'][g] < min(tracked['round'], cell.rounds)
    curve = [float(f'{a:.7g}') for a in accuracies[:tests, g]]
    row = {
      'table': cell.table,
      **cell.setting(),
      'u': cell.u,
      'target_accuracy': cell.target_accuracy,
      'algorithm': cell.algorithm,
      'learning_rate': rate,
      'seed': seed,
      'diverged': diverged,
      'rounds': lasted,
      'rounds_to_target': None,
      'rounds_to_target_paper_grid': None,
      'best_accuracy': max(curve),
      'curve': curve,
    }
    if cell.target_accuracy:
      row |= results.crossings(row, cell.target_accuracy)
    if row['rounds_to_target'] is not None:
      row['status'] = 'reached'
    elif diverged:
      row['status'] = 'diverged'
    else:
      row['status'] = 'finished' if lasted == cell.rounds else 'overtaken'
    if cell.measured == 'train':
      row['loss_curve'] = [float(f'{x:.4g}') for x in losses[:tests, g]]
    rows.append(row | beside)
  return rows


def _digest(value: Any) -> str:
  """Returns a short digest of a value's JSON."""
  text = json.dumps(value, sort_keys=True).encode()
  return hashlib.sha256(text).hexdigest()[:16]


def beside_numbers(environment: dict[str, Any]) -> dict[str, Any]:
  """Returns the provenance of every result: device, versions, commit, date."""
  names = ('device', 'processor', 'num_devices', 'versions')
  return {
    **{name: environment[name] for name in names},
    'commit': _commit(),
    'date': datetime.date.today().isoformat(),
  }


def _commit() -> str:
  """Returns the commit of the code, a + if files differ; '' without git."""
  try:
    done = subprocess.run(
      ['git', 'describe', '--always', '--dirty=+', '--exclude=*'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
    )
  except OSError:
    return ''
  return done.stdout.strip()
