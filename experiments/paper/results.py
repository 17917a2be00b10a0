"""Reads and appends finished runs: one JSON line each, never rewritten."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import pathlib
import statistics
from typing import Any
from typing import NamedTuple

import filelock

from experiments.paper.cells import Cell
import fedavg_jax as fa
from fedavg_jax.runs import targets

DEFAULT = pathlib.Path(__file__).parent / 'results' / 'paper.jsonl'
_NUMBER = (int, float)
# The keys of a row that are used, and their types.
_NEEDED = {
  **dict.fromkeys(('model', 'dataset', 'partition', 'status', 'date'), str),
  **dict.fromkeys(('device', 'processor'), str),
  **dict.fromkeys(('seed', 'rounds', 'eval_every', 'num_devices'), int),
  **dict.fromkeys(('learning_rate', 'seconds'), _NUMBER),
  'diverged': bool,
  'curve': list,
  'versions': dict,
}


class Lines:
  """Reads the rows of a file; damaged lines stay in it and are not used.

  Attributes:
    path: the path of the file.
    rows: the rows that can be read, in their order.
    damaged: the numbers of the lines that cannot be read, from 1.
  """

  def __init__(
    self,
    path: pathlib.Path,
    whole: Callable[[Any], bool] = lambda row: True,
    flag: str = '--results',
  ):
    """Reads a file, if it exists.

    Args:
      path: the path of the file.
      whole: a predicate: whether a JSON object is a complete row of this file.
      flag: the command's flag for the file, for error messages.

    Raises:
      InputError: the path is not a file, or cannot be read.
    """
    self.path = path
    self._whole, self._flag = whole, flag
    self.read()

  def read(self) -> None:
    """Reads the file again: another process may have appended to it."""
    self.rows: list[dict[str, Any]] = []
    self.damaged: list[int] = []
    try:
      content = self.path.read_bytes() if self.path.exists() else b''
    except OSError as error:
      raise fa.InputError(
        f'{self._flag} {self.path}: cannot be read ({error.strerror})'
      ) from error
    for number, line in enumerate(content.split(b'\n'), 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):
        row = None
      if isinstance(row, dict) and self._whole(row):
        self.rows.append(row)
      else:
        self.damaged.append(number)

  def append(self, rows: Sequence[dict[str, Any]]) -> None:
    """Appends rows, starting a new line if the last one is incomplete.

    Without rows it only checks that the file can be written.

    Raises:
      InputError: the file cannot be written.
    """
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Two commands may append to one file.
      with (
        filelock.FileLock(f'{self.path}.lock'),
        open(self.path, 'a+b') as file,
      ):
        end = file.seek(0, os.SEEK_END)
        if end and rows:
          file.seek(end - 1)
          if file.read(1) != b'\n':
            file.write(b'\n')
        file.write(b''.join(json.dumps(row).encode() + b'\n' for row in rows))
        file.flush()
        if rows:
          os.fsync(file.fileno())
    except OSError as error:
      raise fa.InputError(
        f'{self._flag} {self.path}: cannot be written'
        f' ({error.strerror or error})'
      ) from error
    self.rows += rows


class Best(NamedTuple):
  """Holds the best result over the learning rates of a cell and seed.

  Attributes:
    seed: the seed of the runs.
    learning_rate: the learning rate that reached the target first.
    rounds: the rounds that it took, None if no rate has reached the target.
    rounds_paper_grid: the fewest rounds of any rate on the paper's evaluation
      grid.
    at_edge: whether that rate is the smallest or largest of those tried.
    tried: the largest number of rounds of any run.
  """

  seed: int
  learning_rate: float | None
  rounds: int | None
  rounds_paper_grid: float | None
  at_edge: bool
  tried: int


class Results(Lines):
  """Holds the runs of the paper's cells."""

  def __init__(self, path: pathlib.Path):
    """Reads a file of runs, if it exists; raises as `Lines` does."""
    super().__init__(path, _is_run)

  def of(self, cell: Cell, seed: int | None = None) -> list[dict[str, Any]]:
    """Returns the runs of a cell: the longest per learning rate and seed."""
    setting = cell.setting()
    found: dict[tuple, dict[str, Any]] = {}
    for row in self.rows:
      if any(row.get(key) != value for key, value in setting.items()):
        continue
      if seed is not None and row['seed'] != seed:
        continue
      if cell.learning_rate not in (None, row['learning_rate']):
        continue
      key = (row['seed'], row['learning_rate'])
      if key not in found or len(row['curve']) >= len(found[key]['curve']):
        found[key] = row
    return [found[key] for key in sorted(found)]

  def end(self, cell: Cell, seed: int) -> int | None:
    """Returns the round after which no other learning rate could be better.

    It is the first round of the paper's evaluation grid in which some learning
    rate is at the target.
    """
    ends = [
      number
      for row in self.of(cell, seed)
      if cell.target_accuracy
      for number, accuracy in zip(_rounds(row), row['curve'], strict=True)
      if number and accuracy >= cell.target_accuracy and ends_at(cell, number)
    ]
    return min(ends, default=None)

  def wanted(
    self, cell: Cell, seed: int, learning_rates: Sequence[float]
  ) -> list[float]:
    """Returns the learning rates that must be run, or run for more rounds."""
    rows = {row['learning_rate']: row for row in self.of(cell, seed)}
    end = self.end(cell, seed)
    best = self.best(cell, seed)

    def has_enough(rate):
      if rate not in rows:
        return False
      row = rows[rate]
      enough = cell.rounds
      if end is not None:  # Another rate is better, or this one is the best.
        enough = min(end, cell.rounds)
      elif best and best.rounds and not _first(row, cell):
        enough = min(best.rounds, cell.rounds)
      return row['diverged'] or row['rounds'] >= enough

    return [rate for rate in learning_rates if not has_enough(rate)]

  def best(self, cell: Cell, seed: int) -> Best | None:
    """Returns the best learning rate of a seed, None without runs."""
    rows = self.of(cell, seed)
    if not rows or not cell.target_accuracy:
      return None
    found = {
      row['learning_rate']: tuple(crossings(row, cell.target_accuracy).values())
      for row in rows
    }
    reached = {rate: n for rate, (n, _) in found.items() if n is not None}
    on_grid = [n for _, n in found.values() if n is not None]
    rate = min(reached, key=lambda r: (reached[r], r), default=None)
    return Best(
      seed=seed,
      learning_rate=rate,
      rounds=None if rate is None else reached[rate],
      rounds_paper_grid=min(on_grid, default=None),
      at_edge=rate in (min(found), max(found)),
      tried=max(row['rounds'] for row in rows),
    )


def ends_at(cell: Cell, number: int) -> bool:
  """Returns whether a sweep that is at its target ends with this round.

  Sweeps on MNIST and Shakespeare continue to a round of the paper's evaluation
  grid, so that they can be measured as in the paper.
  """
  return cell.eval_every > 1 or targets.on_paper_grid(number)


def crossings(row: dict[str, Any], target: float) -> dict[str, Any]:
  """Returns the rounds to a target by both measures; None if not reached."""
  args = (_rounds(row), row['curve'], target)
  return {
    'rounds_to_target': targets.rounds_to_target(*args),
    'rounds_to_target_paper_grid': targets.rounds_to_target_paper_grid(*args),
  }


def median_and_range(values: Sequence[float]) -> str:
  """Returns '30', or '30 (27 to 35)' for several seeds."""
  middle = f'{statistics.median(values):.4g}'
  if len(values) == 1:
    return middle
  return f'{middle} ({min(values):.4g} to {max(values):.4g})'


def _first(row, cell) -> int | None:
  return crossings(row, cell.target_accuracy)['rounds_to_target']


def _rounds(row) -> list[int]:
  return [i * row['eval_every'] for i in range(len(row['curve']))]


def _is_run(row: dict[str, Any]) -> bool:
  return (
    all(isinstance(row.get(key), kind) for key, kind in _NEEDED.items())
    and bool(row['curve'])
    and all(isinstance(accuracy, _NUMBER) for accuracy in row['curve'])
    and row['eval_every'] > 0
  )
