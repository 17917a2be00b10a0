"""Splits and checks the words of config.metrics, without JAX."""

import re

from fedavg_jax.core import choices
from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean

TOP = re.compile(r'top_([1-9]\d{0,5})')
_KNOWN = f'{", ".join(choices.METRICS)}, top_1, top_2, ..., or module:function'


def split(metrics: str) -> list[str]:
  """Returns the words of config.metrics in their order.

  >>> split('macro_f1, top_5')
  ['macro_f1', 'top_5']
  """
  if references.is_from_python(metrics):
    return [metrics]
  return [word.strip() for word in metrics.split(',') if word.strip()]


def own(metrics: str) -> str:
  """Returns the word that names a user-defined function, or ''."""
  return next(filter(references.is_reference, split(metrics)), '')


def check(metrics: str) -> None:
  """Raises InputError where a word is not a metric, or a duplicate."""
  words = split(metrics)
  for word in words:
    if not (
      word in choices.METRICS
      or TOP.fullmatch(word)
      or references.is_reference(word)
      or references.is_from_python(word)
    ):
      hint = did_you_mean(word, choices.METRICS)
      raise InputError(
        f'metrics = {metrics!r}: {word!r} must be one of {_KNOWN}{hint}'
      )
  if len(set(words)) < len(words):
    raise InputError(f'metrics = {metrics!r}: must name each metric once')
  if sum(map(references.is_reference, words)) > 1:
    raise InputError(
      f'metrics = {metrics!r}: must name one module:function at most, which may'
      ' return several metrics'
    )
