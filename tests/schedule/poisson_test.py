"""Poisson cohorts are independent draws, truncated to one compiled shape."""

import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.schedule import draws
from fedavg_jax.schedule import sampling
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.planning import Planner
from tests.testing.plans import shapes

SIZES = np.array([1, 7, 4, 9, 2, 6, 1, 3, 5, 8])


def make(fraction=0.3, seed=0, sizes=SIZES, **changes):
  number = len(sizes)
  options = {
    'cohort_size': sampling.most_drawn(number, fraction),
    'rate': sampling.poisson_rate(number, fraction),
    'participation': Participation(poisson=True),
    **{'epochs': 1, 'batch_size': 2, 'seed': seed},
  }
  return Planner(num_examples=sizes, **(options | changes))


def included(planner, rounds):
  """Returns which clients each round draws, [T, K] bool."""
  found = np.zeros((rounds, len(planner.num_examples)), bool)
  for t in range(rounds):
    found[t, planner.cohort(t + 1)] = True
  return found


def test_frequencies_and_independence():
  """Bounds are five standard deviations of what the law says."""
  q, rounds = 0.3, 6000
  drawn = included(make(q, seed=3), rounds)
  sd = np.sqrt(q * (1 - q) / rounds)
  assert np.abs(drawn.mean(axis=0) - q).max() < 5 * sd
  # Any two clients of a round, and a client in rounds that follow each other.
  centred = (drawn - q) / np.sqrt(q * (1 - q))
  clients = centred.T @ centred / rounds
  np.fill_diagonal(clients, 0)
  assert np.abs(clients).max() < 5 / np.sqrt(rounds)
  for lag in (1, 2, 7):
    later = centred[:-lag].T @ centred[lag:] / (rounds - lag)
    assert np.abs(later).max() < 5 / np.sqrt(rounds - lag)
  # The size is binomial, so its variance is that of independent draws.
  sizes = drawn.sum(axis=1)
  assert abs(sizes.var() / (10 * q * (1 - q)) - 1) < 5 * np.sqrt(2 / rounds)


def test_a_pure_function_of_seed_and_round():
  one, again, other = make(), make(lanes=2, num_devices=2), make(seed=1)
  before = [one.cohort(t).tolist() for t in range(1, 30)]
  assert before == [again.cohort(t).tolist() for t in range(29, 0, -1)][::-1]
  assert before != [other.cohort(t).tolist() for t in range(1, 30)]
  sizes = make(sizes=SIZES[::-1].copy())
  assert before == [sizes.cohort(t).tolist() for t in range(1, 30)]


def test_shapes_and_weights_of_all_rounds():
  planner = make(0.15, seed=1, weighting='uniform', lanes=2)
  seen = set()
  for t in range(1, 40):
    plan, cohort = planner(t), planner.cohort(t)
    seen.add(len(cohort))
    assert shapes(plan) == shapes(planner(1))
    assert set(plan.cohort[plan.ends[plan.ends >= 0]]) == set(cohort)
    np.testing.assert_allclose(plan.weight.sum(), len(cohort) > 0, rtol=1e-6)
    assert planner.cost(t).drawn == len(cohort)
  assert {0, 1, 2, 3} <= seen and max(seen) <= planner.cohort_size


def test_truncation_is_a_uniform_subset():
  context = draws.DrawContext(1, SIZES, cohort_size=3, rate=0.8)
  rng, counts = np.random.default_rng(0), np.zeros(10)
  for _ in range(4000):
    cohort = draws.poisson(rng, context)
    assert len(set(cohort)) == len(cohort) <= 3
    counts[cohort] += 1
  share = counts.sum() / 4000 / 10
  assert np.abs(counts / 4000 - share).max() < 5 * np.sqrt(share / 4000)
  assert share > 0.299  # Nearly every cohort has three clients.


@pytest.mark.parametrize(
  ('number', 'fraction', 'rate', 'most'),
  [
    (100, 0.1, 0.1, 25),
    (100, 0.0, 0.01, 6),
    (100, 1.0, 1.0, 100),
    (1, 0.0, 1.0, 1),
    (7, 0.5, 0.5, 7),
    (1000, 0.05, 0.05, 85),
  ],
)
def test_rates_and_caps(number, fraction, rate, most):
  assert sampling.poisson_rate(number, fraction) == rate
  assert sampling.most_drawn(number, fraction) == most
  planner = make(fraction, sizes=np.full(number, 2))
  cohorts = [planner.cohort(t) for t in range(1, 20)]
  if rate == 1:
    assert all(len(cohort) == number for cohort in cohorts)
  assert planner(1).cohort.shape == (most,)


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: make(rate=0.0), 'rate = 0.0: must be in'),
    (
      lambda: make(participation=Participation(poisson=0.3)),
      'poisson = 0.3: must be True or False',
    ),
    (
      lambda: make(participation=Participation()),
      'rate = 0.3: must be in .0, 1. with participation.poisson, else 0',
    ),
    (
      lambda: make(
        participation=Participation(poisson=True, unavailable_fraction=0.5)
      ),
      'unavailable_fraction: is not supported with poisson = True',
    ),
    (
      lambda: make(
        participation=Participation(poisson=True, sampling_weights=SIZES)
      ),
      'sampling_weights: is not supported with poisson',
    ),
    (
      lambda: make(
        participation=Participation(poisson=True, draw=lambda rng, context: [0])
      ),
      'poisson: is not supported with participation.draw',
    ),
    (
      lambda: fa.RunConfig(sampling='poisson', unavailable_fraction=0.2),
      "unavailable_fraction = 0.2: must be 0 with sampling = 'poisson'",
    ),
    (
      lambda: fa.RunConfig(sampling='poisson', availability_trace='a.csv'),
      "availability_trace = 'a.csv': must be '' with sampling = 'poisson'",
    ),
  ],
)
def test_contradictions_are_refused(make, said):
  with pytest.raises(fa.InputError, match=said) as info:
    make()
  assert '\n' not in str(info.value)
