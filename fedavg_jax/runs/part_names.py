"""Lists the parts of a config that may be user-defined functions."""

from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core import references
from fedavg_jax.runs import metric_words

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# Each takes its arguments from `config.options`.
OWN_PARTS = ('dataset', 'model', 'algorithm', 'loss', 'metrics')


def own_name(cfg: 'RunConfig', part: str) -> str:
  """Returns the `module:function` that a part of a config names, or ''."""
  text = getattr(cfg, part)
  if part == 'metrics':
    return metric_words.own(text)
  if part == 'dataset' and choices.is_of_library(text):
    return ''
  return text if references.is_reference(text) else ''
