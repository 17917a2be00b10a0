"""Correlated noise is C^-1 z, and sensitivities are those of all schedules."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import check_refused
from tests.testing import quadratics

own = fa.experimental
ETA = 0.2
SIZES = (2, 6, 3, 1, 4)
CENTRES = (0.0, 2.0, 4.0, 60.0, 1.0)
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))


def noisy(algorithm, strategy, **options):
  options = {'clip': 0.5, 'noise_multiplier': 1.0, 'denominator': 2} | options
  return own.correlated_noise(
    algorithm, strategy, **{'num_clients': 5} | options
  )


def toeplitz(strategy):
  """Returns C, [T, T]."""
  c = np.zeros((strategy.rounds, strategy.rounds))
  for j, value in enumerate(strategy.coefficients):
    c += value * np.eye(strategy.rounds, k=-j)
  return c


def schedules(rounds, separation, most):
  """Yields all sets of rounds of a client, at least `separation` apart."""
  for number in range(1, most + 1):
    for chosen in itertools.combinations(range(rounds), number):
      if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
        yield chosen


@pytest.mark.parametrize(
  ('rounds', 'bands', 'separation', 'most'),
  [(7, 1, 1, 7), (8, 3, 3, 3), (9, 3, 4, 2), (6, 6, 6, 1)],
)
def test_sensitivity_bounds_all_schedules(rounds, bands, separation, most):
  """It is the largest norm of C u over schedules and directions of deltas.

  Columns that a schedule selects are orthogonal, so that all deltas of norm 1
  have the same norm; the largest are those of complete columns.
  """
  strategy = own.banded_strategy(
    rounds, bands, min_separation=separation, participations=most
  )
  c = toeplitz(strategy)
  norms = [
    np.linalg.norm(c[:, chosen].sum(axis=1))
    for chosen in schedules(rounds, separation, most)
  ]
  assert max(norms) <= strategy.sensitivity + 1e-9
  whole = max(
    math.sqrt(len(s)) * math.hypot(*strategy.coefficients)
    for s in schedules(rounds - bands + 1, separation, most)
  )
  assert max(norms) >= whole - 1e-9


def error(strategy):
  """Returns the error of all prefixes, for equal epsilon."""
  prefix = np.tril(np.ones((strategy.rounds, strategy.rounds)))
  noise = prefix @ np.linalg.inv(toeplitz(strategy))
  return np.linalg.norm(noise) * strategy.sensitivity


def test_errors_of_the_page(repository):
  """The table of docs/private_parts.md has the closed form's errors."""
  page = (repository / 'docs' / 'private_parts.md').read_text()
  (row,) = (line for line in page.splitlines() if 'closed form (' in line)
  errors = [
    error(own.banded_strategy(100, bands, min_separation=20))
    for bands in (1, 5, 10, 20)
  ]
  stated = [float(number) for number in row.split('|')[2:-1]]
  np.testing.assert_allclose(np.array(errors) / errors[0], stated, atol=5e-4)


def test_strategies_of_jax_privacy():
  """The closed form is theirs; optimized ones have less error."""
  toeplitz_lib = pytest.importorskip(
    'jax_privacy.matrix_factorization.toeplitz'
  )
  rounds, bands = 24, 4
  closed = own.banded_strategy(rounds, bands)
  optimized = own.banded_strategy(rounds, bands, optimized=True)
  with jax.numpy_dtype_promotion('standard'):
    theirs = np.asarray(toeplitz_lib.optimal_max_error_strategy_coefs(bands))
    squared = toeplitz_lib.minsep_sensitivity_squared(
      jnp.array(closed.coefficients), bands, n=rounds
    )
  np.testing.assert_allclose(
    closed.coefficients, theirs / np.linalg.norm(theirs), rtol=1e-6
  )
  # Theirs is exact; the last columns of C are cut off, and ours ignores it.
  assert 0.9 < math.sqrt(float(squared)) / closed.sensitivity <= 1 + 1e-6

  one = own.banded_strategy(rounds, 1, min_separation=bands)
  assert error(optimized) < error(closed) < error(one)


def states(algorithm, number, **options):
  options = {
    'sizes': SIZES,
    'centres': CENTRES,
    'weighting': 'uniform',
    'on_nan': 'skip_client',
  } | options
  built = quadratics.build(algorithm, **options)
  return list(
    fa.simulate(built, rounds=number, needs_state=lambda number: True)
  )


def test_without_noise_it_is_the_mean_of_clipped_deltas():
  strategy = own.banded_strategy(rounds=3, bands=1)
  private = noisy(FEDAVG, strategy, noise_multiplier=0.0, denominator=8)
  kept, w = (1 - ETA) ** np.array(SIZES), [1.0]
  for _ in range(3):
    deltas = np.clip((1 - kept) * (np.array(CENTRES) - w[-1]), -0.5, 0.5)
    w.append(w[-1] + deltas.sum() / 8)
  found = states(private, 4, lanes=2)
  np.testing.assert_allclose(
    [float(record.state.params['w']) for record in found[:4]], w, rtol=1e-5
  )
  assert [bool(record.finite) for record in found] == [True] * 4 + [False]


def test_noise_is_that_of_the_matrix():
  """C times the noise of all rounds is white, over the numbers of a model."""
  strategy = own.banded_strategy(rounds=6, bands=3, participations=2)
  still = fa.fedavg(optax.sgd(0.0), optax.sgd(1.0))
  private = noisy(
    still, strategy, noise_multiplier=2.0, denominator=4, num_clients=9
  )
  model = jnp.zeros(500)

  def one_round(carry, number):
    params, server = carry
    context = fa.ServerContext(
      round=number,
      key=jax.random.fold_in(jax.random.key(0), number),
      share=jnp.float32(1),
      clients=number[None],
      reported=jnp.zeros(1, bool),
    )
    new, server = private.server_update(params, server, jnp.zeros(500), context)
    return (new, server), new - params

  start = model, private.server_init(model)
  numbers = jnp.arange(1, 7, dtype=jnp.int32)
  _, steps = jax.lax.scan(one_round, start, numbers)
  white = toeplitz(strategy) @ np.asarray(steps) * 4  # [T, 500].
  deviation = 2.0 * 0.5 * math.sqrt(2)
  covariance = white @ white.T / 500 / deviation**2
  np.testing.assert_allclose(covariance, np.eye(6), atol=5 * math.sqrt(2 / 500))
  # The noise itself is correlated.
  later = np.asarray(steps)[2:] * 4
  assert abs(np.corrcoef(later)[0, 1]) > 0.2


def test_a_resumed_run_continues_the_noise():
  strategy = own.banded_strategy(rounds=9, bands=3)
  private = noisy(FEDAVG, strategy)
  draw = fa.Participation(draw=own.rotating_draw())
  options = {
    'client_fraction': 0.4,
    'participation': draw,
    'weighting': 'uniform',
    'on_nan': 'skip_client',
  }
  built = quadratics.build(
    private, sizes=SIZES, centres=CENTRES, lanes=1, **options
  )
  own.check_separation(
    [built.planner.cohort(t) for t in range(1, 10)], strategy
  )
  *_, early = fa.simulate(built, rounds=2)
  start = early.state, early.client_states
  *_, resumed = fa.simulate(built, rounds=5, start=start)
  *_, whole = states(private, 5, lanes=2, rounds_per_call=1, **options)
  jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
  assert int(whole.state.server.drawn) == 5


@pytest.mark.parametrize(
  ('cohorts', 'strategy', 'ends'),
  [
    # Too soon, in round 3.
    (
      [[0, 1], [2, 3], [1, 4], [3, 0]],
      own.banded_strategy(9, 2, min_separation=3),
      3,
    ),
    # Too often, in round 4.
    (
      [[0, 1], [2, 3], [0, 4], [4, 0]],
      own.banded_strategy(9, 1, participations=2),
      4,
    ),
  ],
)
def test_a_schedule_that_breaks_the_strategy_is_refused(
  cohorts, strategy, ends
):
  """The round is the one that `check_separation` names."""

  def draw(rng, context):
    return np.array(cohorts[(context.round_number - 1) % 4])

  private = noisy(FEDAVG, strategy, noise_multiplier=0.0)
  with pytest.raises(fa.InputError, match='takes part in'):
    states(
      private, 4, client_fraction=0.4, participation=fa.Participation(draw=draw)
    )
  own.check_separation(cohorts[: ends - 1], strategy)
  with pytest.raises(fa.InputError):
    own.check_separation(cohorts[:ends], strategy)


@pytest.mark.parametrize('soon', [False, True])
def test_the_server_refuses_a_client_that_comes_too_soon(soon):
  """It does so where nobody has verified the schedule in advance."""
  strategy = own.banded_strategy(rounds=4, bands=2)
  private = noisy(FEDAVG, strategy)
  params = jnp.zeros(3)
  server = private.server_init(params)
  for number, client in ((1, 0), (2, 1), (3, 1 if soon else 0)):
    context = fa.ServerContext(
      round=jnp.int32(number),
      key=jax.random.key(number),
      share=jnp.float32(1),
      clients=jnp.array([client, 4]),
      reported=jnp.array([True, False]),
    )
    params, server = private.server_update(params, server, params, context)
  assert np.isfinite(params).all() != soon


def test_a_round_that_nobody_reports_is_noise_alone():
  """Whether a client sent something must not show; the schedule is public.

  Client 0 is alone in round 1, and its update is not finite in one run.

  """
  strategy = own.banded_strategy(rounds=9, bands=1)
  private = noisy(FEDAVG, strategy, clip=0.01, denominator=1)
  options = {
    'client_fraction': 0.2,
    'participation': fa.Participation(draw=own.rotating_draw()),
  }
  for centres in (CENTRES, (1e30, *CENTRES[1:])):
    found = states(private, 4, centres=centres, **options)
    assert [bool(record.finite) for record in found] == [True] * 5
    moved = np.diff([float(record.state.params['w']) for record in found])
    assert np.abs(moved).min() > 0


def reads_the_share():
  def server_update(params, server, mean, context):
    mean = jax.tree.map(lambda m: m * context.share, mean)
    return FEDAVG.server_update(params, server, mean, context)

  return FEDAVG._replace(server_update=server_update)


MIMELITE = own.mimelite(optax.sgd(0.1, momentum=0.5), optax.sgd(1.0))
STRATEGY = own.banded_strategy(rounds=4, bands=2)
CASES = {
  'more bands than rounds': (
    lambda: own.banded_strategy(3, 4),
    'bands = 4: must be in [1, 3]',
  ),
  'too little separation': (
    lambda: own.banded_strategy(9, 4, min_separation=3),
    'min_separation = 3: must be in [4, 9]',
  ),
  'more participations than fit': (
    lambda: own.banded_strategy(9, 4, participations=4),
    'participations = 4: must be in [1, 3]',
  ),
  'strategy by hand': (
    lambda: noisy(FEDAVG, own.Strategy((1.0, 0.5), 4, 1, 4)),
    'strategy.min_separation = 1: must be at least the number of bands, 2',
  ),
  'denominator': (
    lambda: noisy(FEDAVG, STRATEGY, denominator=0),
    'denominator = 0',
  ),
  'median': (
    lambda: noisy(own.robust(FEDAVG, own.coordinate_median()), STRATEGY),
    'correlated_noise: the algorithm aggregates its messages in its own way',
  ),
  'secure sums': (
    lambda: noisy(own.secure_aggregation(FEDAVG, 1.0), STRATEGY),
    'correlated_noise: the algorithm aggregates its messages in its own way',
  ),
  'more than a delta': (
    lambda: states(noisy(MIMELITE, STRATEGY), 1),
    'beside the delta of the model',
  ),
  'compressed after the clip': (
    lambda: states(own.compress(noisy(FEDAVG, STRATEGY), own.qsgd(1)), 1),
    'algorithm.client_finish: was replaced by a wrapper around correlated',
  ),
  'an attack after the clip': (
    lambda: states(
      own.attack(noisy(FEDAVG, STRATEGY), [0], own.scaling(9.0)), 1
    ),
    'algorithm.client_finish: was replaced by a wrapper around correlated',
  ),
  'a server that reads the cohort': (
    lambda: states(noisy(reads_the_share(), STRATEGY), 1),
    'algorithm.server_update: reads context.share, must not with correlated',
  ),
  'weights': (
    lambda: states(noisy(FEDAVG, STRATEGY), 1, weighting='examples'),
    "weighting = 'examples': must be 'uniform' with correlated_noise",
  ),
  'Poisson cohorts': (
    lambda: states(
      noisy(FEDAVG, STRATEGY), 1, participation=fa.Participation(poisson=True)
    ),
    'poisson: is not supported with correlated_noise',
  ),
  'too soon': (
    lambda: own.check_separation([[0], [1, 2], [2]], STRATEGY),
    'client 2 takes part in rounds 2 and 3, must do so at least 2 rounds apart',
  ),
  'too often': (
    lambda: own.check_separation(
      [[0], [1], [0]],
      own.banded_strategy(4, 2, participations=1),
    ),
    'client 0 takes part in 2 rounds, must do so in at most 1',
  ),
  'too long': (
    lambda: own.check_separation([[0], [1], [2], [3], [4]], STRATEGY),
    'has more than 4 rounds',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  check_refused(*CASES[name])
