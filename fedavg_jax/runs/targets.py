"""What a model is measured on, and rounds until it reaches a target."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any


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
  before, best = 0, seen.get(0, 0.0)
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


def accuracy(record: Mapping[str, Any]) -> float | None:
  """Returns the accuracy of a line, on the validation set where there is one.

  Args:
    record: a line of metrics.jsonl.

  Returns:
    None where the model was not tested.

  >>> accuracy({'round': 3, 'validation_accuracy': 0.5})
  0.5
  """
  return record.get('validation_accuracy', record.get('test_accuracy'))


def loss(record: Mapping[str, Any]) -> float | None:
  """Returns the loss of a line, as `accuracy` its accuracy."""
  return record.get('validation_loss', record.get('test_loss'))


def measured_on(records: Iterable[Mapping[str, Any]]) -> str:
  """Returns what a run's accuracies are measured on: 'validation' or 'test'."""
  found = any('validation_accuracy' in record for record in records)
  return 'validation' if found else 'test'
