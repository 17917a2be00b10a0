"""Robust rules equal NumPy loops; absent clients count nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from tests.testing import robust_twin

own = fa.experimental
RULES = {
  'median': (own.coordinate_median(), robust_twin.median, {}),
  'trimmed': (
    own.trimmed_mean(0.3),
    robust_twin.trimmed_mean,
    {'fraction': 0.3},
  ),
  'krum': (own.krum(1), robust_twin.krum, {'attackers': 1}),
  'multi-krum': (
    own.krum(2, selected=3),
    robust_twin.krum,
    {'attackers': 2, 'selected': 3},
  ),
  'geometric': (own.geometric_median(5), robust_twin.geometric_median, {
    'iterations': 5
  }),
  'clipping': (
    own.centred_clipping(0.7, iterations=3),
    robust_twin.centred_clipping,
    {'max_norm': 0.7, 'iterations': 3, 'centre': np.full(7, 0.25)},
  ),
}  # fmt: skip
# Which clients of a cohort report: one, some, an odd and an even number, all.
REPORTS = [
  [1],
  [0, 0, 1, 0, 0, 0, 0, 0],
  [1, 1, 0, 0, 0, 0, 0, 0],
  [1, 0, 1, 1, 0, 1, 0, 1],
  [1, 0, 1, 1, 1, 1, 0, 1],
  [1] * 8,
]


def tree(vectors):
  """Returns vectors [..., 7] as a tree with leaves of several ranks."""
  vectors = jnp.asarray(vectors, jnp.float32)
  lead = vectors.shape[:-1]
  return {'w': vectors[..., :6].reshape(*lead, 3, 2), 'b': vectors[..., 6]}


def combined(rule, vectors, weights, centre=None):
  """Returns the rule's aggregate as a vector [7]."""
  state = tree(centre) if rule.has_centre else ()
  found = jax.jit(rule.combine)(tree(vectors), jnp.float32(weights), state)
  return np.append(np.ravel(found['w']), found['b'])


@pytest.mark.parametrize('name', RULES)
def test_rules_equal_numpy(name):
  """Small integers have ties, other numbers an outlier; weights differ."""
  rule, twin, numbers = RULES[name]
  rng = np.random.default_rng(1)
  for reported in REPORTS:
    present = np.array(reported, bool)
    weights = rng.uniform(1, 3, len(present)) * present
    weights /= weights.sum()
    for ties in (False, True):
      vectors = rng.normal(size=(len(present), 7))
      if ties:
        vectors = rng.integers(0, 3, vectors.shape).astype(float)
      else:
        vectors[0] *= 1e4
      vectors[~present] = 0
      expected = twin(list(vectors[present]), weights[present], **numbers)
      found = combined(rule, vectors, weights, numbers.get('centre'))
      np.testing.assert_allclose(
        found, expected, rtol=2e-5, atol=2e-5, err_msg=f'{reported} {ties}'
      )


def test_trimming_nothing_and_a_huge_radius_are_the_uniform_mean():
  vectors = np.random.default_rng(2).normal(size=(8, 7))
  weights = np.array([0.3, *[0.1] * 7])
  for rule in (own.trimmed_mean(0.0), own.centred_clipping(1e30)):
    np.testing.assert_allclose(
      combined(rule, vectors, weights, np.zeros(7)),
      vectors.mean(axis=0),
      atol=1e-6,
    )


def test_equal_messages_are_the_aggregate_of_every_rule():
  vectors = np.tile(np.arange(7.0), (8, 1))
  for name, (rule, _, _) in RULES.items():
    found = combined(rule, vectors, np.full(8, 1 / 8), np.arange(7.0))
    np.testing.assert_allclose(found, np.arange(7.0), rtol=1e-6, err_msg=name)


def test_krum_picks_a_message_of_the_cluster():
  """Two far messages are each other's neighbours, but have no third."""
  rng = np.random.default_rng(3)
  near = rng.normal(size=(6, 7)) * 0.01
  vectors = np.float32(np.concatenate([np.full((2, 7), 9.0), near]))
  found = combined(own.krum(2), vectors, np.full(8, 1 / 8))
  assert any((found == one).all() for one in vectors[2:])


def test_messages_whose_squares_overflow_do_no_harm():
  vectors = np.float32(np.tile(np.arange(7.0), (8, 1)))
  vectors[3] = 1e30
  for name, (rule, _, _) in RULES.items():
    found = combined(rule, vectors, np.full(8, 1 / 8), np.arange(7.0))
    assert np.abs(found - np.arange(7.0)).max() < 0.4, name


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: own.trimmed_mean(0.5), 'fraction = 0.5: must be below 0.5'),
    (lambda: own.trimmed_mean(-0.1), 'fraction = -0.1: must be in'),
    (lambda: own.krum(-1), 'attackers = -1: must be at least 0'),
    (lambda: own.krum(0.5), 'attackers = 0.5: must be a whole number'),
    (lambda: own.krum(1, selected=0), 'selected = 0: must be at least 1'),
    (lambda: own.geometric_median(0), 'iterations = 0: must be'),
    (lambda: own.geometric_median(1, 0.0), 'smoothing = 0.0: must be above 0'),
    (lambda: own.centred_clipping(0.0), 'max_norm = 0.0: must be above 0'),
    (lambda: own.centred_clipping(float('nan')), 'max_norm = nan: must'),
  ],
)
def test_bad_numbers_are_refused(make, said):
  with pytest.raises(fa.InputError, match=said):
    make()
