"""Rounds until the test accuracy reaches a target."""


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
