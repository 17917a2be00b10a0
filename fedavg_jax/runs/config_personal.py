"""Defines the section of a config for personal models."""

import dataclasses
from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.config_option import ANYTHING
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import empty_or
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# The methods whose clients have a second model.
TWO_MODELS = ('ditto', 'apfl')
# The methods of whole models: no leaves are named.
_WHOLE_MODELS = (*TWO_MODELS, 'ifca')


@dataclasses.dataclass(frozen=True)
class PersonalConfig(Options):
  """Configures models, or parts of them, that stay with their clients."""

  prefix = 'personal.'

  method: str = option(
    '',
    empty_or(one_of(choices.PERSONAL_METHODS)),
    "Personal models: 'fedper' (each client has its own head) | 'fedrep' (the"
    " same, and the head is trained first) | 'lg' (each client has its own"
    " body) | 'fedbn' (its own normalisation layers) | 'adapters' (nobody"
    " trains the body) | 'ditto' (a model near the global one) | 'apfl' (a"
    " model mixed with the global one) | 'ifca' (the best of a few models);"
    ' empty: none. See docs/personal.md.',
  )
  leaves: str = option(
    '',
    ANYTHING,
    'Comma-separated patterns of the leaves that are the head, the'
    ' normalisation layers or the adapters; empty: the last layer of a built-in'
    " model, and *Norm* in 'fedbn'.",
  )
  head_epochs: int = option(
    1,
    at_least(1),
    "Local epochs of 'fedrep' that train the head; the other ones train the"
    ' body.',
  )
  proximal: float = option(
    0.1,
    between(0, 1e30),
    "lambda: weight of the proximal term in 'ditto'; 0 trains locally.",
  )
  alpha: float = option(
    0.5,
    between(0, 1),
    "Initial weight of a client's own model in 'apfl'; 1 trains locally.",
  )
  alpha_rate: float = option(
    0.0,
    between(0, 1e30),
    "Learning rate of each client's alpha in 'apfl'; 0: alpha stays.",
  )
  clusters: int = option(
    2,
    at_least(1),
    "k: models of 'ifca'; a client chooses in the first of its local epochs and"
    ' trains in the others.',
  )

  @property
  def patterns(self) -> list[str]:
    """Returns the patterns of `leaves`, without spaces."""
    return [text.strip() for text in self.leaves.split(',') if text.strip()]


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where the section contradicts other options."""
  own = cfg.personal
  if own.patterns and own.method in ('', *_WHOLE_MODELS):
    raise InputError(
      f'personal.leaves = {own.leaves!r}: must be empty with personal.method ='
      f' {own.method!r}, which names no leaves'
    )
  if not own.method:
    return
  if not own.patterns and (
    own.method == 'adapters'
    or (
      own.method in ('fedper', 'fedrep', 'lg')
      and cfg.model not in choices.MODELS
    )
  ):
    raise InputError(
      "personal.leaves = '': must name leaves of the model with personal.method"
      f' = {own.method!r} and model = {cfg.model!r}'
    )
  if own.method == 'fedrep' and own.head_epochs >= cfg.client.epochs:
    raise InputError(
      f'personal.head_epochs = {own.head_epochs}: must be below client.epochs ='
      f' {cfg.client.epochs}, whose last epochs train the body'
    )
  if own.method == 'ifca':
    _check_clusters(cfg)
  if cfg.finetune_epochs:
    raise InputError(
      f'finetune_epochs = {cfg.finetune_epochs}: must be 0 with'
      f" personal.method = {own.method!r}, whose clients' models are tested"
      ' as they are'
    )
  if references.is_from_python(cfg.algorithm):
    raise InputError(
      f'personal.method = {own.method!r}: must be empty with an algorithm given'
      ' from Python, which fa.experimental can make personal'
    )


def _check_clusters(cfg: 'RunConfig') -> None:
  """Raises InputError where an option does not fit several global models."""
  if cfg.client.epochs < 2:
    raise InputError(
      f'client.epochs = {cfg.client.epochs}: must be at least 2 with'
      " personal.method = 'ifca', whose first epoch chooses a model"
    )
  for key, value, neutral in (
    ('algorithm', cfg.algorithm, 'fedavg'),
    ('client.clip_norm', cfg.client.clip_norm, 0.0),
    ('server.optimizer', cfg.server.optimizer, 'sgd'),
    ('server.learning_rate', cfg.server.learning_rate, 1.0),
    ('server.momentum', cfg.server.momentum, 0.0),
    ('compression.scheme', cfg.compression.scheme, 'none'),
    ('asynchronous.buffer', cfg.asynchronous.buffer, 0),
    ('robust.rule', cfg.robust.rule, 'none'),
    ('attack.kind', cfg.attack.kind, 'none'),
  ):
    if value != neutral:
      raise InputError(
        f"{key} = {value!r}: must be {neutral!r} with personal.method = 'ifca',"
        " whose server replaces each model by its clients' mean"
      )
