"""Flags, exit codes, and one line for what can be mended: of every command.

Exit codes: 2 for what was asked, 1 for what the machine could not do, 3 for
training that left the finite numbers; as shells have it for signals, 130 for
Ctrl-C and 143 for SIGTERM.
"""

from collections.abc import Callable
from collections.abc import Sequence
import itertools
import os
import pathlib
import re
import signal
import sys
import traceback
import types
from typing import Any

from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from fedavg_jax.cli import package_configs
from fedavg_jax.core import errors
from fedavg_jax.core.errors import AgreedError
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import LostError
from fedavg_jax.core.errors import StoppedError

_FAILED, _BAD_INPUT, _DIVERGED, _SIGNAL = 1, 2, 3, 128


def define_config() -> None:
  """Defines the flag --config."""
  config_flags.DEFINE_config_file(
    'config', None, 'File of a setting, configs/NAME.py or configs/NAME.py:ARG.'
  )


def read_config() -> tuple[ml_collections.ConfigDict, str]:
  """The config that --config names, and a name made of the file's.

  Raises:
    InputError: there is none.
  """
  flag: Any = flags.FLAGS['config']
  if not flag.present or not flag.config_filename:
    raise InputError('--config is missing: name a file of configs/')
  source = flag.config_filename
  path, *argument = source.split(':')
  if not pathlib.Path(path).is_file():
    raise InputError(f'--config {source}: there is no such file')
  if not isinstance(flag.value, ml_collections.ConfigDict):
    raise InputError(f'{source}: get_config() must return a ConfigDict')
  return flag.value, '_'.join([pathlib.Path(path).stem, *argument])


def read_path(flag: str, default: str | os.PathLike) -> pathlib.Path:
  """The path that a flag names.

  Raises:
    InputError: it is empty.
  """
  value = flags.FLAGS[flag].value
  if value == '':
    raise InputError(f'--{flag} is empty: name a new one')
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  return pathlib.Path(os.path.expanduser(value or default))


def new_file(flag: str, default: str) -> pathlib.Path:
  """The path that a flag names, of a PNG that is not there yet.

  Raises:
    InputError: it is empty, or there, or no PNG.
  """
  path = read_path(flag, default)
  if path.suffix != '.png':
    raise InputError(f'--{flag} {path}: must end with .png')
  if os.path.lexists(path):
    raise InputError(
      f'--{flag} {path}: exists already; name a new file, nothing is ever'
      ' written over'
    )
  if not path.parent.is_dir():
    raise InputError(f'--{flag} {path}: there is no folder {path.parent}')
  return path


def run(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Runs what a command does. Returns the exit code.

  Args:
    body: what may raise whatever `fedavg_jax.errors` has, or the machine.
    argv: what is left of the command line, its name first.
  """
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells its life story.
  try:
    code = _outcome(body, argv)
  except Exception:
    if not _is_distributed():
      raise
    traceback.print_exc()
    code = _FAILED
  if code and _is_distributed():
    # The others would be waited for, who may be waiting for this process.
    sys.stdout.flush()
    os._exit(code)
  return code


def _outcome(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Exit code of what a command does; what can be mended is told in a line."""
  try:
    if len(argv) > 1:
      raise InputError(f'{argv[1]}: not a flag; flags begin with --')
    body()
  except AgreedError as error:
    code = _fail(_FAILED if error.machine else _BAD_INPUT, error)
    _leave()
    return code
  except InputError as error:
    return _fail(_BAD_INPUT, error)
  except DivergedError as error:
    code = _fail(_DIVERGED, error)
    _leave()
    return code
  except LostError as error:
    return _fail(_FAILED, error)
  except OSError as error:
    return _fail(_FAILED, errors.describe(error))
  except StoppedError as error:
    code = _fail(_SIGNAL + error.signum, f'interrupted: {error}')
    _leave()
    sys.stdout.flush()
    # Python would wait for the rounds in line, which nobody needs any more.
    os._exit(code)
  except Exception as error:
    if not isinstance(error, _machine_errors()):
      raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _fail(_FAILED, f'out of memory or device failed: {reason[:200]}')
  except KeyboardInterrupt:
    return _fail(_SIGNAL + signal.SIGINT, 'interrupted')
  return 0


def parse_flags(argv: Sequence[str], module: types.ModuleType) -> Sequence[str]:
  """Parses flags; what is wrong with them, or with a config file, is a line.

  Args:
    argv: name of the command, and what stands behind it.
    module: of the command, whose flags are defined. Where it takes --config, a
      first word that is no flag is the same: run NAME is run --config FILE.

  Returns:
    What is left of argv.
  """
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:
      # Closed by who has started us: no file of ours may take its number.
      os.dup2(os.open(os.devnull, os.O_WRONLY), number)
      setattr(sys, name, os.fdopen(number, 'w'))
  logging.set_verbosity(logging.ERROR)  # What is wrong is told in one line.
  if any(word in ('-h', '-help', '--help', '--helpshort') for word in argv):
    print(_help(module))
    sys.exit(0)
  try:
    argv = _with_config(argv)
    return flags.FLAGS(argv)
  except InputError as error:
    sys.exit(fail(error))
  except flags.Error as error:
    # An error inside get_config() arrives with its traceback: keep the end.
    traced = re.split(r'^Traceback .*\n(?:  .*\n)+', str(error), flags=re.M)
    if len(traced) == 1:
      sys.exit(fail(error))
    sys.exit(fail(f'--config{_named(argv)}: {traced[-1]}'))
  except SystemExit as error:
    frames = traceback.extract_tb(error.__traceback__)
    if not any('config_flags' in frame.filename for frame in frames):
      raise  # As --help ends.
    message = f'--config{_named(argv)}: exits ({error.code})'
    sys.exit(fail(message))
  except Exception as error:  # An unknown key; or a person's own file.
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    kind = type(error).__name__
    if 'ml_collections' in where and kind in ('AttributeError', 'KeyError'):
      # ml_collections quotes the text of a KeyError inside another error.
      kind = 'no such key'
      text = text[1:-1].replace("\\'", "'").replace('\\n', ' ')
    sys.exit(fail(f'--config{_named(argv)}: {kind}: {text}'))


def _with_config(argv: Sequence[str]) -> Sequence[str]:
  """The arguments with --config FILE in the place of a first word."""
  if 'config' not in flags.FLAGS or len(argv) < 2 or argv[1].startswith('-'):
    return argv
  return [argv[0], f'--config={package_configs.find(argv[1])}', *argv[2:]]


def _help(module: types.ModuleType) -> str:
  """What a command does, and its flags."""
  text = (module.__doc__ or '').strip()
  known = flags.FLAGS.flags_by_module_dict()
  for name in (__name__, module.__name__):
    for flag in known.get(name, ()):
      default = (
        '' if flag.default in (None, '') else f' Default: {flag.default}.'
      )
      text += f'\n\n  --{flag.name}\n      {flag.help}{default}'
  if 'config' in flags.FLAGS:
    text += (
      '\n\n  --config.KEY=VALUE\n      Any option of the config, such as'
      ' --config.rounds=5.'
    )
  return text


def _is_distributed() -> bool:
  """Whether this process is one of several; not without JAX."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def _leave() -> None:
  """Waits for the other processes, where there are some."""
  if _is_distributed():
    from fedavg_jax.engine import processes  # Imports JAX.

    processes.leave()


def _machine_errors() -> tuple[type[Exception], ...]:
  """What is raised where memory ends or a device fails."""
  jax = sys.modules.get('jax')
  return (MemoryError, *([jax.errors.JaxRuntimeError] if jax else []))


def _named(argv: Sequence[str]) -> str:
  """The file that --config names, before it is a flag's value."""
  for flag, following in itertools.pairwise([*argv, '']):
    name, equals, value = flag.lstrip('-').partition('=')
    if name == 'config':
      return f' {value if equals else following}'
  return ''


def fail(message: object) -> int:
  """Prints a line about bad input. Returns the exit code."""
  return _fail(_BAD_INPUT, message)


def _fail(code: int, message: object) -> int:
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  return code
