"""Defines the sections of a config for clients' own noise and secure sums."""

import dataclasses
from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import empty_or
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class LocalPrivacyConfig(Options):
  """Configures noise that clients add, before the server sees anything."""

  prefix = 'local_privacy.'

  unit: str = option(
    '',
    empty_or(one_of(choices.PRIVACY_UNITS)),
    "What the noise protects: 'client' (all data of a client, by noise in its"
    " message) | 'example' (one example of a client, by noise in each local"
    ' step, DP-SGD); empty: none. See docs/private_parts.md.',
  )
  clip: float = option(
    1.0,
    Rule(lambda value: 0 < value <= 1e30, 'must be in (0, 1e30]'),
    "S: largest L2 norm of a message, or of an example's gradient.",
  )
  noise_multiplier: float = option(
    0.0, between(0, 1e6), 'sigma: standard deviation of the noise, over S.'
  )
  delta: float = option(
    1e-5,
    Rule(lambda value: 0 < value < 1, 'must be in (0, 1)'),
    'delta at which local_epsilon holds.',
  )


@dataclasses.dataclass(frozen=True)
class SecureConfig(Options):
  """Configures the arithmetic of secure aggregation."""

  prefix = 'secure.'

  max_abs: float = option(
    0.0,
    between(0, 1e30),
    'r: largest absolute value of a number of a message, which is sent in fixed'
    ' point and summed modulo 2^bits; 0: messages are not encoded.',
  )
  value_bits: int = option(
    16, between(2, 25), 'v: bits of a number before it is weighted.'
  )
  bits: int = option(32, between(2, 32), 'b: bits of a number that is sent.')
  max_weight: int = option(
    1,
    between(1, 2**24),
    'Largest weight n_k of a client; 1: all are equal.',
  )
  rounding: str = option(
    'stochastic',
    one_of(choices.ROUNDINGS),
    "Rounding to fixed point: 'stochastic' (unbiased) | 'nearest'.",
  )


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where the sections contradict other options."""
  local = cfg.local_privacy
  if bool(local.unit) != bool(local.noise_multiplier):
    raise InputError(
      f'local_privacy.noise_multiplier = {local.noise_multiplier}: must be'
      f' {"above 0" if local.unit else "0"} with local_privacy.unit ='
      f' {local.unit!r}'
    )
  if local.unit and cfg.privacy.clip:
    raise InputError(
      f'local_privacy.unit = {local.unit!r}: must be empty with privacy.clip ='
      f' {cfg.privacy.clip}, whose epsilon is that of the noise of the server'
    )
  if local.unit == 'example' and not cfg.client.batch_size:
    raise InputError(
      "local_privacy.unit = 'example': must be 'client' or empty with"
      ' client.batch_size = 0; the sum of gradients is divided by a constant B'
    )
  if local.unit and cfg.validation_fraction:
    raise InputError(
      f'validation_fraction = {cfg.validation_fraction}: must be 0 with'
      f' local_privacy.unit = {local.unit!r}, because a test on clients'
      "' examples chooses the model without noise"
    )
  secure = cfg.secure
  if secure.max_abs and secure.value_bits > secure.bits:
    raise InputError(
      f'secure.value_bits = {secure.value_bits}: must be at most secure.bits ='
      f' {secure.bits}'
    )
