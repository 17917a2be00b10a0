"""Defines what all commands share: flags, exit codes and one-line errors.

The exit code is 2 for invalid input, 1 for a failure of the machine, 3 for
training that diverged, and as in shells 130 for Ctrl-C and 143 for SIGTERM.
"""

from collections.abc import Callable
from collections.abc import Sequence
import io
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
from fedavg_jax.core.errors import DistributedInputError
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.core.errors import PeerLostError
from fedavg_jax.runs import config_text
from fedavg_jax.runs.progress import drop
from fedavg_jax.runs.progress import show

_FAILED, _BAD_INPUT, _DIVERGED, _SIGNAL = 1, 2, 3, 128
# JAX's message, at its import, about an invalid environment variable.
_FLAG_OF_JAX = re.compile(r'Invalid value "(.*)" for JAX flag (\w+)')
_HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')


def define_config() -> None:
  """Defines the flag --config."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, FILE.py or FILE.py:ARG. A first word NAME or NAME:ARG selects'
    ' a config of the package instead.',
  )


def read_config() -> tuple[ml_collections.ConfigDict, str]:
  """Returns the config that --config names, and a name for the run.

  Returns:
    The config, and the file's stem with the argument: 'mnist_2nn_noniid'.

  Raises:
    InputError: --config is missing, or its file defines no ConfigDict.
  """
  flag: Any = flags.FLAGS['config']
  if not flag.present or not flag.config_filename:
    raise InputError(_missing())
  source = flag.config_filename
  _check_file(source)
  path, *argument = source.split(':')
  if not isinstance(flag.value, ml_collections.ConfigDict):
    raise InputError(f'{source}: get_config() must return a ConfigDict')
  return flag.value, '_'.join([pathlib.Path(path).stem, *argument])


def _missing() -> str:
  known = ', '.join(package_configs.names())
  return (
    f'--config is missing: give a file, or as the first word one of {known}'
  )


def _check_file(source: str) -> None:
  """Raises InputError unless --config names a regular file."""
  path = pathlib.Path(source.split(':')[0])
  if path.is_file():
    return
  if path.exists():
    raise InputError(f'--config {source}: is not a regular file')
  hint = ''
  if path.stem in package_configs.names():
    hint = (
      '; the config of the package is selected by the first word'
      f' {path.stem}, without --config'
    )
  raise InputError(f'--config {source}: no such file{hint}')


def read_path(flag: str, default: str | os.PathLike) -> pathlib.Path:
  """Returns the path that a flag names, with `~` expanded.

  Args:
    flag: the name of the flag.
    default: the path where the flag was not given.

  Raises:
    InputError: the flag is empty.
  """
  value = flags.FLAGS[flag].value
  if value == '':
    raise InputError(f'--{flag} is empty: must be a path')
  # Unlike Path.expanduser, this leaves the home of an unknown user as it is.
  return pathlib.Path(os.path.expanduser(value or default))


def output_file(
  flag: str,
  default: str,
  suffixes: Sequence[str],
  is_own: Callable[[pathlib.Path], bool] = lambda path: False,
) -> pathlib.Path:
  """Returns the path that a flag names, of a file to write.

  Args:
    flag: the name of the flag.
    default: the path where the flag was not given.
    suffixes: the endings that it may have.
    is_own: a function of an existing file: whether it may be replaced.

  Raises:
    InputError: the path is empty, exists already, has another ending, or its
      folder does not exist.
  """
  path = read_path(flag, default)
  if path.suffix not in suffixes:
    *others, last = suffixes
    known = f'{", ".join(others)} or {last}'
    raise InputError(f'--{flag} {path}: must end with {known}')
  if os.path.lexists(path) and not is_own(path):
    raise InputError(
      f'--{flag} {path}: exists already; choose a new path; existing files'
      ' are never overwritten'
    )
  if not path.parent.is_dir():
    raise InputError(
      f'--{flag} {path}: the folder {path.parent} does not exist'
    )
  return path


def run(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Executes the body of a command; returns the exit code.

  Args:
    body: a function that may raise the errors of `core.errors`, and those of
      the machine.
    argv: the command line without its flags, the command's name first.
  """
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Silence the INFO lines of orbax.
  try:
    code = _outcome(body, argv)
  except Exception:
    if not _is_distributed():
      raise
    traceback.print_exc()
    code = _FAILED
  if code and _is_distributed():
    # A normal exit would wait for the others, which may wait for this process.
    sys.stdout.flush()
    os._exit(code)
  return code


def _outcome(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Executes the body; returns the exit code. An error is one line."""
  try:
    if len(argv) > 1:
      raise InputError(_stray(argv[1]))
    body()
  except DistributedInputError as error:
    code = _fail(_FAILED if error.machine else _BAD_INPUT, error)
    _leave()
    return code
  except InputError as error:
    return _fail(_BAD_INPUT, error)
  except DivergedError as error:
    code = _fail(_DIVERGED, error)
    _leave()
    return code
  except PeerLostError as error:
    return _fail(_FAILED, error)
  except OSError as error:
    return _fail(_FAILED, errors.describe(error))
  except InterruptedRunError as error:
    code = _fail(_SIGNAL + error.signum, f'interrupted: {error}')
    _leave()
    sys.stdout.flush()
    # A normal exit would wait for the queued rounds, which are not needed.
    os._exit(code)
  except Exception as error:
    if wrong := _FLAG_OF_JAX.match(str(error)):
      return _fail(
        _BAD_INPUT, f'{wrong[2].upper()} = {wrong[1]}: JAX rejects this value'
      )
    if not isinstance(error, _machine_errors()):
      raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _fail(_FAILED, f'out of memory or device failed: {reason[:200]}')
  except KeyboardInterrupt:
    return interrupted()
  return 0


def _stray(word: str) -> str:
  """Returns the error message for a word that is not a flag."""
  if 'config' in flags.FLAGS and not flags.FLAGS['config'].present:
    return f'{word}: the name of a config must come before all flags'
  return f'{word}: not a flag; flags begin with --'


def define_flags(module: types.ModuleType) -> None:
  """Defines the flags of a command; exits with one line on an error.

  The definition of --config reads the command line already, so that a missing
  --flagfile is an error here.
  """
  try:
    module.define_flags()
  except flags.Error as error:
    sys.exit(fail(_flag_error(error)))


def parse_flags(argv: Sequence[str], module: types.ModuleType) -> Sequence[str]:
  """Parses the flags; exits with one line if they or a config are invalid.

  Args:
    argv: the name of the command, and the words after it.
    module: the module of the command, whose flags are defined. If it takes
      --config, a first word that is not a flag names a config: `run NAME` is
      `run --config FILE`.

  Returns:
    argv without the flags.
  """
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:
      # The caller has closed it; another open file must not get its number.
      os.dup2(os.open(os.devnull, os.O_WRONLY), number)
      setattr(sys, name, os.fdopen(number, 'w'))
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # Names may have any characters.
      stream.reconfigure(errors='backslashreplace')
  logging.set_verbosity(logging.ERROR)  # An error is one line.
  if any(word in _HELP for word in _before_dashes(argv)):
    sys.exit(print_all(_help(module)))
  try:
    argv = _with_config(argv)
    if 'config' in flags.FLAGS and (source := _named(argv)) is not None:
      if not source:
        raise InputError(_missing())
      _check_file(source)
    return flags.FLAGS(argv)
  except InputError as error:
    sys.exit(fail(error))
  except flags.Error as error:
    # An error inside get_config() contains its traceback: keep the last part.
    traced = re.split(r'^Traceback .*\n(?:  .*\n)+', str(error), flags=re.M)
    if len(traced) == 1:
      sys.exit(fail(_flag_error(error)))
    text = traced[-1]
    if 'get_config() takes 0 positional' in text:
      text = 'takes no argument: leave out the : and the word after it'
    sys.exit(fail(f'--config {_named(argv)}: {text}'))
  except SystemExit as error:
    frames = traceback.extract_tb(error.__traceback__)
    if not any('config_flags' in frame.filename for frame in frames):
      raise  # This is how --help ends.
    message = f'--config {_named(argv)}: exits ({error.code})'
    sys.exit(fail(message))
  except Exception as error:  # An unknown key, or an error in the user's file.
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    kind = type(error).__name__
    if 'ml_collections' in where and kind in ('AttributeError', 'KeyError'):
      # ml_collections quotes the text of a KeyError inside another error, and
      # appends its suggestion without a full stop.
      kind = 'unknown key'
      text = text[1:-1].replace("\\'", "'").replace('\\n', '. ')
    sys.exit(fail(f'--config {_named(argv)}: {kind}: {text}'))


def _flag_error(error: flags.Error) -> str:
  """Returns the message for an invalid flag."""
  name = getattr(error, 'flagname', '')
  if name.startswith('config.') and 'config' in flags.FLAGS:
    if not flags.FLAGS['config'].present:
      return f'--{name}: the name of a config must come before its keys'
  return str(error).removeprefix('ERROR:: ')


def _with_config(argv: Sequence[str]) -> Sequence[str]:
  """Returns the arguments with --config FILE instead of a first word."""
  if 'config' not in flags.FLAGS or len(argv) < 2 or argv[1].startswith('-'):
    return argv
  found = package_configs.find(argv[1])
  for word in _before_dashes(argv):
    if word.startswith('-') and word.lstrip('-').partition('=')[0] == 'config':
      raise InputError(f'{word}: a config is given already, {argv[1]}')
  return [argv[0], f'--config={found}', *argv[2:]]


def _before_dashes(argv: Sequence[str]) -> Sequence[str]:
  """Returns the arguments up to a `--`, after which no word is a flag."""
  return argv[1 : argv.index('--') if '--' in argv else None]


def _help(module: types.ModuleType) -> str:
  """Returns the help of a command: its purpose, flags and options."""
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
      '\n\nOptions of the config, with the values of configs/default.py:\n\n'
      + config_text.help_text()
    )
  return text


def _is_distributed() -> bool:
  """Returns whether this process is one of several, without importing JAX."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def _leave() -> None:
  """Leaves the other processes of the run, if it has any."""
  if _is_distributed():
    from fedavg_jax.engine import processes  # Imports JAX.

    processes.disconnect()


def _machine_errors() -> tuple[type[Exception], ...]:
  """Returns the errors of exhausted memory and of failed devices."""
  jax = sys.modules.get('jax')
  return (MemoryError, *([jax.errors.JaxRuntimeError] if jax else []))


def _named(argv: Sequence[str]) -> str | None:
  """Returns the word after --config, before it is parsed; None without one."""
  for flag, following in itertools.pairwise([*_before_dashes(argv), '']):
    name, equals, value = flag.lstrip('-').partition('=')
    if name == 'config' and flag.startswith('-'):
      return value if equals else following
  return None


def print_all(text: str) -> int:
  """Prints the output of a command; returns the exit code."""
  try:
    show(text)
  except OSError as error:
    return _fail(_FAILED, errors.describe(error))
  return 0


def fail(message: object) -> int:
  """Prints a line about invalid input; returns the exit code."""
  return _fail(_BAD_INPUT, message)


def interrupted() -> int:
  """Prints a line about Ctrl-C; returns the exit code."""
  return _fail(_SIGNAL + signal.SIGINT, 'interrupted')


def _fail(code: int, message: object) -> int:
  line = f'error: {" ".join(str(message).split())}'
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:  # Only the exit code can still report the error.
    drop(sys.stderr)
  return code
