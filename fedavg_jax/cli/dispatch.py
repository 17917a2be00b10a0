"""Dispatches `fedavg-jax COMMAND ...` to the module of the command.

fedavg-jax run quickstart
python -m fedavg_jax run quickstart

Only the module of the given command is imported.
"""

from collections.abc import Sequence
import gc
import importlib
import sys

from absl import app

import fedavg_jax
from fedavg_jax.cli import command
from fedavg_jax.core.suggest import did_you_mean

COMMANDS = {
  'run': 'train the federation that a config describes',
  'sweep': 'run a grid of settings with several seeds each',
  'compare': 'compare finished runs in a table and a picture',
  'partition': 'show the examples per client and label of a config',
  'convert': 'write a federation to disk, for populations larger than memory',
  'bench': 'time the engine on this machine',
  'config': 'list, show or copy the configs that come with the package',
}


def main() -> None:
  """Executes the command in the arguments of this process, then exits."""
  name, *arguments = sys.argv[1:] or ['--help']
  if name == 'help' and arguments:
    name, arguments = arguments[0], ['--help']
  if name in ('-h', '-help', '--help', 'help'):
    sys.exit(command.print_all(_usage()))
  elif name == '--version':
    sys.exit(command.print_all(f'fedavg_jax {fedavg_jax.__version__}'))
  elif name in COMMANDS:
    start(name, arguments)
  else:
    sys.exit(command.fail(_unknown(name)))


def start(name: str, arguments: Sequence[str]) -> None:
  """Executes a command, then exits.

  Args:
    name: one of `COMMANDS`.
    arguments: the words after it.
  """
  # Imports and traces make hundreds of thousands of objects that stay: looking
  # through them for garbage as often as Python does takes an eighth of a start.
  gc.set_threshold(50_000, 20, 100)
  try:
    module = importlib.import_module(f'fedavg_jax.cli.{name}')
    command.define_flags(module)

    def parse(argv: Sequence[str]) -> Sequence[str]:
      return command.parse_flags(argv, module)

    app.run(module.main, argv=[name, *arguments], flags_parser=parse)
  except KeyboardInterrupt:  # It came before `command.run` handles it.
    sys.exit(command.interrupted())


def ended(name: str) -> None:
  """Exits with the command that replaces `python -m fedavg_jax.NAME`."""
  sys.exit(
    command.fail(
      f'python -m fedavg_jax.{name} is now fedavg-jax {name}, or python -m'
      f' fedavg_jax {name}'
    )
  )


def _unknown(name: str) -> str:
  """Returns the error message for a first word that is not a command."""
  known = ', '.join(COMMANDS)
  if name.startswith('-'):
    return f'{name}: a command must come before all flags: one of {known}'
  hint = did_you_mean(name, COMMANDS)
  return f'command {name or repr(name)}: must be one of {known}{hint}'


def _usage() -> str:
  rows = [f'  {name:<10} {what}' for name, what in COMMANDS.items()]
  return '\n'.join(
    [
      'usage: fedavg-jax COMMAND ...',
      '',
      *rows,
      '',
      'fedavg-jax COMMAND --help prints the flags of a command,',
      'fedavg-jax --version prints the version.',
    ]
  )
