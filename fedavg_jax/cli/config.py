"""Lists, shows and copies the configs that come with the package.

fedavg-jax config list
fedavg-jax config show quickstart
fedavg-jax config copy quickstart mine.py

A copy is yours to change: fedavg-jax run mine.py
"""

from collections.abc import Sequence
import os
import pathlib
import shutil

from fedavg_jax.cli import command
from fedavg_jax.cli import package_configs
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import whole
from fedavg_jax.runs.progress import say


def define_flags() -> None:
  """Defines no flag: the command has none of its own."""


def main(argv: Sequence[str]) -> int:
  """Lists, shows or copies. Returns the exit code."""
  return command.run(lambda: _run(*argv[1:]), argv[:1])


def _run(action: str = '', *words: str) -> None:
  most = {'list': 0, 'show': 1, 'copy': 2}
  if action not in most:
    raise InputError(
      f'config {action or "needs a word"}: must be list, show NAME or copy NAME'
      ' [FILE]'
    )
  if len(words) > most[action]:
    raise InputError(f'config {action}: {words[-1]!r} is one word too many')
  if action == 'list':
    say('\n'.join(package_configs.names()))
    return
  if not words:
    raise InputError(
      f'config {action}: needs a NAME of {", ".join(package_configs.names())}'
    )
  path = package_configs.path(words[0])
  if action == 'show':
    say(path.read_text(encoding='utf-8').rstrip())
    return
  copy = _new_file(words[1] if len(words) > 1 else path.name)
  with whole(copy) as part:
    shutil.copyfile(path, part)
  say(f'{copy} is yours: fedavg-jax run {copy}')


def _new_file(name: str) -> pathlib.Path:
  """The path of a config file that is not there yet.

  Raises:
    InputError: it is there, or `run` would not know it as a config file.
  """
  path = pathlib.Path(name)
  if path.suffix != '.py' or ':' in name:
    raise InputError(
      f'config copy: FILE {name or repr(name)}: must end with .py and hold no :'
    )
  if os.path.lexists(path):
    raise InputError(
      f'config copy: FILE {name}: exists already; name a new file, nothing is'
      ' ever written over'
    )
  if not path.parent.is_dir():
    raise InputError(
      f'config copy: FILE {name}: there is no folder {path.parent}'
    )
  return path
