"""What a run is judged by, and rounds until it reaches a target."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple


class Measure(NamedTuple):
  """What decides about a run: the first result of its first metric.

  Target, best checkpoint, tables and pictures go by it.

  Attributes:
    name: of the result.
    lower_is_better: or higher.
    on: 'test', or 'validation' where the model is tested on that.
  """

  name: str = 'accuracy'
  lower_is_better: bool = False
  on: str = 'test'

  @property
  def key(self) -> str:
    """What the lines of metrics.jsonl have it under."""
    return f'{self.on}_{self.name}'

  def of(self, record: Mapping[str, Any]) -> float | None:
    """Returns that of a line; None without a test, or where it is not finite.

    >>> Measure('loss', True, 'validation').of({'validation_loss': 0.5})
    0.5
    """
    value = record.get(self.key)
    return value if value is not None and math.isfinite(value) else None

  def score(self, value: float) -> float:
    """Returns a number that is larger for the better."""
    return -value if self.lower_is_better else value

  def best(self, values: Sequence[float]) -> float:
    """Returns the best of some values, NaN where there is none."""
    return max(values, key=self.score, default=math.nan)

  def reached(self, record: Mapping[str, Any], target: float) -> bool:
    """Tells whether a line is at a target; 0 is none."""
    value = self.of(record)
    return (
      bool(target)
      and value is not None
      and self.score(value) >= self.score(target)
    )

  def show(self, value: float) -> str:
    """Writes a value for people: a share, or a number of any size.

    >>> Measure().show(0.5), Measure('loss', lower_is_better=True).show(1234.5)
    ('0.5000', '1234.5')
    """
    return f'{value:.5g}' if self.lower_is_better else f'{value:.4f}'

  def crossings(
    self, records: Sequence[Mapping[str, Any]], target: float
  ) -> tuple[int | None, float | None]:
    """Returns rounds to a target, and as the paper measures them; 0 is none."""
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
    """Returns what summary.json has of it; nothing where it is the accuracy."""
    if self.name == 'accuracy' and not self.lower_is_better:
      return {}
    return {
      'measure': {'name': self.name, 'lower_is_better': self.lower_is_better}
    }


def from_json(summary: Mapping[str, Any], on: str) -> Measure:
  """Returns the measure that a summary.json names.

  Args:
    summary: its content.
    on: 'test' or 'validation'.
  """
  found = summary.get('measure', {})
  if not isinstance(found, Mapping):
    found = {}
  name, lower = found.get('name'), found.get('lower_is_better') is True
  return Measure(name, lower, on) if isinstance(name, str) else Measure(on=on)


def rounds_to_target(
  rounds: list[int], accuracies: list[float], target: float
) -> int | None:
  """First evaluated round whose accuracy is at least the target, or None."""
  for number, accuracy in zip(rounds, accuracies, strict=True):
    if accuracy >= target:
      return number
  return None


def rounds_to_target_paper_grid(
  rounds: list[int], accuracies: list[float], target: float
) -> float | None:
  """Rounds to the target as the paper measures them.

  It tests the model after rounds 1 .. 10, then every 10 up to 100, then every
  100, takes the running maximum of these accuracies alone, and interpolates
  linearly between them. None where the target was not seen there: not reached,
  stopped before the next of these rounds, or one of them not evaluated.

  >>> rounds_to_target_paper_grid([*range(11), 20], [0.5] * 11 + [0.7], 0.6)
  15.0
  """
  seen = dict(zip(rounds, accuracies, strict=True))
  before, best = 0, seen.get(0, min(accuracies, default=0.0))
  while (number := _next_on_paper_grid(before)) in seen:
    if seen[number] >= target:
      if before == 0:
        return float(number)
      share = (target - best) / (seen[number] - best)
      return float(before + (number - before) * share)
    before, best = number, max(best, seen[number])
  return None


def on_paper_grid(number: int) -> bool:
  """Whether the paper evaluates after this round."""
  return number <= 10 or number % (10 if number <= 100 else 100) == 0


def _next_on_paper_grid(number: int) -> int:
  return number + (1 if number < 10 else 10 if number < 100 else 100)
