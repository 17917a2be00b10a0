"""Lower bounds on epsilon hold as often as they say, and find what is there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedavg_jax as fa
from tests.testing import check_refused

own = fa.experimental


def gaussian_scores(mu, number, seed):
  rng = np.random.default_rng(seed)
  return own.CanaryScores(
    mu + rng.standard_normal(number), rng.standard_normal(number)
  )


def best_ratio(mu, delta):
  """Returns the largest log((TPR - delta) / FPR) over thresholds."""
  t = np.linspace(-2, 8, 5000)
  tpr, fpr = stats.norm.sf(t - mu), stats.norm.sf(t)
  return np.log(np.maximum(tpr - delta, 1e-300) / fpr).max()


def test_bounds_hold_and_improve_with_scores():
  """100 runs of a confidence of 90 %: at most 25 fail but once in 1e5 runs."""
  mu, delta = 1.0, 1e-2
  truth = best_ratio(mu, delta)
  bounds = [
    own.epsilon_lower_bound(gaussian_scores(mu, 2000, seed), delta, 0.9)
    for seed in range(100)
  ]
  assert sum(bound > truth for bound in bounds) <= 25
  few, many = (
    own.epsilon_lower_bound(gaussian_scores(mu, number, 0), delta)
    for number in (1000, 200_000)
  )
  assert 0 <= few < many < truth and many > 0.7 * truth
  same = [
    own.epsilon_lower_bound(gaussian_scores(0.0, 2000, seed), 0.0)
    for seed in range(20)
  ]
  assert sum(bound > 0 for bound in same) <= 1


def test_the_bound_by_the_definition_of_clopper_and_pearson():
  """Scores of 0 and 1 have one threshold: hits 90, alarms 7 of 100 each."""

  def halves(ones):  # Both halves are the same.
    return np.repeat(np.arange(100) < ones, 2).astype(float)

  found = own.epsilon_lower_bound(
    own.CanaryScores(halves(90), halves(7)), 0.05, 0.99
  )
  # At the ends of the intervals the tails have a probability of 0.5 %.
  grid = np.linspace(0, 1, 200_001)
  low = grid[stats.binom.sf(89, 100, grid) >= 0.005][0]
  high = grid[stats.binom.cdf(7, 100, grid) >= 0.005][-1]
  positives = math.log((low - 0.05) / high)
  low = grid[stats.binom.sf(92, 100, grid) >= 0.005][0]
  high = grid[stats.binom.cdf(10, 100, grid) >= 0.005][-1]
  negatives = math.log((low - 0.05) / high)
  assert found == pytest.approx(max(positives, negatives), abs=1e-3)


def test_the_bound_is_that_of_jax_privacy():
  auditing = pytest.importorskip('jax_privacy.auditing')
  inside, outside = (np.arange(800) % 100 < ones for ones in (90, 4))
  scores = own.CanaryScores(
    np.repeat(inside, 2).astype(float), np.repeat(outside, 2).astype(float)
  )
  auditor = auditing.CanaryScoreAuditor(
    inside.astype(float), outside.astype(float)
  )
  theirs = auditor.epsilon_clopper_pearson(
    0.01, 0.03, False, threshold_strategy=auditing.Explicit(0.5)
  )
  found = own.epsilon_lower_bound(scores, 0.03, 0.99)
  assert found == pytest.approx(theirs, rel=1e-9)


def test_rounds_of_algorithms():
  """Absent clients count nowhere; a rule and a mean have their closed forms."""
  fedavg = fa.fedavg(optax.sgd(1.0), optax.sgd(1.0))
  deltas = jnp.array([[4.0, 0.0], [0.0, 2.0], [9.0, 1.0], [99.0, 99.0]])
  present = jnp.array([True, True, True, False])
  algorithms = {
    'mean': fedavg,
    'median': own.robust(fedavg, own.coordinate_median()),
    'clipped': fa.clip_delta(fedavg, 1e-3),
  }
  found = {
    name: own.algorithm_round(algorithm, 2, 4)(
      deltas, present, jax.random.key(0)
    )
    for name, algorithm in algorithms.items()
  }
  np.testing.assert_allclose(found['mean'], [13 / 3, 1.0], rtol=1e-6)
  np.testing.assert_allclose(found['median'], [4.0, 1.0], rtol=1e-6)
  assert np.linalg.norm(found['clipped']) <= 1e-3


def test_coins_are_fair_and_a_reference_has_no_canaries():
  def learn(deltas, present, key):
    noise = jax.random.normal(key, deltas.shape[1:])
    return jnp.where(present[:, None], deltas, 0.0).sum(axis=0) + noise

  canaries = 3 * own.orthogonal_canaries(jax.random.key(0), 4, 6)
  options = {'runs': 2048, 'key': jax.random.key(1)}
  others = jnp.ones((2, 6))
  scores = own.canary_scores(learn, canaries, others, **options)
  inside = len(scores.inside)
  assert inside + len(scores.outside) == 8192
  assert abs(inside - 4096) < 5 * math.sqrt(2048)
  # Others move the score by a constant, which a reference removes.
  again = own.canary_scores(learn, canaries, others, reference=True, **options)
  for found, mean in ((again.inside, 1.0), (again.outside, 0.0)):
    deviation = math.sqrt(2) / 3
    assert abs(found.mean() - mean) < 5 * deviation / math.sqrt(len(found))
    assert abs(found.std() / deviation - 1) < 0.06


def no_round(deltas, present, key):
  return deltas[0]


CASES = {
  'more canaries than directions': (
    lambda: own.orthogonal_canaries(jax.random.key(0), 4, 3),
    'number = 4: must be in [1, 3]',
  ),
  'one run': (
    lambda: own.canary_scores(
      no_round, jnp.eye(2), jnp.eye(2), runs=1, key=jax.random.key(0)
    ),
    'runs = 1: must be at least 2',
  ),
  'few scores': (
    lambda: own.epsilon_lower_bound(own.CanaryScores([1.0], [0.0] * 9), 0.1),
    'scores.inside: must be at least 4 finite numbers',
  ),
  'scores that are not finite': (
    lambda: own.epsilon_lower_bound(
      own.CanaryScores([1.0] * 9, [0.0] * 8 + [math.nan]), 0.1
    ),
    'scores.outside: must be at least 4 finite numbers',
  ),
  'confidence': (
    lambda: own.epsilon_lower_bound(
      own.CanaryScores([1.0] * 9, [0.0] * 9), 0.1, confidence=1.0
    ),
    'confidence = 1.0: must be below 1',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  check_refused(*CASES[name])
