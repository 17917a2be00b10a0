"""An option of a config: its default, what it means, and its rule.

The dataclasses of `run_config` are made of these, so that the rule, the default
and the words about a value stand in one place.
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
  """What a value must keep.

  Attributes:
    holds: value -> whether it does.
    text: the rule in words.
    words: all that the value may be, where these are words.
  """

  holds: Callable[[Any], bool]
  text: str
  words: Sequence[str] = ()


ANYTHING = Rule(lambda value: True, '')
BELOW_ONE = Rule(lambda value: 0 <= value < 1, 'must be in [0, 1)')


def one_of(words: Sequence[str]) -> Rule:
  """Makes the rule of a value that is one of some words."""
  return Rule(
    lambda value: value in words, f'must be one of {", ".join(words)}', words
  )


def one_of_or_own(words: Sequence[str]) -> Rule:
  """Makes the rule of one of some words, or of what is a person's own."""
  return Rule(
    lambda value: value in words or is_own(value),
    f'must be one of {", ".join(words)}, or module:function',
    words,
  )


def empty_or(rule: Rule) -> Rule:
  """Makes the rule of a text that may be empty too."""
  return Rule(
    lambda value: value == '' or rule.holds(value),
    rule.text.replace('must be', 'must be empty,', 1),
    rule.words,
  )


def is_own(value: Any) -> bool:
  """Tells whether a text names what a person has made, or has given."""
  return references.is_reference(value) or references.is_from_python(value)


def between(low: float, high: float) -> Rule:
  """Makes the rule of a number between two, both included."""
  return Rule(lambda value: low <= value <= high, f'must be in [{low}, {high}]')


def at_least(low: int) -> Rule:
  """Makes the rule of a whole number that 32 bits hold."""
  return between(low, rules.MOST)


def zero_or_between(low: float, high: float) -> Rule:
  """Makes the rule of a number that is 0 for none, or between two."""
  return Rule(
    lambda value: value == 0 or low <= value <= high,
    f'must be 0, or in [{low:g}, {high:g}]',
  )


# Of learning rates.
RATE = between(rules.SMALLEST_RATE, rules.LARGEST_RATE)


def option(default: Any, rule: Rule, about: str) -> Any:
  """Returns the field of a dataclass that is an option.

  Args:
    default: its value unless a config says another; it has the option's type.
    rule: of its values.
    about: what it means, in sentences, with its unit and the paper's letter.
  """
  return dataclasses.field(
    default=default, metadata={'rule': rule, 'about': about}
  )


def section(options: type['Options']) -> Any:
  """Returns the field of a dataclass that holds options of its own."""
  return dataclasses.field(
    default_factory=options, metadata={'section': options}
  )


def free(about: str) -> Any:
  """Returns the field of a dataclass for what a person's own functions take.

  Args:
    about: what it means.
  """
  return dataclasses.field(
    default_factory=dict, metadata={'free': True, 'about': about}
  )


class Options:
  """A dataclass of options, which checks their values when it is made.

  A subclass is a frozen dataclass whose fields are each made by `option`,
  `section` or `free`. Its class attribute `prefix` stands before the names of
  its fields in messages.
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
  """Returns the fields of options, of an object or its class."""
  return dataclasses.fields(options)


def is_section(field: dataclasses.Field) -> bool:
  """Tells whether a field holds options of its own."""
  return 'section' in field.metadata


def is_free(field: dataclasses.Field) -> bool:
  """Tells whether a field holds what a person's own functions take."""
  return 'free' in field.metadata


def checked(name: str, value: Any, field: dataclasses.Field) -> Any:
  """Returns the value of an option in the type of its default.

  Args:
    name: of the option, as a config has it.
    value: what it was given; arrays of JAX are not checked.
    field: of the option.

  Raises:
    InputError: it is of another type, not finite, or breaks the rule.
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
  """Returns a copy of what a person's own functions take, by name.

  Args:
    name: of the field.
    value: dictionaries of numbers, texts and lists of these; empty ones are
      left out.

  Raises:
    InputError: it holds something that JSON does not.
  """
  if not isinstance(value, Mapping):
    raise InputError(f'{name} = {value!r}: must be a dictionary')
  found = {}
  for key, own in value.items():
    if not isinstance(key, str) or not key.isidentifier():
      raise InputError(f'{name}: has the key {key!r}, must have names')
    if isinstance(own, Mapping):
      own = checked_free(f'{name}.{key}', own)
    elif not _is_plain(own):
      raise InputError(
        f'{name}.{key} = {own!r}: must be a finite number, a text, or a list of'
        ' these'
      )
    if own != {}:
      found[key] = _lists(own)
  return found


def _lists(value: Any) -> Any:
  """Returns tuples as lists, which is how JSON gives them back."""
  if isinstance(value, (list, tuple)):
    return list(map(_lists, value))
  return value


def _is_plain(value: Any) -> bool:
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
  """Yields every option of a class that has a name here, dots between parts."""
  for field in fields(options):
    if is_section(field):
      inner = field.metadata['section']
      yield from flat_fields(inner, f'{prefix}{field.name}.')
    elif not is_free(field):
      yield f'{prefix}{field.name}', field
