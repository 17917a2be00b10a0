"""Defines the section of a config for differential privacy of clients."""

import dataclasses
from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option
from fedavg_jax.schedule import sampling

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# Algorithms whose clients have no state and send one delta.
_SINGLE_DELTAS = 'fedavg', 'fedprox'
_SAMPLING = {'zero_out': 'poisson', 'replace_one': 'uniform'}


@dataclasses.dataclass(frozen=True)
class PrivacyConfig(Options):
  """Configures user-level differential privacy, which clip > 0 enables."""

  prefix = 'privacy.'

  clip: float = option(
    0.0,
    between(0, 1e30),
    "S: largest L2 norm of a client's message; the first one with quantile > 0;"
    ' 0: no privacy.',
  )
  noise_multiplier: float = option(
    0.0,
    between(0, 1e6),
    'sigma: standard deviation of the noise of the sum, over S.',
  )
  target_epsilon: float = option(
    0.0,
    between(0, 1e6),
    'Epsilon after all rounds, from which the noise multiplier is computed; 0:'
    ' noise_multiplier is given.',
  )
  delta: float = option(
    1e-5,
    Rule(lambda value: 0 < value < 1, 'must be in (0, 1)'),
    'delta at which epsilon holds; at most 1 / K.',
  )
  accounting: str = option(
    'zero_out',
    one_of(choices.ACCOUNTINGS),
    "Federations between which epsilon protects: 'zero_out' (without the data"
    " of one client; needs sampling 'poisson') | 'replace_one' (with other data"
    " of one client, which needs twice the noise; for sampling 'uniform').",
  )
  quantile: float = option(
    0.0,
    BELOW_ONE,
    'gamma: fraction of the norms that the clip should not cut, which it'
    ' follows from round to round; 0: the clip stays.',
  )
  clip_learning_rate: float = option(
    0.2,
    Rule(lambda value: 0 < value <= 1e3, 'must be in (0, 1000]'),
    'eta_C: rate of the geometric updates of the clip.',
  )
  bit_noise: float = option(
    0.0,
    between(0, 1e30),
    'sigma_b: standard deviation of the noise of the number of norms below the'
    ' clip; 0: a twentieth of the expected cohort.',
  )
  noise_cohort_size: int = option(
    0,
    at_least(0),
    'Size of a larger cohort whose noise the mean has, to predict its accuracy;'
    " its epsilon is 'projected_epsilon'. 0: the noise is that of this cohort.",
  )
  population: int = option(
    0,
    at_least(0),
    'Number of clients from which cohorts of noise_cohort_size would be drawn.',
  )
  canary_scores: int = option(
    0,
    Rule(lambda value: value == 0 or value >= 64, 'must be 0, or at least 64'),
    'Scores of canaries from which a lower bound on the epsilon of a round is'
    ' measured after the last one, such as 64000, in seconds; 0: none is.',
  )


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where the section contradicts other options."""
  own = cfg.privacy
  if not own.clip:
    for name in (
      *('noise_multiplier', 'target_epsilon', 'quantile'),
      *('noise_cohort_size', 'canary_scores'),
    ):
      if value := getattr(own, name):
        raise InputError(
          f'privacy.clip = 0.0: must be above 0 with privacy.{name} = {value}'
        )
  if bool(own.noise_cohort_size) != bool(own.population) or (
    own.noise_cohort_size > own.population
  ):
    raise InputError(
      f'privacy.population = {own.population}: must be at least'
      f' privacy.noise_cohort_size = {own.noise_cohort_size}, or both 0'
    )
  if own.clip:
    _check_noise(cfg)
    _check_rounds(cfg)
    check_results(cfg)


def expected_cohort(cfg: 'RunConfig', num_clients: int) -> float:
  """Returns the expected number of clients that a round draws."""
  return sampling.expected_cohort(
    num_clients, cfg.client_fraction, poisson=cfg.sampling == 'poisson'
  )


def check_noise_cohort(cfg: 'RunConfig', num_clients: int) -> None:
  """Raises InputError where the imagined cohort is not a larger one."""
  least = expected_cohort(cfg, num_clients)
  if 0 < cfg.privacy.noise_cohort_size < least:
    raise InputError(
      f'privacy.noise_cohort_size = {cfg.privacy.noise_cohort_size}: must be at'
      f' least the expected cohort of {least:g}'
    )


def _check_noise(cfg: 'RunConfig') -> None:
  """Raises InputError where the numbers of the mechanism do not fit."""
  own = cfg.privacy
  if own.target_epsilon:
    for name in ('noise_multiplier', 'noise_cohort_size'):
      if value := getattr(own, name):
        raise InputError(
          f'privacy.target_epsilon = {own.target_epsilon}: must be 0 with'
          f' privacy.{name} = {value}, which decides the noise'
        )
  if cfg.num_clients:
    check_noise_cohort(cfg, cfg.num_clients)
  for key, number in (
    ('num_clients', cfg.num_clients),
    ('privacy.population', own.population),
  ):
    if number and own.delta > 1 / number:
      raise InputError(
        f'privacy.delta = {own.delta}: must be at most 1 / {key} ='
        f' {1 / number:.3g}, else publishing one client would be private'
      )
  if own.bit_noise and not own.quantile:
    raise InputError(
      f'privacy.bit_noise = {own.bit_noise}: must be 0 with privacy.quantile ='
      ' 0.0, where clients send no bits'
    )
  bit_noise = own.bit_noise
  if own.quantile and cfg.num_clients and not bit_noise:
    bit_noise = expected_cohort(cfg, cfg.num_clients) / 20
  if bit_noise and bit_noise <= own.noise_multiplier / 2:
    raise InputError(
      f'privacy.bit_noise = {bit_noise}: must be above half of'
      f' privacy.noise_multiplier = {own.noise_multiplier}'
    )


def _check_rounds(cfg: 'RunConfig') -> None:
  """Raises InputError where a round is not the event that is accounted."""
  own = cfg.privacy
  if cfg.algorithm in choices.ALGORITHMS and cfg.algorithm not in (
    _SINGLE_DELTAS
  ):
    raise InputError(
      f'algorithm = {cfg.algorithm!r}: must be one of'
      f' {", ".join(_SINGLE_DELTAS)} with privacy.clip = {own.clip}; clients of'
      ' others keep states, or send more than a delta'
    )
  if cfg.sampling != (needed := _SAMPLING[own.accounting]):
    raise InputError(
      f'sampling = {cfg.sampling!r}: must be {needed!r} with privacy.accounting'
      f' = {own.accounting!r}, whose theorem is of such cohorts'
    )
  for key, value, word, why in (
    ('weighting', cfg.weighting, 'uniform', 'a client counts once'),
    ('on_nan', cfg.on_nan, 'skip_client', 'no client may end the run'),
    ('unavailable_fraction', cfg.unavailable_fraction, 0, 'draws are known'),
    ('availability_trace', cfg.availability_trace, '', 'draws are known'),
    ('asynchronous.buffer', cfg.asynchronous.buffer, 0, 'draws are known'),
    ('clock.deadline', cfg.clock.deadline, 0, 'data decide who is late'),
    ('robust.rule', cfg.robust.rule, 'none', 'messages are summed'),
    ('personal.method', cfg.personal.method, '', 'clients keep nothing'),
    (
      'compression.error_feedback',
      cfg.compression.error_feedback,
      False,
      'clients keep nothing',
    ),
  ):
    if value != word:
      raise InputError(
        f'{key} = {value!r}: must be {word!r} with privacy.clip = {own.clip}:'
        f' {why}'
      )
  if cfg.attack.kind in ('little_is_enough', 'inner_product'):
    raise InputError(
      f'attack.kind = {cfg.attack.kind!r}: must be an attack that does not read'
      f' other messages with privacy.clip = {own.clip}'
    )


def check_results(cfg: 'RunConfig') -> None:
  """Raises InputError where a run publishes clients' data without noise."""
  for key, value, why in (
    ('validation_fraction', cfg.validation_fraction, 'chooses the model'),
    ('client_eval_every', cfg.client_eval_every, 'publishes their results'),
  ):
    if value:
      raise InputError(
        f'{key} = {value}: must be 0 with a private algorithm,'
        f" because a test on clients' examples {why} without noise"
      )


def check_resume(now: 'RunConfig', began: int) -> None:
  """Raises InputError where more rounds would change the noise of a run.

  Args:
    now: the settings of the command that resumes.
    began: the number of rounds that the run began with.
  """
  if now.privacy.target_epsilon and now.rounds != began:
    raise InputError(
      f'rounds = {now.rounds}: must be {began} with privacy.target_epsilon ='
      f' {now.privacy.target_epsilon}, whose noise depends on all rounds'
    )
