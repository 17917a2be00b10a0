"""Writes settings as a config file that explains every option.

`configs/default.py` is what `default_file` returns. To regenerate it:

python -m fedavg_jax.runs.config_text > configs/default.py
"""

import dataclasses
import textwrap

from fedavg_jax.runs.config_option import fields
from fedavg_jax.runs.config_option import flat_fields
from fedavg_jax.runs.config_option import is_free
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_config import flatten

_WIDTH = 80
_DEFAULT = '''"""Lists every option with its default; other files state changes.

It is generated from `fedavg_jax.runs.run_config`; do not edit it.

python -m fedavg_jax.main --config configs/default.py
"""'''


def default_file() -> str:
  """Returns the content of configs/default.py."""
  return config_file(RunConfig(), _DEFAULT)


def config_file(cfg: RunConfig, docstring: str) -> str:
  """Returns the text of a config file that lists every option.

  Args:
    cfg: the values of the options.
    docstring: the docstring of the file, quotes included.
  """
  lines = [
    docstring,
    '',
    'import ml_collections',
    '',
    '',
    'def get_config() -> ml_collections.ConfigDict:',
    '  """Returns the settings."""',
    '  config = ml_collections.ConfigDict()',
  ]
  values, section = dict(flatten(cfg)), ''
  for name, field in flat_fields(RunConfig):
    parent = name.rpartition('.')[0]
    if parent != section and parent:
      lines += ['', f'  config.{parent} = ml_collections.ConfigDict()']
    section = parent
    lines += ['', *_wrap(_about(field), '  # ')]
    lines.append(f'  config.{name} = {values[name]!r}')
  for field in filter(is_free, fields(RunConfig)):
    lines += ['', *_wrap(field.metadata['about'], '  # ')]
    content = {part: {} for part in OWN_PARTS} | getattr(cfg, field.name)
    lines += [
      f'  config.{field.name} = ml_collections.ConfigDict(',
      f'    {content!r}',
      '  )',
    ]
  return '\n'.join([*lines, '  return config', ''])


def help_text() -> str:
  """Returns the descriptions of all options, as `--help` prints them."""
  return '\n'.join(
    '\n'.join([f'  --config.{name}={field.default!r}', *_wrap(_about(field))])
    for name, field in flat_fields(RunConfig)
  )


def _about(field: dataclasses.Field) -> str:
  """Returns what an option means, with the words that it may be."""
  about, words = field.metadata['about'], field.metadata['rule'].words
  if all(f"'{word}'" in about for word in words):
    return about  # It explains each of them.
  return f'{about} One of {", ".join(words)}.'


def _wrap(text: str, indent: str = ' ' * 6) -> list[str]:
  """Wraps a text to lines of 80 columns, indented."""
  return textwrap.wrap(
    text, _WIDTH, initial_indent=indent, subsequent_indent=indent
  )


if __name__ == '__main__':
  print(default_file(), end='')
