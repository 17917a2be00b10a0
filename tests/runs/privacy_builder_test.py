"""Section `privacy` of a config builds what it says, and reports epsilon."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.algorithms.experimental.privatize import PrivateMessage
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import algorithm_builder
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs import privacy_builder
from fedavg_jax.runs import train
from fedavg_jax.runs.accountant import Accountant
from fedavg_jax.runs.accountant import Event
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.schedule import sampling
from tests.testing import results
from tests.testing.run_folders import lines

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')

PRIVATE = {
  'num_clients': 50,
  'client_fraction': 0.2,
  'sampling': 'poisson',
  'weighting': 'uniform',
  'on_nan': 'skip_client',
  'privacy__clip': 0.5,
  'privacy__noise_multiplier': 1.2,
  'privacy__delta': 1e-3,
}


def config(**changes):
  return RunConfig().replace(
    {
      key.replace('__', '.'): value
      for key, value in (PRIVATE | changes).items()
    }
  )


def build(**changes):
  return algorithm_builder.build_algorithm(config(**changes), 50, 10)


def step(algorithm, delta):
  """Returns the step of the server for one client of this delta."""
  params = {'w': jnp.zeros(4)}
  server = algorithm.server_init(params)
  result = results.of_client({'w': jnp.float32(delta)}, server=server)
  sent = algorithm.client_finish(result).message
  new, _ = algorithm.server_update(
    params, server, sent, results.server_context()
  )
  return np.array(new['w'])


def test_the_mechanism_has_the_numbers_of_the_config():
  found = build().mechanism
  assert (found.clip, found.noise_multiplier) == (0.5, 1.2)
  assert found.denominator == 10.0
  quiet = build(privacy__noise_multiplier=0.0)
  np.testing.assert_allclose(
    step(quiet, [3.0, 0.0, -4.0, 0.0]), [0.03, 0, -0.04, 0], rtol=1e-6
  )
  uniform = {'sampling': 'uniform', 'privacy__accounting': 'replace_one'}
  assert build(client_fraction=0.0, **uniform).mechanism.denominator == 1.0
  adaptive = build(
    privacy__quantile=0.7,
    privacy__clip_learning_rate=0.4,
    privacy__bit_noise=2.0,
  )
  message = PrivateMessage({'w': jnp.zeros(4)}, jnp.float32(5.0))
  params = {'w': jnp.zeros(4)}
  server = adaptive.server_init(params)
  draws = jax.vmap(
    lambda key: adaptive.server_update(
      params, server, message, results.server_context()._replace(key=key)
    )
  )(jax.random.split(jax.random.key(0), 4000))
  sigma = (1.2**-2 - 4.0**-2) ** -0.5
  assert np.std(draws[0]['w']) == pytest.approx(sigma * 0.05, rel=0.03)
  # The share is 1/2 + (5 + 2 N(0, 1)) / 10.
  steps = np.log(draws[1].clip / 0.5)
  assert np.mean(steps) == pytest.approx(-0.4 * (1.0 - 0.7), abs=0.01)
  assert np.std(steps) == pytest.approx(0.4 * 0.2, rel=0.06)


def test_without_a_clip_the_algorithm_is_what_it_was():
  plain = algorithm_builder.build_algorithm(RunConfig(), 50, 10)
  assert plain.mechanism is None and plain.server_info is None
  assert plain.aggregate == fa.weighted_mean()


def test_noise_of_a_target_and_of_a_larger_cohort():
  cfg = config(privacy__noise_multiplier=0.0, privacy__target_epsilon=4.0)
  noise = algorithm_builder.build_algorithm(cfg, 50, 10).mechanism
  most = sampling.most_drawn(50, 0.2)
  event = Event('zero_out', 50, 0.2, most, noise.noise_multiplier)
  assert 3.98 < Accountant(event, 1e-3).epsilon(cfg.rounds) <= 4.0
  larger = {
    'privacy__noise_cohort_size': 1000,
    'privacy__population': 1_000_000,
    'privacy__delta': 1e-6,
  }
  assert build(**larger).mechanism.noise_multiplier == pytest.approx(0.012)
  imagined = privacy_builder.projected(config(**larger)).event
  assert imagined == Event('zero_out', 1_000_000, 1e-3, 1_000_000, 1.2)


def spent(cfg, **event):
  own = {'noise': 1.2, 'most': sampling.most_drawn(50, 0.2)} | event
  accountant = Accountant(
    Event('zero_out', 50, 0.2, own['most'], own['noise']), cfg.privacy.delta
  )
  algorithm = algorithm_builder.build_algorithm(cfg, 50, 10)
  return privacy_builder.Spending(cfg, accountant, own['noise'], algorithm)


def test_what_is_reported():
  found = spent(config())
  assert found.line(0) == {'epsilon': 0.0}
  each = [found.line(number)['epsilon'] for number in range(1, 5)]
  assert each == sorted(each)
  summary = found.summary(4, ended=True)
  assert summary['epsilon_rdp'] == each[-1]
  assert summary['epsilon'] == summary['epsilon_pld'] < each[-1]
  assert found.summary(4, ended=False)['epsilon'] == each[-1]
  assert not any('projected' in key for key in summary)
  assert 'epsilon' in found.text() and '\n' not in found.text()


def test_a_larger_cohort_is_a_projection_alone():
  """Epsilon is that of the small noise of this run, thus large."""
  cfg = config(
    privacy__noise_cohort_size=1000,
    privacy__population=1_000_000,
    privacy__delta=1e-6,
  )
  summary = spent(cfg, noise=0.012).summary(4, ended=True)
  assert summary['epsilon'] > 1000 > 1 > summary['projected_epsilon']
  assert summary['epsilon_pld'] is None
  assert summary['projected_cohort'] == 1000
  assert summary['projected_population'] == 1_000_000


def test_runs_without_noise_have_no_finite_epsilon():
  summary = spent(config(), noise=0.0).summary(4, ended=True)
  assert summary['epsilon'] == math.inf


TRAINED = PRIVATE | {
  'rounds': 4,
  'client__epochs': 1,
  'client__batch_size': 0,
  'pictures': False,
  'rounds_per_call': 1,
}


@pytest.mark.slow
def test_a_run_reports_its_mechanism_and_sampler(tmp_path):
  cfg = config(**TRAINED)
  summary = train.train(cfg, tmp_path / 'run')
  expected = spent(cfg)
  for line in lines(tmp_path / 'run'):
    found = line['epsilon']
    assert found == pytest.approx(expected.line(line['round'])['epsilon'])
    assert line.get('info_clip') == (0.5 if line['round'] else None)
  for key, value in expected.summary(4, ended=True).items():
    assert summary[key] == pytest.approx(value), key


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'privacy__target_epsilon': 4.0, 'privacy__noise_multiplier': 0.0},
    {'sampling': 'uniform', 'privacy__accounting': 'replace_one'},
    {'privacy__quantile': 0.5, 'compression__scheme': 'qsgd'},
    {'privacy__canary_scores': 3200, 'server__momentum': 0.5},
  ],
)
def test_more_runs(tmp_path, changes):
  changes = {'privacy__bit_noise': 4.0 * ('privacy__quantile' in changes)} | (
    changes
  )
  summary = train.train(config(**(TRAINED | changes)), tmp_path / 'run')
  *_, line = lines(tmp_path / 'run')
  assert summary['epsilon_rdp'] == line['epsilon'] > 0
  if 'privacy__canary_scores' in changes:
    bound = summary['measured_round_epsilon']
    assert 0.2 < bound < summary['round_epsilon']
  if 'privacy__target_epsilon' in changes:
    assert 3.98 < line['epsilon'] <= 4.0
  if 'sampling' in changes:
    event = Event('replace_one', 50, 0.2, 10, 0.6)
    expected = Accountant(event, 1e-3).epsilon(4)
    assert line['epsilon'] == pytest.approx(expected)
    assert summary['epsilon_pld'] is None


def private_elsewhere(**privacy):
  """Trains with an algorithm given from Python that is private."""
  algorithm = algorithm_builder.build_algorithm(config(), 50, 10)
  cfg = config(
    privacy__clip=0.0, privacy__noise_multiplier=0.0, rounds=1, **privacy
  )
  return cfg, algorithm


@pytest.mark.slow
def test_an_algorithm_given_from_python_is_accounted_too(tmp_path):
  cfg, algorithm = private_elsewhere(privacy__accounting='replace_one')
  said = "privacy.accounting = 'replace_one': must be 'zero_out' with Poisson"
  with pytest.raises(InputError, match=said):
    train.train(cfg, tmp_path / 'run', algorithm=algorithm)
  assert not (tmp_path / 'run').exists()


REFUSED = [
  ({'privacy__clip': 0.0}, 'privacy.clip = 0.0: must be above 0 with'),
  ({'privacy__clip': -1.0}, r'privacy.clip = -1.0: must be in \[0, 1e\+30\]'),
  ({'privacy__delta': 0.03}, 'privacy.delta = 0.03: must be at most 1 / num_'),
  (
    {'privacy__noise_cohort_size': 100, 'privacy__population': 10_000},
    'privacy.delta = 0.001: must be at most 1 / privacy.population = 0.0001',
  ),
  (
    {
      'privacy__clip': 0.0,
      'privacy__noise_multiplier': 0.0,
      'privacy__noise_cohort_size': 100,
      'privacy__population': 1000,
    },
    'privacy.clip = 0.0: must be above 0 with privacy.noise_cohort_size = 100',
  ),
  (
    {'privacy__canary_scores': 63},
    'privacy.canary_scores = 63: must be 0, or at least 64',
  ),
  ({'privacy__delta': 0.0}, r'privacy.delta = 0.0: must be in \(0, 1\)'),
  (
    {'privacy__target_epsilon': 2.0},
    'privacy.target_epsilon = 2.0: must be 0 with privacy.noise_multiplier',
  ),
  (
    {
      'privacy__target_epsilon': 2.0,
      'privacy__noise_multiplier': 0.0,
      'privacy__noise_cohort_size': 100,
      'privacy__population': 1000,
    },
    'privacy.target_epsilon = 2.0: must be 0 with privacy.noise_cohort_size',
  ),
  (
    {'privacy__accounting': 'renyi'},
    "privacy.accounting = 'renyi': must be one of zero_out, replace_one",
  ),
  (
    {'sampling': 'uniform'},
    "sampling = 'uniform': must be 'poisson' with privacy.accounting",
  ),
  (
    {'sampling': 'examples'},
    "sampling = 'examples': must be 'poisson' with privacy.accounting",
  ),
  (
    {'privacy__accounting': 'replace_one'},
    "sampling = 'poisson': must be 'uniform' with privacy.accounting",
  ),
  ({'weighting': 'examples'}, "weighting = 'examples': must be 'uniform' with"),
  ({'on_nan': 'stop'}, "on_nan = 'stop': must be 'skip_client' with privacy"),
  ({'algorithm': 'scaffold'}, "algorithm = 'scaffold': must be one of fedavg"),
  ({'algorithm': 'mimelite'}, "algorithm = 'mimelite': must be one of fedavg"),
  ({'algorithm': 'fednova'}, "algorithm = 'fednova': must be one of fedavg"),
  (
    {
      'sampling': 'uniform',
      'privacy__accounting': 'replace_one',
      'unavailable_fraction': 0.2,
    },
    'unavailable_fraction = 0.2: must be 0 with privacy.clip = 0.5',
  ),
  (
    {
      'sampling': 'uniform',
      'privacy__accounting': 'replace_one',
      'availability_trace': 'a.csv',
    },
    "availability_trace = 'a.csv': must be '' with privacy.clip",
  ),
  (
    {
      'sampling': 'uniform',
      'privacy__accounting': 'replace_one',
      'clock__examples_per_second': 5.0,
      'asynchronous__buffer': 3,
    },
    'asynchronous.buffer = 3: must be 0 with privacy.clip = 0.5',
  ),
  (
    {'clock__examples_per_second': 5.0, 'clock__deadline': 2.0},
    'clock.deadline = 2.0: must be 0 with privacy.clip = 0.5: data decide',
  ),
  (
    {'robust__rule': 'median'},
    "robust.rule = 'median': must be 'none' with privacy.clip = 0.5",
  ),
  (
    {'robust__rule': 'norm_bound', 'robust__clip': 1.0},
    "robust.rule = 'norm_bound': must be 'none' with privacy.clip = 0.5",
  ),
  (
    {'personal__method': 'fedper'},
    "personal.method = 'fedper': must be '' with privacy.clip = 0.5",
  ),
  (
    {'compression__scheme': 'top_k', 'compression__error_feedback': True},
    'compression.error_feedback = True: must be False with privacy.clip',
  ),
  (
    {'attack__kind': 'inner_product'},
    "attack.kind = 'inner_product': must be an attack that does not read",
  ),
  (
    {'validation_fraction': 0.1},
    'validation_fraction = 0.1: must be 0 with a private algorithm, because a',
  ),
  (
    {'holdout_fraction': 0.2, 'client_eval_every': 2},
    'client_eval_every = 2: must be 0 with a private algorithm',
  ),
  (
    {'privacy__bit_noise': 1.0},
    'privacy.bit_noise = 1.0: must be 0 with privacy.quantile = 0.0',
  ),
  (
    {'privacy__bit_noise': 0.5, 'privacy__quantile': 0.5},
    'privacy.bit_noise = 0.5: must be above half of privacy.noise_multiplier',
  ),
  (
    {'privacy__noise_multiplier': 2.0, 'privacy__quantile': 0.5},
    'privacy.bit_noise = 0.5: must be above half of privacy.noise_multiplier',
  ),
  ({'privacy__quantile': 1.0}, r'privacy.quantile = 1.0: must be in \[0, 1\)'),
  (
    {'privacy__noise_cohort_size': 100},
    'privacy.population = 0: must be at least privacy.noise_cohort_size = 100',
  ),
  (
    {'privacy__noise_cohort_size': 9, 'privacy__population': 1000},
    'privacy.noise_cohort_size = 9: must be at least the expected cohort of 10',
  ),
]


@pytest.mark.parametrize(('changes', 'said'), REFUSED)
def test_contradictions_are_one_line(changes, said):
  with pytest.raises(InputError, match=said) as info:
    config(**changes)
  assert '\n' not in str(info.value)


def test_numbers_of_clients_that_the_data_decide():
  """The same rules hold once the number of natural clients is known."""
  cfg = config(num_clients=0, privacy__delta=0.03)
  with pytest.raises(InputError, match='privacy.delta = 0.03: must be at most'):
    algorithm_builder.build_algorithm(cfg, 50, 10)
  cfg = config(
    num_clients=0, privacy__noise_cohort_size=9, privacy__population=1000
  )
  with pytest.raises(InputError, match='privacy.noise_cohort_size = 9'):
    algorithm_builder.build_algorithm(cfg, 50, 10)


def test_more_rounds_do_not_change_the_noise_of_a_target():
  began = config(privacy__target_epsilon=2.0, privacy__noise_multiplier=0.0)
  more = began.replace({'rounds': 300})
  said = 'rounds = 300: must be 200 with privacy.target_epsilon = 2.0'
  with pytest.raises(InputError, match=said):
    config_changes.check_same(more, began.to_dict(), extend=True)
  config_changes.check_same(began, began.to_dict(), extend=True)
  config_privacy.check_resume(config(rounds=300), 200)
