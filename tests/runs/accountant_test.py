"""Epsilon equals published numbers, integrals, and its limits."""

import functools
import math
import sys

import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.runs import accountant
from fedavg_jax.runs.accountant import Accountant
from fedavg_jax.runs.accountant import Event
from fedavg_jax.schedule import sampling
from tests.testing import privacy_twin
from tests.testing import quadratics


def poisson(number, expected, noise, most=None):
  return Event('zero_out', number, expected / number, most or number, noise)


# The numbers of the tutorial of TensorFlow Federated (2 at 1.2), of Abadi et
# al. 2016, of McMahan et al. 2018, and of a small federation.
ORACLES = {
  'tutorial': (poisson(3383, 120, 1.2), 100, 1e-5, 1.986, 1.707),
  'abadi': (poisson(100_000, 1000, 4.0), 10_000, 1e-5, 1.0355, 0.9470),
  'mcmahan': (poisson(763_430, 5000, 1.0), 5000, 1e-9, 4.183, 3.899),
  'small': (poisson(100, 10, 1.0), 100, 1e-5, 7.904, 7.047),
}


@pytest.mark.parametrize('name', ORACLES)
def test_published_numbers_by_rdp(name):
  event, rounds, delta, expected, _ = ORACLES[name]
  found = Accountant(event, delta).epsilon(rounds)
  assert found == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
  'name',
  [
    'abadi',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('tutorial', 'mcmahan', 'small')
    ),
  ],
)
def test_published_numbers_by_pld(name):
  """The cap of the sampler, mean plus five deviations, costs less than 1e-3."""
  event, rounds, delta, _, expected = ORACLES[name]
  for most in (
    event.num_clients,
    sampling.most_drawn(event.num_clients, event.rate),
  ):
    found = Accountant(event._replace(most=most), delta).tight_epsilon(rounds)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_library_has_a_looser_bound_of_truncation():
  """Its bound also covers a client whose place another one takes."""
  import dp_accounting
  from dp_accounting import pld

  for most in (13, 20, 26):
    event = poisson(100, 10, 1.0, most)
    found = Accountant(event, 1e-5).tight_epsilon(100)
    library = pld.PLDAccountant(
      dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    library.compose(
      dp_accounting.TruncatedSubsampledGaussianDpEvent(100, 0.1, most, 1.0),
      100,
    )
    assert 7.046 <= found <= library.get_epsilon(1e-5)


def test_fixed_cohorts_by_replacement():
  """The noise is twice as far from the most that a client can change."""
  of_clip = Event('replace_one', 100, 0.1, 10, 1.0 / 2)
  assert Accountant(of_clip, 1e-5).epsilon(100) == pytest.approx(83.937, 1e-4)
  of_change = of_clip._replace(noise=1.0)
  found = Accountant(of_change, 1e-5)
  assert found.epsilon(100) == pytest.approx(14.054, 1e-4)
  assert found.tight_epsilon(100) is None


@pytest.mark.parametrize(
  ('number', 'rate', 'most'), [(5, 0.5, 3), (5, 0.3, 1), (6, 0.7, 5), (4, 1, 2)]
)
def test_truncation_equals_all_cohorts_enumerated(number, rate, most):
  law = privacy_twin.truncated_law(number, rate, most)
  event = Event('zero_out', number, rate, most, 1.3)
  full, last, edge = accountant.truncation(event)
  inside, outside = (law.get((most - 1, i), 0.0) for i in (True, False))
  assert last == pytest.approx(inside + outside)
  assert edge * last == pytest.approx(inside)
  assert full == pytest.approx(last + law.get((most, False), 0.0))
  orders, found = accountant.rdp_of(event)
  for alpha in (1.9, 2, 4, 12):
    at = int(np.argmin(np.abs(orders - alpha)))
    expected = privacy_twin.renyi(law, 1.3, orders[at])
    if orders[at] == int(orders[at]):
      assert found[at] == pytest.approx(expected, rel=1e-6)
    # The library bounds fractional orders from above.
    assert found[at] > expected * (1 - 1e-6)


def test_pld_of_one_round_equals_the_integral():
  law = privacy_twin.truncated_law(5, 0.4, 3)
  found = Accountant(Event('zero_out', 5, 0.4, 3, 0.8), 1e-3).tight_epsilon(1)
  assert privacy_twin.delta_of(law, 0.8, found) <= 1e-3
  assert privacy_twin.delta_of(law, 0.8, found - 2e-3) > 1e-3


def test_limits():
  event = poisson(50, 10, 1.0, 24)
  spent = Accountant(event, 1e-3)
  assert spent.epsilon(0) == 0 and spent.tight_epsilon(0) == 0
  each = [spent.epsilon(rounds) for rounds in (1, 2, 10, 100)]
  assert each == sorted(each) and each[-1] < 100 * each[0]
  assert Accountant(event._replace(noise=0.0), 1e-3).epsilon(1) == math.inf
  # Everybody in every round: the Gaussian mechanism, alone and composed.
  whole = Accountant(Event('zero_out', 50, 1.0, 50, 2.0), 1e-3)
  more = Accountant(Event('zero_out', 50, 1.0, 50, 4.0), 1e-3)
  assert whole.epsilon(5) == pytest.approx(more.epsilon(20))


def test_calibrated_noise():
  def event(noise):
    return poisson(3383, 120, noise, 174)

  options = {'rounds': 100, 'delta': 1e-5}
  found = accountant.calibrate(event, target_epsilon=2.0, **options)
  assert found == 1.196  # The tutorial's 1.2.
  assert Accountant(event(found), 1e-5).epsilon(100) <= 2.0
  assert Accountant(event(found - 0.002), 1e-5).epsilon(100) > 2.0
  with pytest.raises(fa.InputError, match='target_epsilon = 1000000.0: needs'):
    accountant.calibrate(event, target_epsilon=1e6, **options)


@functools.cache
def private(*, poisson=True):
  algorithm = fa.experimental.privatize(
    fa.fedavg(optax.sgd(0.2), optax.sgd(1.0)),
    clip=1.0,
    noise_multiplier=1.0,
    denominator=2.0,
  )
  return quadratics.build(
    algorithm,
    weighting='uniform',
    on_nan='skip_client',
    client_fraction=0.5,
    participation=fa.Participation(poisson=poisson),
  )


def test_the_event_is_that_of_the_simulation():
  simulation = private()
  expected = Accountant(Event('zero_out', 4, 0.5, 4, 1.0), 0.1)
  options = {'rounds': 7, 'delta': 0.1}
  assert fa.epsilon(simulation, **options) == expected.epsilon(7)
  found = fa.epsilon(simulation, tight=True, **options)
  assert found == expected.tight_epsilon(7)
  said = "accounting = 'replace_one': must be 'zero_out' with Poisson cohorts"
  with pytest.raises(fa.InputError, match=said):
    fa.epsilon(simulation, accounting='replace_one', **options)
  fixed = private(poisson=False)
  expected = Accountant(Event('replace_one', 4, 0.5, 2, 0.5), 0.1)
  found = fa.epsilon(fixed, accounting='replace_one', **options)
  assert found == expected.epsilon(7)
  with pytest.raises(fa.InputError, match='tight = True: must be False'):
    fa.epsilon(fixed, accounting='replace_one', tight=True, **options)
  said = "accounting = 'zero_out': must be 'replace_one' with fixed cohorts"
  with pytest.raises(fa.InputError, match=said):
    fa.epsilon(fixed, **options)


def test_bad_numbers_are_refused(monkeypatch):
  simulation = private()
  for options, said in (
    ({'delta': 0.3}, 'delta = 0.3: must be at most 1 / K = 0.25'),
    ({'delta': 0.0}, 'delta = 0.0: must be above 0'),
    ({'rounds': -1}, 'rounds = -1: must be at least 0'),
    ({'accounting': 'renyi'}, "accounting = 'renyi': must be one of zero_out"),
  ):
    with pytest.raises(fa.InputError, match=said):
      fa.epsilon(simulation, **({'rounds': 1, 'delta': 0.1} | options))
  with pytest.raises(fa.InputError, match='simulation: is a sweep, must be'):
    fa.epsilon(simulation._replace(sweep=(1.0,)), rounds=1, delta=0.1)
  with pytest.raises(fa.InputError, match='algorithm: adds no noise'):
    accountant.event_of(simulation.planner, None, 'zero_out')
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  with pytest.raises(fa.InputError, match='dp_accounting cannot be imported'):
    fa.epsilon(simulation, rounds=1, delta=0.1)
