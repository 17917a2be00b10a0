"""Rounds to a target are counted on curves with known crossings."""

import pytest

from fedavg_jax.runs import targets


def test_rounds_to_target_is_the_first_crossing():
  rounds, accuracies = [0, 5, 10, 15], [0.1, 0.8, 0.7, 0.9]
  assert targets.rounds_to_target(rounds, accuracies, 0.8) == 5
  assert targets.rounds_to_target(rounds, accuracies, 0.85) == 15
  assert targets.rounds_to_target(rounds, accuracies, 0.95) is None


def test_paper_grid_interpolates_between_its_points():
  """The accuracy is t / 1000 at round t, which crosses 0.25 at round 250."""
  rounds = list(range(401))
  line = [t / 1000 for t in rounds]
  crossing = targets.rounds_to_target_paper_grid(rounds, line, 0.25)
  assert crossing == pytest.approx(250)
  assert targets.rounds_to_target_paper_grid(rounds, line, 0.9) is None


def test_paper_grid_sees_only_its_points_and_the_best_so_far():
  rounds = list(range(31))
  accuracies = [0.0] * 31
  accuracies[12] = 0.9  # A high value between the points 10 and 20 ...
  assert targets.rounds_to_target(rounds, accuracies, 0.9) == 12
  # ... is not on the paper's grid.
  args = (rounds, accuracies, 0.45)
  assert targets.rounds_to_target_paper_grid(*args) is None
  accuracies[10], accuracies[20], accuracies[30] = 0.3, 0.1, 0.6
  # Between the best before, 0.3, and 0.6.
  assert targets.rounds_to_target_paper_grid(*args) == pytest.approx(25)


@pytest.mark.parametrize(
  ('before', 'after', 'last', 'expected'),
  [
    # Neighbours from the paper's curves, and their crossings by linear
    # interpolation.
    (0.9681, 0.9709, 1500, 1467.9),
    (0.9886, 0.9903, 500, 482.4),
  ],
)
def test_paper_grid_on_the_papers_own_neighbours(before, after, last, expected):
  target = 0.97 if before < 0.97 else 0.99
  crossing = targets.rounds_to_target_paper_grid(
    list(range(last + 1)), [before] * last + [after], target
  )
  assert crossing == pytest.approx(expected, abs=0.1)


def test_paper_grid_needs_every_one_of_its_rounds():
  """The run is stopped at 12, before 20, or evaluated every second round."""
  rounds = list(range(13))
  assert (
    targets.rounds_to_target_paper_grid(rounds, [0.0] * 12 + [0.9], 0.5) is None
  )
  rounds = list(range(0, 41, 2))
  accuracies = [t / 40 for t in rounds]
  assert targets.rounds_to_target_paper_grid(rounds, accuracies, 0.5) is None


def test_first_point_of_the_grid():
  assert targets.rounds_to_target_paper_grid([0, 1], [0.1, 0.9], 0.5) == 1


def test_rounds_after_which_the_paper_evaluates():
  tested = [n for n in range(1, 350) if targets.on_paper_grid(n)]
  assert tested == [*range(1, 11), *range(20, 101, 10), 200, 300]
