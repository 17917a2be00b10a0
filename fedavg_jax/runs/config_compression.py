"""Defines the section of a config for compressed messages."""

import dataclasses
from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.config_option import ANYTHING
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import is_own
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# Algorithms whose messages have several parts, of different magnitudes.
_SEVERAL_PARTS = ('scaffold', 'mimelite')
# Algorithms whose server sums up what clients also keep, and the codes that
# lose a part of it.
_CONTROLS, _BIASED = ('scaffold', 'feddyn'), ('top_k', 'sign', 'drive')


@dataclasses.dataclass(frozen=True)
class CompressionConfig(Options):
  """Configures how clients encode their messages."""

  prefix = 'compression.'

  scheme: str = option(
    'none',
    one_of(choices.COMPRESSIONS),
    "Code of the messages: 'none' | 'qsgd' | 'top_k' | 'random_k' | 'sign' |"
    " 'drive' | 'eden'.",
  )
  levels: int = option(16, between(1, 65535), "s: number of levels of 'qsgd'.")
  fraction: float = option(
    0.01,
    Rule(lambda value: 0 < value <= 1, 'must be in (0, 1]'),
    "k / d: fraction of the entries that 'top_k' and 'random_k' send.",
  )
  bits: int = option(1, between(1, 4), "Bits per entry of 'eden'.")
  error_feedback: bool = option(
    False,
    ANYTHING,
    'Whether clients keep what they have not sent and send it later.',
  )
  per_leaf: bool = option(
    False,
    ANYTHING,
    'Whether each array of a message is encoded alone, not all as one vector.',
  )


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where the section contradicts other options."""
  compression = cfg.compression
  if compression.scheme == 'none':
    if compression.error_feedback:
      raise InputError(
        'compression.error_feedback = True: must be False with'
        " compression.scheme = 'none', which sends everything"
      )
    return
  named = f'compression.scheme = {compression.scheme!r}'
  if is_own(cfg.algorithm):
    raise InputError(
      f"{named}: must be 'none' with algorithm = {cfg.algorithm!r}; a"
      ' user-defined function can apply fa.experimental.compress'
    )
  if cfg.algorithm in _SEVERAL_PARTS and not compression.per_leaf:
    raise InputError(
      f'compression.per_leaf = False: must be True with {named} and algorithm'
      f' = {cfg.algorithm!r}, whose messages have parts of different magnitudes'
    )
  biased = compression.scheme in _BIASED and not compression.error_feedback
  if cfg.algorithm in _CONTROLS and biased:
    raise InputError(
      f'compression.error_feedback = False: must be True with {named} and'
      f' algorithm = {cfg.algorithm!r}: what the code drops would be missing'
      " from the server's correction for good"
    )
