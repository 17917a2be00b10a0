"""Files of finished runs: one JSON line each, appended, never rewritten."""

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
# What of a row is used, and its type.
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
  """Reads the rows of a file; damaged ones are named, kept and not used.

  Attributes:
    path: of the file.
    rows: those that can be read, in their order.
    damaged: numbers of the lines that cannot.
  """

  def __init__(
    self,
    path: pathlib.Path,
    whole: Callable[[Any], bool] = lambda row: True,
    flag: str = '--results',
  ):
    """Reads a file, if it is there.

    Args:
      path: of the file.
      whole: whether a JSON object is a row of this file.
      flag: of the command, that named the file; errors name it.

    Raises:
      InputError: it is no file, or cannot be read.
    """
    self.path = path
    self._whole, self._flag = whole, flag
    self.read()

  def read(self) -> None:
    """Reads the file anew: somebody else may have appended to it."""
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
    """Adds lines at the end, on a line of their own after a damaged one.

    Without rows it only tries whether it could.

    Raises:
      InputError: it cannot be written.
    """
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Two tables may be at work on one file.
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
  """What the learning rates of a cell and seed come to.

  Attributes:
    seed: of the runs.
    learning_rate: that reached the target first.
    rounds: that it took, None where none has reached it.
    rounds_paper_grid: the fewest of any rate, as the paper measures them.
    at_edge: whether that rate is the smallest or largest of those tried.
    tried: the most rounds that were run.
  """

  seed: int
  learning_rate: float | None
  rounds: int | None
  rounds_paper_grid: float | None
  at_edge: bool
  tried: int


class Results(Lines):
  """The runs of the paper's cells."""

  def __init__(self, path: pathlib.Path):
    """Reads a file of runs, if it is there; raises as `Lines` does."""
    super().__init__(path, _is_run)

  def of(self, cell: Cell, seed: int | None = None) -> list[dict[str, Any]]:
    """The runs of a cell, the longest one of each learning rate and seed."""
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
    """The round after which no other learning rate could be better.

    The first that the paper evaluates in which some rate is at the target.
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
    """Learning rates that must still be run, or run for longer."""
    rows = {row['learning_rate']: row for row in self.of(cell, seed)}
    end = self.end(cell, seed)
    best = self.best(cell, seed)

    def has_enough(rate):
      if rate not in rows:
        return False
      row = rows[rate]
      enough = cell.rounds
      if end is not None:  # It was overtaken, or it is the best.
        enough = min(end, cell.rounds)
      elif best and best.rounds and not _first(row, cell):
        enough = min(best.rounds, cell.rounds)
      return row['diverged'] or row['rounds'] >= enough

    return [rate for rate in learning_rates if not has_enough(rate)]

  def best(self, cell: Cell, seed: int) -> Best | None:
    """The best learning rate of a seed, None where none was run."""
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
  """Whether a sweep that is at its target ends with this round.

  MNIST's and Shakespeare's continue to one that the paper evaluates, to be
  counted as the paper counts.
  """
  return cell.eval_every > 1 or targets.on_paper_grid(number)


def crossings(row: dict[str, Any], target: float) -> dict[str, Any]:
  """Both ways to count a run's rounds to a target; None where it has none."""
  args = (_rounds(row), row['curve'], target)
  return {
    'rounds_to_target': targets.rounds_to_target(*args),
    'rounds_to_target_paper_grid': targets.rounds_to_target_paper_grid(*args),
  }


def median_and_range(values: Sequence[float]) -> str:
  """'30', or '30 (27 to 35)' of several seeds."""
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
