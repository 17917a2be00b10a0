"""Lists, shows and copies the configs that come with the package.

fedavg-jax config list
fedavg-jax config show quickstart
fedavg-jax config show mnist_2nn:noniid
fedavg-jax config copy quickstart mine.py

`show` prints every option with its meaning, as a config file; `copy` copies the
file, for you to change: fedavg-jax run mine.py
"""

import ast
from collections.abc import Sequence
import os
import pathlib
import runpy
import shutil

from fedavg_jax.cli import command
from fedavg_jax.cli import package_configs
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write_new
from fedavg_jax.runs import config_text
from fedavg_jax.runs import run_config
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.progress import show


def define_flags() -> None:
  """Defines no flags; the command takes words only."""


def main(argv: Sequence[str]) -> int:
  """Lists or shows configs, or copies one; returns the exit code."""
  return command.run(lambda: _run(*argv[1:]), argv[:1])


def _run(action: str = '', *words: str) -> None:
  most = {'list': 0, 'show': 1, 'copy': 2}
  if action not in most:
    raise InputError(
      f'{f"config {action}".strip()}: must be list, show NAME or copy NAME'
      ' [FILE]'
    )
  if len(words) > most[action]:
    raise InputError(f'config {action}: unexpected argument {words[-1]!r}')
  if action == 'list':
    show('\n'.join(package_configs.names()))
    return
  if not words:
    raise InputError(
      f'config {action}: NAME is missing; expected one of'
      f' {", ".join(package_configs.names())}'
    )
  if action == 'show':
    show(_shown(words[0]))
    return
  path = package_configs.path(words[0])
  copy = _new_file(words[1] if len(words) > 1 else path.name)
  with atomic_write_new(copy) as part:
    shutil.copyfile(path, part)
  say(f'Copied to {copy}; run it with: fedavg-jax run {copy}')


def _shown(source: str) -> str:
  """Returns a config with all its options, as the text of a file.

  Args:
    source: NAME or NAME:ARG of a config of the package.

  Raises:
    InputError: the config does not exist, or rejects its argument.
  """
  name, colon, argument = source.partition(':')
  path = package_configs.path(name)
  module = runpy.run_path(str(path))
  try:
    given = module['get_config'](*[argument] * bool(colon))
  except TypeError:
    raise InputError(f'config {source}: takes no argument') from None
  except ValueError as error:
    raise InputError(f'config {source}: {error}') from None
  text = path.read_text(encoding='utf-8')
  last_line = ast.parse(text).body[0].end_lineno  # That of the docstring.
  docstring = '\n'.join(text.splitlines()[:last_line])
  return config_text.config_file(run_config.read(given), docstring).rstrip()


def _new_file(name: str) -> pathlib.Path:
  """Returns the path of a config file that does not exist yet.

  Raises:
    InputError: the path exists already, its folder does not exist, or `run`
      could not take it as a config file.
  """
  path = pathlib.Path(name)
  if path.suffix != '.py' or ':' in name:
    raise InputError(
      f'config copy: FILE {name or repr(name)}: must end with .py and contain'
      ' no :'
    )
  if os.path.lexists(path):
    raise InputError(
      f'config copy: FILE {name}: exists already; choose a new path; existing'
      ' files are never overwritten'
    )
  if not path.parent.is_dir():
    raise InputError(
      f'config copy: FILE {name}: the folder {path.parent} does not exist'
    )
  return path
