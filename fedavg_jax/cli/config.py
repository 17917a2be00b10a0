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


def _run(action: str = '', name: str = '', *rest: str) -> None:
  most = {'list': 0, 'show': 1, 'copy': 2}
  if action not in most:
    raise InputError(
      f'config {action or "needs a word"}: must be list, show NAME or copy NAME'
      ' [FILE]'
    )
  given = [word for word in (name, *rest) if word]
  if len(given) > most[action]:
    raise InputError(f'config {action}: {given[-1]!r} is one word too many')
  if action == 'list':
    say('\n'.join(package_configs.names()))
    return
  if not name:
    raise InputError(
      f'config {action}: needs a NAME of {", ".join(package_configs.names())}'
    )
  path = pathlib.Path(package_configs.find(name))
  if action == 'show':
    say(path.read_text(encoding='utf-8').rstrip())
    return
  copy = pathlib.Path(given[1] if len(given) > 1 else path.name)
  if os.path.lexists(copy):
    raise InputError(
      f'{copy}: exists already; name a new file, nothing is ever written over'
    )
  with whole(copy) as part:
    shutil.copyfile(path, part)
  say(f'{copy} is yours: fedavg-jax run {copy}')
