"""Defines an option of a config: its default, its meaning and its rule.

The fields of the dataclasses in `run_config` are options, so that the default,
the meaning and the rule of a value are defined in one place.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import references
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean


class Rule(NamedTuple):
  """Defines which values an option accepts.

  Attributes:
    holds: the test of a value, `value -> bool`.
    text: the rule in words, such as 'must be in [0, 1)'.
    words: the accepted words, where the rule is a choice.
  """

  holds: Callable[[Any], bool]
  text: str
  words: Sequence[str] = ()


ANYTHING = Rule(lambda value: True, '')
BELOW_ONE = Rule(lambda value: 0 <= value < 1, 'must be in [0, 1)')


def one_of(words: Sequence[str]) -> Rule:
  """Makes the rule that a value is one of some words."""
  return Rule(
    lambda value: value in words, f'must be one of {", ".join(words)}', words
  )


def one_of_or_own(words: Sequence[str]) -> Rule:
  """Makes the rule that a value is one of some words, or user-defined."""
  return Rule(
    lambda value: value in words or is_own(value),
    f'must be one of {", ".join(words)}, or module:function',
    words,
  )


def empty_or(rule: Rule) -> Rule:
  """Extends a rule: the value may also be an empty text."""
  return Rule(
    lambda value: value == '' or rule.holds(value),
    rule.text.replace('must be', 'must be empty,', 1),
    rule.words,
  )


def is_own(value: Any) -> bool:
  """Returns whether a text refers to user-defined code or a Python object."""
  return references.is_reference(value) or references.is_from_python(value)


def between(low: float, high: float) -> Rule:
  """Makes the rule that a number is in [low, high]."""
  return Rule(lambda value: low <= value <= high, f'must be in [{low}, {high}]')


def at_least(low: int) -> Rule:
  """Makes the rule that an integer of 32 bits is at least `low`."""
  return between(low, rules.MOST)


def zero_or_between(low: float, high: float) -> Rule:
  """Makes the rule that a number is 0, for none, or in [low, high]."""
  return Rule(
    lambda value: value == 0 or low <= value <= high,
    f'must be 0, or in [{low:g}, {high:g}]',
  )


# The rule of learning rates.
RATE = between(rules.SMALLEST_RATE, rules.LARGEST_RATE)


def option(default: Any, rule: Rule, about: str) -> Any:
  """Returns the field of a dataclass that is an option.

  Args:
    default: the default value, which has the option's type.
    rule: the rule of its values.
    about: the meaning of the option, with its unit, the paper's letter, and
      each word that it may be; config files and `--help` print it.
  """
  return dataclasses.field(
    default=default, metadata={'rule': rule, 'about': about}
  )


def section(options: type['Options']) -> Any:
  """Returns the field of a dataclass that is a section of further options."""
  return dataclasses.field(
    default_factory=options, metadata={'section': options}
  )


def free(about: str) -> Any:
  """Returns the field of a dataclass for arguments of user-defined functions.

  Args:
    about: the meaning of the field.
  """
  return dataclasses.field(
    default_factory=dict, metadata={'free': True, 'about': about}
  )


class Options:
  """Checks the values of a dataclass of options when one is constructed.

  A subclass is a frozen dataclass whose fields are each made by `option`,
  `section` or `free`. Messages prepend its class attribute `prefix` to the
  names of its fields.
  """

  prefix = ''

  def __post_init__(self) -> None:
    for field in fields(self):
      name, value = f'{self.prefix}{field.name}', getattr(self, field.name)
      if kind := field.metadata.get('section'):
        if not isinstance(value, kind):
          raise InputError(f'{name} = {value!r}: must be a {kind.__name__}')
      elif is_free(field):
        object.__setattr__(self, field.name, checked_free(name, value))
      else:
        object.__setattr__(self, field.name, checked(name, value, field))


def fields(options: Any) -> tuple[dataclasses.Field, ...]:
  """Returns the fields of an Options object or class."""
  return dataclasses.fields(options)


def is_section(field: dataclasses.Field) -> bool:
  """Returns whether a field is a section of further options."""
  return 'section' in field.metadata


def is_free(field: dataclasses.Field) -> bool:
  """Returns whether a field holds arguments of user-defined functions."""
  return 'free' in field.metadata


def checked(name: str, value: Any, field: dataclasses.Field) -> Any:
  """Returns the value of an option in the type of its default.

  Args:
    name: the key of the option in a config.
    value: the value that it was given; traced values are not checked.
    field: the field of the option.

  Raises:
    InputError: the value has another type, is not finite, or breaks the rule.
  """
  if rules.is_traced(value):
    return value
  if isinstance(value, np.generic):
    value = value.item()
  kind: Any = type(field.default)
  rule = field.metadata['rule']
  fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
  if not fits or (isinstance(value, bool) and kind is not bool):
    raise InputError(f'{name} = {value!r}: must be of type {kind.__name__}')
  try:
    value = kind(value)
  except OverflowError:
    raise InputError(f'{name} = {value!r}: must be finite') from None
  if kind is float and not math.isfinite(value):
    raise InputError(f'{name} = {value}: must be finite')
  if not rule.holds(value):
    hint = did_you_mean(value, rule.words)
    raise InputError(f'{name} = {value!r}: {rule.text}{hint}')
  return value


def checked_free(name: str, value: Any) -> dict[str, Any]:
  """Returns a copy of the arguments of user-defined functions, by name.

  Args:
    name: the key of the field.
    value: nested dictionaries of numbers, texts and lists of these; empty ones
      are left out.

  Raises:
    InputError: `value` has content that JSON cannot represent.
  """
  if not isinstance(value, Mapping):
    raise InputError(f'{name} = {value!r}: must be a dictionary')
  found = {}
  for key, entry in value.items():
    if not isinstance(key, str) or not key.isidentifier():
      raise InputError(f'{name}: has the key {key!r}, must have names')
    if isinstance(entry, Mapping):
      entry = checked_free(f'{name}.{key}', entry)
    elif not _is_plain(entry):
      raise InputError(
        f'{name}.{key} = {entry!r}: must be a finite number, a text, or a list'
        ' of these'
      )
    if entry != {}:
      found[key] = _lists(entry)
  return found


def _lists(value: Any) -> Any:
  """Returns tuples as lists, as JSON would."""
  if isinstance(value, (list, tuple)):
    return list(map(_lists, value))
  return value


def _is_plain(value: Any) -> bool:
  """Returns whether JSON can represent a value."""
  if isinstance(value, (list, tuple)):
    return all(map(_is_plain, value))
  if isinstance(value, float):
    return math.isfinite(value)
  return (
    value is None or rules.is_traced(value) or isinstance(value, (int, str))
  )


def flat_fields(
  options: Any, prefix: str = ''
) -> Iterator[tuple[str, dataclasses.Field]]:
  """Yields the key and the field of every option, except free ones."""
  for field in fields(options):
    if is_section(field):
      inner = field.metadata['section']
      yield from flat_fields(inner, f'{prefix}{field.name}.')
    elif not is_free(field):
      yield f'{prefix}{field.name}', field
