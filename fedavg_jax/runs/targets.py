"""Defines the measure of a run, and counts rounds until a target."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple


class Measure(NamedTuple):
  """Names the measure of a run, which is the first result of its first metric.

  It decides target, best checkpoint, tables and pictures.

  Attributes:
    name: the name of the result.
    lower_is_better: whether smaller values are better.
    on: the set of examples of the evaluation, 'test' or 'validation'.
  """

  name: str = 'accuracy'
  lower_is_better: bool = False
  on: str = 'test'

  @property
  def key(self) -> str:
    """Returns its key in the lines of metrics.jsonl."""
    return f'{self.on}_{self.name}'

  def of(self, record: Mapping[str, Any]) -> float | None:
    """Returns its value in a line; None without a test, or if not finite.

    >>> Measure('loss', True, 'validation').of({'validation_loss': 0.5})
    0.5
    """
    value = record.get(self.key)
    return value if value is not None and math.isfinite(value) else None

  def score(self, value: float) -> float:
    """Returns a number that is larger for better values."""
    return -value if self.lower_is_better else value

  def best(self, values: Sequence[float]) -> float:
    """Returns the best of some values, NaN without any."""
    return max(values, key=self.score, default=math.nan)

  def reached(self, record: Mapping[str, Any], target: float) -> bool:
    """Returns whether a line has reached a target; 0 is none."""
    value = self.of(record)
    return (
      bool(target)
      and value is not None
      and self.score(value) >= self.score(target)
    )

  def show(self, value: float) -> str:
    """Formats a value: with four decimals, or five digits if lower is better.

    >>> Measure().show(0.5), Measure('loss', lower_is_better=True).show(1234.5)
    ('0.5000', '1234.5')
    """
    return f'{value:.5g}' if self.lower_is_better else f'{value:.4f}'

  def crossings(
    self, records: Sequence[Mapping[str, Any]], target: float
  ) -> tuple[int | None, float | None]:
    """Returns the rounds to a target, and those on the paper's grid.

    Args:
      records: the lines of metrics.jsonl.
      target: the value to reach; 0 is none.
    """
    if not target:
      return None, None
    tested = [r for r in records if self.of(r) is not None]
    rounds = [r['round'] for r in tested]
    scores = [self.score(self.of(r) or 0.0) for r in tested]
    goal = self.score(target)
    return (
      rounds_to_target(rounds, scores, goal),
      rounds_to_target_paper_grid(rounds, scores, goal),
    )

  def to_json(self) -> dict[str, Any]:
    """Returns its entry in summary.json; {} for the accuracy."""
    if self.name == 'accuracy' and not self.lower_is_better:
      return {}
    return {
      'measure': {'name': self.name, 'lower_is_better': self.lower_is_better}
    }


def from_json(summary: Mapping[str, Any], on: str) -> Measure:
  """Returns the measure that a summary.json names.

  Args:
    summary: the content of summary.json.
    on: the set of examples of the evaluation, 'test' or 'validation'.
  """
  found = summary.get('measure', {})
  if not isinstance(found, Mapping):
    found = {}
  name, lower = found.get('name'), found.get('lower_is_better') is True
  return Measure(name, lower, on) if isinstance(name, str) else Measure(on=on)


def rounds_to_target(
  rounds: list[int], accuracies: list[float], target: float
) -> int | None:
  """Returns the first evaluated round at or above the target, or None."""
  for number, accuracy in zip(rounds, accuracies, strict=True):
    if accuracy >= target:
      return number
  return None


def rounds_to_target_paper_grid(
  rounds: list[int], accuracies: list[float], target: float
) -> float | None:
  """Returns the rounds to the target as the paper measures them, or None.

  The paper tests the model after rounds 1 .. 10, then every 10 up to 100, then
  every 100, takes the running maximum of these accuracies alone, and
  interpolates linearly between them. None means that the target was not
  reached, the run stopped before the next of these rounds, or one of them was
  not evaluated.

  >>> rounds_to_target_paper_grid([*range(11), 20], [0.5] * 11 + [0.7], 0.6)
  15.0
  """
  seen = dict(zip(rounds, accuracies, strict=True))
  before, best = 0, seen.get(0, min(accuracies, default=0.0))
  while (number := _next_on_paper_grid(before)) in seen:
    if seen[number] >= target:
      if before == 0:
        return float(number)
      fraction = (target - best) / (seen[number] - best)
      return float(before + (number - before) * fraction)
    before, best = number, max(best, seen[number])
  return None


def on_paper_grid(number: int) -> bool:
  """Returns whether the paper evaluates after this round."""
  return number <= 10 or number % (10 if number <= 100 else 100) == 0


def _next_on_paper_grid(number: int) -> int:
  return number + (1 if number < 10 else 10 if number < 100 else 100)
