"""Defines the sections of a config for attacks and for robust aggregation."""

import dataclasses
from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import is_own
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option
from fedavg_jax.schedule import sampling

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# Algorithms whose messages are more than a delta, or whose corrections add up
# to zero for means alone.
_MEANS_ALONE = (
  *('scaffold', 'fednova', 'fednova_prox', 'feddyn', 'fedexp', 'qfedavg'),
  'mimelite',
)


_SPARSE = ('top_k', 'random_k')


@dataclasses.dataclass(frozen=True)
class RobustConfig(Options):
  """Configures how the server combines messages that may be arbitrary."""

  prefix = 'robust.'

  rule: str = option(
    'none',
    one_of(choices.ROBUST_RULES),
    "Rule in place of the weighted mean: 'none' | 'median' | 'trimmed_mean' |"
    " 'krum' | 'geometric_median' | 'centred_clipping' | 'norm_bound'.",
  )
  trimmed_fraction: float = option(
    0.0,
    Rule(lambda value: 0 <= value < 0.5, 'must be in [0, 0.5)'),
    "Fraction of the values that 'trimmed_mean' leaves out on each side.",
  )
  attackers: int = option(
    0,
    at_least(0),
    "f: number of arbitrary messages that 'krum' withstands; it needs 2 f + 3"
    ' messages.',
  )
  selected: int = option(
    1,
    at_least(1),
    "Number of messages that 'krum' averages; more than 1 is multi-Krum.",
  )
  iterations: int = option(
    0,
    between(0, 1000),
    "Iterations of 'geometric_median' and 'centred_clipping'; 0: 8 of the"
    ' former, 1 of the latter.',
  )
  clip: float = option(
    0.0,
    between(0, 1e30),
    "Radius of 'centred_clipping'; largest norm of a message with"
    " 'norm_bound'.",
  )
  bucket_size: int = option(
    1,
    at_least(1),
    's: clients whose mean is one message for the rule; 1: no buckets.',
  )


@dataclasses.dataclass(frozen=True)
class AttackConfig(Options):
  """Configures clients that attack."""

  prefix = 'attack.'

  kind: str = option(
    'none',
    one_of(choices.ATTACKS),
    "What attackers do: 'none' | 'label_flip' | 'sign_flip' | 'scaling' |"
    " 'gaussian_noise' | 'little_is_enough' | 'inner_product'.",
  )
  fraction: float = option(
    0.2,
    BELOW_ONE,
    'Fraction of all clients that attack, the same in all rounds, drawn by the'
    ' seed.',
  )
  scale: float = option(
    1.0,
    Rule(lambda value: 0 < value <= 1e30, 'must be in (0, 1e30]'),
    "Size of the attack: factor of the message, or with 'gaussian_noise' and"
    " 'little_is_enough' standard deviations.",
  )


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where options of the two sections contradict others."""
  _check_attack(cfg)
  if cfg.robust.rule == 'none':
    return
  if cfg.algorithm in _MEANS_ALONE:
    raise InputError(
      f"robust.rule = {cfg.robust.rule!r}: must be 'none' with algorithm ="
      f' {cfg.algorithm!r}, whose messages are sound for means alone'
    )
  _check_own(cfg, 'robust.rule', cfg.robust.rule)
  if cfg.asynchronous.buffer:
    raise InputError(
      f"robust.rule = {cfg.robust.rule!r}: must be 'none' with"
      f' asynchronous.buffer = {cfg.asynchronous.buffer}, whose clients start'
      ' from different models'
    )
  _check_compressed(cfg)
  if cfg.robust.rule == 'trimmed_mean' and not cfg.robust.trimmed_fraction:
    raise InputError(
      'robust.trimmed_fraction = 0.0: must be above 0 with robust.rule ='
      " 'trimmed_mean', which else is a mean"
    )
  if cfg.robust.rule == 'norm_bound' and cfg.robust.bucket_size > 1:
    raise InputError(
      f'robust.bucket_size = {cfg.robust.bucket_size}: must be 1 with'
      " robust.rule = 'norm_bound', which clips single messages"
    )
  if cfg.robust.rule in ('centred_clipping', 'norm_bound'):
    if not cfg.robust.clip:
      raise InputError(
        'robust.clip = 0.0: must be above 0 with robust.rule ='
        f' {cfg.robust.rule!r}'
      )
  if cfg.num_clients:
    _check_cohort(cfg)


def _check_compressed(cfg: 'RunConfig') -> None:
  """Raises InputError where a rule combines messages that are mostly zeros."""
  rule, code = cfg.robust.rule, cfg.compression
  if rule in ('median', 'trimmed_mean') and code.scheme in _SPARSE:
    raise InputError(
      f'compression.scheme = {code.scheme!r}: must be another code with'
      f' robust.rule = {rule!r}: most clients send 0 for a coordinate, so that'
      ' its middle is 0'
    )
  if code.error_feedback and rule != 'norm_bound':
    raise InputError(
      'compression.error_feedback = True: must be False with robust.rule ='
      f' {rule!r}, which leaves out messages that clients count as sent'
    )


def _check_attack(cfg: 'RunConfig') -> None:
  """Raises InputError where an attack has nobody or no labels to flip."""
  attack = cfg.attack
  if attack.kind == 'none' or not attack.fraction:
    return
  _check_own(cfg, 'attack.kind', attack.kind)
  if attack.kind == 'scaling' and attack.scale == 1:
    raise InputError(
      "attack.scale = 1.0: must not be 1 with attack.kind = 'scaling', which"
      ' then changes nothing'
    )
  clients = cfg.num_clients
  if clients and not int(round(attack.fraction * clients, 6)):
    raise InputError(
      f'attack.fraction = {attack.fraction}: is less than one of num_clients ='
      f' {clients}, must give at least one attacker'
    )
  if attack.kind == 'label_flip' and cfg.loss not in ('', 'cross_entropy'):
    raise InputError(
      "attack.kind = 'label_flip': must be another attack with loss ="
      f' {cfg.loss!r}, whose targets are not classes'
    )


def _check_own(cfg: 'RunConfig', key: str, value: str) -> None:
  """Raises InputError where the algorithm is user-defined."""
  if is_own(cfg.algorithm):
    name = key.partition('.')[0]
    raise InputError(
      f"{key} = {value!r}: must be 'none' with algorithm = {cfg.algorithm!r};"
      f' a user-defined function can apply fa.experimental.{name}'
    )


def _check_cohort(cfg: 'RunConfig') -> None:
  """Raises InputError where a cohort has too few messages for the rule."""
  robust = cfg.robust
  cohort = sampling.cohort_size(cfg.num_clients, cfg.client_fraction)
  if robust.bucket_size > cohort:
    raise InputError(
      f'robust.bucket_size = {robust.bucket_size}: must be at most the cohort'
      f' of {cohort}'
    )
  messages = -(-cohort // robust.bucket_size)
  most = min((messages - 3) // 2, messages - robust.selected)
  if robust.rule == 'krum' and robust.attackers > most:
    raise InputError(
      f'robust.attackers = {robust.attackers}: must be at most'
      f' {max(most, 0)} with a cohort of {cohort} in buckets of'
      f' {robust.bucket_size} and robust.selected = {robust.selected}'
      if most >= 0
      else f'robust.rule = {robust.rule!r}: must have at least 3 messages, and'
      f' robust.selected = {robust.selected} of them; a cohort of {cohort} in'
      f' buckets of {robust.bucket_size} has {messages}'
    )
