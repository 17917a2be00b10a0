"""A file of finished runs: one JSON line each, appended, never rewritten."""

from collections.abc import Sequence
import json
import pathlib
import statistics
from typing import Any
from typing import NamedTuple

import filelock

from experiments.cells import Cell
import fedavg_jax as fa
from fedavg_jax import metrics

DEFAULT = pathlib.Path(__file__).parent / 'results' / 'paper.jsonl'


class Best(NamedTuple):
  """What the learning rates of a cell and seed come to.

  Attributes:
    seed: of the runs.
    learning_rate: that reached the target first.
    rounds: that it took, None where none has reached it.
    rounds_paper_grid: the fewest of any rate, as the paper measures them.
    at_edge: whether that rate is the smallest or largest of those tried.
    tried: rounds that were run without reaching it.
  """

  seed: int
  learning_rate: float | None
  rounds: int | None
  rounds_paper_grid: float | None
  at_edge: bool
  tried: int


class Results:
  """The rows of a results file; what is damaged is told, kept and not used.

  Attributes:
    path: of the file.
    rows: those that can be read, in their order.
    damaged: numbers of the lines that cannot.
  """

  def __init__(self, path: pathlib.Path):
    """Reads a file, if it is there.

    Args:
      path: of the file.

    Raises:
      InputError: it is no file, or cannot be read.
    """
    self.path = path
    self.rows: list[dict[str, Any]] = []
    self.damaged: list[int] = []
    try:
      content = path.read_bytes() if path.exists() else b''
    except OSError as error:
      raise fa.InputError(
        f'--results {path}: cannot be read ({error.strerror})'
      ) from error
    for number, line in enumerate(content.split(b'\n'), 1):
      if not line.strip():
        continue
      row = _row(line)
      if row is None:
        self.damaged.append(number)
      else:
        self.rows.append(row)

  def append(self, rows: Sequence[dict[str, Any]]) -> None:
    """Adds lines at the end, on a line of their own after a damaged one."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # Two tables may be at work on one file.
    with (
      filelock.FileLock(f'{self.path}.lock'),
      open(self.path, 'a+b') as file,
    ):
      end = file.seek(0, 2)
      if end:
        file.seek(end - 1)
        if file.read(1) != b'\n':
          file.write(b'\n')
      file.write(b''.join(json.dumps(row).encode() + b'\n' for row in rows))
      file.flush()
    self.rows += rows

  def of(self, cell: Cell, seed: int | None = None) -> list[dict[str, Any]]:
    """The runs of a setting, the longest one of each learning rate and seed."""
    setting = cell.setting()
    found: dict[tuple, dict[str, Any]] = {}
    for row in self.rows:
      if any(row.get(key) != value for key, value in setting.items()):
        continue
      if seed is not None and row['seed'] != seed:
        continue
      key = (row['seed'], row['learning_rate'])
      if key not in found or len(row['curve']) > len(found[key]['curve']):
        found[key] = row
    return [found[key] for key in sorted(found)]

  def wanted(
    self, cell: Cell, seed: int, learning_rates: Sequence[float]
  ) -> list[float]:
    """Learning rates that must still be run, or run for longer."""
    rows = {row['learning_rate']: row for row in self.of(cell, seed)}
    best = self.best(cell, seed)

    def has_enough(row):
      return (
        row['status'] == 'diverged'
        or row['rounds'] >= cell.rounds
        or (
          best is not None
          and best.rounds is not None
          and row['rounds'] >= best.rounds
        )
      )

    return [
      rate
      for rate in learning_rates
      if rate not in rows or not has_enough(rows[rate])
    ]

  def best(self, cell: Cell, seed: int) -> Best | None:
    """The best learning rate of a seed, None where none was run."""
    rows = self.of(cell, seed)
    if not rows or not cell.target_accuracy:
      return None
    found = {
      row['learning_rate']: crossings(row, cell.target_accuracy).values()
      for row in rows
    }
    reached = {rate: n for rate, (n, _) in found.items() if n is not None}
    on_grid = [n for _, n in found.values() if n is not None]
    rate = min(reached, key=lambda r: (reached[r], r), default=None)
    return Best(
      seed=seed,
      learning_rate=rate,
      rounds=reached[rate] if rate else None,
      rounds_paper_grid=min(on_grid, default=None),
      at_edge=rate in (min(found), max(found)),
      tried=max(row['rounds'] for row in rows),
    )


def crossings(row: dict[str, Any], target: float) -> dict[str, Any]:
  """Both ways to count a run's rounds to a target; None where it has none."""
  rounds = [i * row['eval_every'] for i in range(len(row['curve']))]
  args = (rounds, row['curve'], target)
  return {
    'rounds_to_target': metrics.rounds_to_target(*args),
    'rounds_to_target_paper_grid': metrics.rounds_to_target_paper_grid(*args),
  }


def median_and_range(values: Sequence[float]) -> str:
  """'30', or '30 (27 to 35)' of several seeds."""
  middle = f'{statistics.median(values):.4g}'
  if len(values) == 1:
    return middle
  return f'{middle} ({min(values):.4g} to {max(values):.4g})'


def _row(line: bytes) -> dict[str, Any] | None:
  """A line's run, None where it is no whole one."""
  try:
    row = json.loads(line)
    needed = ('seed', 'learning_rate', 'status', 'rounds', 'eval_every')
    whole = all(key in row for key in needed) and row['curve'][0] >= 0
  except (ValueError, TypeError, LookupError, RecursionError):
    return None
  return row if whole else None
