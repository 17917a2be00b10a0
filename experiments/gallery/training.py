"""Trains a cell with a seed: claimed by one process, resumable, kept as a line.

The lines of a source are in one file, which several processes may extend. A
run that is stopped has a folder next to it, from which the next call resumes.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any
from typing import NamedTuple

import filelock
import jax
import numpy as np

from experiments.gallery.cell import Cell
from experiments.gallery.cell import Source
from experiments.paper import results
from experiments.paper import sweeps
import fedavg_jax as fa
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.data import data_dirs
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import provenance
from fedavg_jax.runs import result
from fedavg_jax.runs.builders import Prepared
from fedavg_jax.runs.progress import say

# Data set -> its folder in $FEDAVG_DATA, and where its files come from.
_FOLDERS = {
  'mnist': ('mnist', 'the four IDX files of MNIST'),
  'cifar10': (
    'cifar-10-batches-bin',
    'the files of https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz,'
    ' unpacked with `tar -xzf cifar-10-binary.tar.gz`',
  ),
}
_NEEDED = {
  **dict.fromkeys(('cell', 'config_sha256', 'commit', 'date'), str),
  **dict.fromkeys(('device', 'processor', 'data_sha256'), str),
  **dict.fromkeys(('seed', 'num_devices', 'eval_every'), int),
  **dict.fromkeys(('value', 'seconds'), (int, float)),
  **dict.fromkeys(('versions', 'curves'), dict),
}


def opened(folder: pathlib.Path, source: Source) -> results.Lines:
  """Opens the file of a source's results.

  Args:
    folder: the folder of all files.
    source: the source.

  Raises:
    InputError: the file cannot be read.
  """
  return results.Lines(folder / f'{source.key}.jsonl', _is_result, flag='--out')


def _is_result(row: dict[str, Any]) -> bool:
  if not all(isinstance(row.get(key), kind) for key, kind in _NEEDED.items()):
    return False
  curves = list(row['curves'].values())
  return bool(curves) and all(
    isinstance(curve, list) and len(curve) == len(curves[0]) for curve in curves
  )


def rows_of(cell: Cell, store: results.Lines) -> dict[int, dict[str, Any]]:
  """Returns seed -> row of a cell's present setting, the last of each seed."""
  return {
    row['seed']: row
    for row in store.rows
    if row['cell'] == cell.name
    and row['config_sha256'] == cell.digest(row['seed'])
  }


def tested_rounds(cell: Cell) -> np.ndarray:
  """Returns the rounds after which a cell's model is tested, [T]."""
  last, every = cell.config.rounds, cell.config.eval_every
  return np.unique([*range(0, last, every), last])


def run(cell: Cell, seed: int, store: results.Lines) -> str:
  """Trains a cell with a seed unless its line exists, and appends the line.

  Args:
    cell: the cell.
    seed: the seed of data that are generated, partition, weights and cohorts.
    store: the file of the cell's source.

  Returns:
    What happened: 'done', 'was done' or 'another process has it'.

  Raises:
    InputError: the data are missing, or a file cannot be written.
    InterruptedRunError: the run was stopped; the same call resumes it.
  """
  parts = store.path.with_suffix('.parts')
  name = f'{cell.name.replace("/", "-")}-{seed}'
  try:
    parts.mkdir(parents=True, exist_ok=True)
    claim = filelock.FileLock(parts / f'{name}.lock').acquire(timeout=0)
  except filelock.Timeout:
    return 'another process has it'
  except OSError as error:
    raise fa.InputError(
      f'--out {store.path.parent}: {parts} cannot be made ({error.strerror})'
    ) from error
  with claim:
    store.read()  # Another process may have finished it.
    if seed in rows_of(cell, store):
      return 'was done'
    store.append([])  # Fails before any work where it cannot be written.
    folder = parts / name
    store.append([row_of(cell, seed, folder)])
    shutil.rmtree(folder, ignore_errors=True)
  return 'done'


def row_of(cell: Cell, seed: int, folder: pathlib.Path) -> dict[str, Any]:
  """Trains a cell in a folder, from which the same call resumes.

  Returns:
    The row: names, number, curves by test metric, and provenance. The curves
    of a run that diverged end before that round.

  Raises:
    InputError: the data are missing.
    InterruptedRunError: the run was stopped.
  """
  config = cell.seeded(seed)
  check_data(cell)
  prepared = builders.prepare(config)
  simulation = build(cell, seed, prepared)
  try:
    history = fa.run(
      simulation,
      rounds=config.rounds,
      eval_every=config.eval_every,
      folder=folder,
    ).history
  except DivergedError as error:
    say(f'  {error}')
    history = finite_history(folder)
  rounds = tested_rounds(cell)
  rounds = rounds[rounds < len(history['round'])]
  curves = {
    name.removeprefix('test_'): [
      float(f'{value:.6g}') for value in column[rounds]
    ]
    for name, column in history.items()
    if name.startswith('test_')
  }
  beside = sweeps.beside_numbers(provenance.environment())
  return {
    'cell': cell.name,
    'seed': seed,
    'value': value_of(cell, curves),
    'curves': curves,
    'eval_every': config.eval_every,
    'rounds': config.rounds,
    'seconds': round(float(np.nansum(history['seconds'])), 1),
    'config_sha256': cell.digest(seed),
    'data_sha256': _digest(prepared),
    **beside,
  }


def value_of(cell: Cell, curves: dict[str, list[float]]) -> float:
  """Returns the number of a cell, read from the curve of test accuracies.

  Rounds after a divergence count as accuracy 0.
  """
  rounds, found = tested_rounds(cell), curves['accuracy']
  accuracies = np.pad(np.array(found), (0, len(rounds) - len(found)))
  return round(cell.reading.of(rounds, accuracies), 6)


def finite_history(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the history of a run that diverged, up to the round before.

  Args:
    folder: the folder of the run, whose last line is the diverged round.
  """
  text = (folder / 'metrics.jsonl').read_text('utf-8')
  return result.history([json.loads(line) for line in text.splitlines()][:-1])


def build(cell: Cell, seed: int, prepared: Prepared) -> fa.Simulation:
  """Compiles the simulation of a cell, with its rule of completion."""
  config = cell.seeded(seed)
  federation = builders.federate(config, prepared)
  if cell.completion is not None:
    participation = dataclasses.replace(
      federation.participation, completion=cell.completion
    )
    federation = dataclasses.replace(federation, participation=participation)
  return fa.build_simulation(
    prepared.model,
    federation,
    builders.algorithm_of(config, prepared),
    loss=prepared.loss,
    metrics=prepared.metrics,
  )


def check_data(cell: Cell) -> None:
  """Raises InputError where $FEDAVG_DATA is set but lacks a cell's data set.

  Without the variable, MNIST and CIFAR-10 are downloaded.
  """
  home = os.environ.get('FEDAVG_DATA')
  text = cell.config.dataset
  name = 'mnist' if text.endswith('fedprox_mnist:data') else text
  if not home or name not in _FOLDERS:
    return
  folder, files = _FOLDERS[name]
  if data_dirs.shared_folder(name) is None:
    raise fa.InputError(
      f'--data {home}: cell {cell.name} needs its folder {folder}/, with'
      f' {files}; without --data and $FEDAVG_DATA they are downloaded'
    )


class Comparison(NamedTuple):
  """Compares a row with that of a second run.

  Attributes:
    cell: the name of the cell.
    seed: the seed.
    values: the kept number and the new one.
    devices: the number of devices of the kept run and of the new one.
    difference: the largest difference of any curve, in the six digits that
      are kept; infinite where names or lengths of the curves differ.
  """

  cell: str
  seed: int
  values: tuple[float, float]
  devices: tuple[int, int]
  difference: float

  def describe(self) -> str:
    """Returns the comparison as a sentence."""
    kept, new = self.values
    curves = (
      'all curves are equal in their six digits'
      if not self.difference
      else f'the curves differ by up to {self.difference:.6g}'
    )
    before, now = self.devices
    where = '' if before == now else f' (on {before} device(s), again on {now})'
    return (
      f'{self.cell}, seed {self.seed}: {kept:.4f}, again {new:.4f}; {curves}'
      f'{where}'
    )


def again(cell: Cell, row: dict[str, Any]) -> Comparison:
  """Trains the cell of a kept row once more and compares.

  Raises:
    InterruptedRunError: it was stopped; nothing is kept of it.
  """
  with tempfile.TemporaryDirectory() as folder:
    new = row_of(cell, row['seed'], pathlib.Path(folder) / 'run')
  return Comparison(
    cell.name,
    row['seed'],
    (row['value'], new['value']),
    (row['num_devices'], new['num_devices']),
    largest_difference(row['curves'], new['curves']),
  )


def largest_difference(
  kept: dict[str, list[float]], found: dict[str, list[float]]
) -> float:
  """Returns the largest difference of curves with the same names.

  It is infinite where names or lengths differ, or only one value is NaN.

  >>> largest_difference({'a': [1.0], 'b': [2.0]}, {'a': [1.0], 'b': [2.5]})
  0.5
  """
  lengths = [
    {name: len(curve) for name, curve in curves.items()}
    for curves in (kept, found)
  ]
  if lengths[0] != lengths[1]:
    return math.inf
  largest = 0.0
  for name, curve in kept.items():
    for one, other in zip(curve, found[name], strict=True):
      if one != other and not (math.isnan(one) and math.isnan(other)):
        gap = abs(one - other)
        largest = max(largest, math.inf if math.isnan(gap) else gap)
  return largest


def _digest(prepared: Prepared) -> str:
  """Returns 16 digits of the SHA-256 of the examples of clients and test."""
  arrays = jax.tree.leaves(
    (tuple(prepared.clients), tuple(prepared.dataset.test))
  )
  return checkpoint.digest([np.asarray(array) for array in arrays])[:16]
