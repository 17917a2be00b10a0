"""Flags, exit codes, and one line for what can be mended: of every command.

Exit codes: 2 for what was asked, 1 for what the machine could not do, 3 for
training that left the finite numbers; as shells have it for signals, 130 for
Ctrl-C and 143 for SIGTERM.
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
# As JAX says it of a variable of the environment, when it is imported.
_FLAG_OF_JAX = re.compile(r'Invalid value "(.*)" for JAX flag (\w+)')
_HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')


def define_config() -> None:
  """Defines the flag --config."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'File of a setting, FILE.py or FILE.py:ARG. One that comes with the package'
    ' is named in its place by a first word, NAME or NAME:ARG.',
  )


def read_config() -> tuple[ml_collections.ConfigDict, str]:
  """The config that --config names, and a name made of the file's.

  Raises:
    InputError: there is none.
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
    f'--config is missing: name a file, or as the first word one of {known}'
  )


def _check_file(source: str) -> None:
  """Raises InputError where --config names no file."""
  path = pathlib.Path(source.split(':')[0])
  if path.is_file():
    return
  if path.exists():
    raise InputError(f'--config {source}: must be a file')
  hint = ''
  if path.stem in package_configs.names():
    hint = (
      f"; the package's own is the first word {path.stem}, without --config"
    )
  raise InputError(f'--config {source}: there is no such file{hint}')


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
      f'--{flag} {path}: exists already; choose a new path, existing files'
      ' are never overwritten'
    )
  if not path.parent.is_dir():
    raise InputError(f'--{flag} {path}: there is no folder {path.parent}')
  return path


def run(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Runs what a command does. Returns the exit code.

  Args:
    body: what may raise whatever `core.errors` has, or the machine.
    argv: what is left of the command line, its name first.
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
    # The others would be waited for, who may be waiting for this process.
    sys.stdout.flush()
    os._exit(code)
  return code


def _outcome(body: Callable[[], None], argv: Sequence[str]) -> int:
  """Exit code of what a command does; what a user can fix is one line."""
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
    # Python would wait for the queued rounds, which nobody needs any more.
    os._exit(code)
  except Exception as error:
    if wrong := _FLAG_OF_JAX.match(str(error)):
      return _fail(
        _BAD_INPUT, f'{wrong[2].upper()} = {wrong[1]}: JAX knows no such value'
      )
    if not isinstance(error, _machine_errors()):
      raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _fail(_FAILED, f'out of memory or device failed: {reason[:200]}')
  except KeyboardInterrupt:
    return interrupted()
  return 0


def _stray(word: str) -> str:
  """What is wrong with a word that is no flag."""
  if 'config' in flags.FLAGS and not flags.FLAGS['config'].present:
    return f'{word}: the name of a config must stand before every flag'
  return f'{word}: not a flag; flags begin with --'


def define_flags(module: types.ModuleType) -> None:
  """Defines the flags of a command; a missing --flagfile is a line.

  The flag --config reads the command line where it is defined.
  """
  try:
    module.define_flags()
  except flags.Error as error:
    sys.exit(fail(_flag_error(error)))


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
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # A name may have any letters.
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
    # An error inside get_config() arrives with its traceback: keep the end.
    traced = re.split(r'^Traceback .*\n(?:  .*\n)+', str(error), flags=re.M)
    if len(traced) == 1:
      sys.exit(fail(_flag_error(error)))
    text = traced[-1]
    if 'get_config() takes 0 positional' in text:
      text = 'takes no argument: leave out the : and what is behind it'
    sys.exit(fail(f'--config {_named(argv)}: {text}'))
  except SystemExit as error:
    frames = traceback.extract_tb(error.__traceback__)
    if not any('config_flags' in frame.filename for frame in frames):
      raise  # As --help ends.
    message = f'--config {_named(argv)}: exits ({error.code})'
    sys.exit(fail(message))
  except Exception as error:  # An unknown key; or a person's own file.
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    kind = type(error).__name__
    if 'ml_collections' in where and kind in ('AttributeError', 'KeyError'):
      # ml_collections quotes the text of a KeyError inside another error.
      kind = 'no such key'
      text = text[1:-1].replace("\\'", "'").replace('\\n', ' ')
    sys.exit(fail(f'--config {_named(argv)}: {kind}: {text}'))


def _flag_error(error: flags.Error) -> str:
  """What absl says about a flag."""
  name = getattr(error, 'flagname', '')
  if name.startswith('config.') and 'config' in flags.FLAGS:
    if not flags.FLAGS['config'].present:
      return f'--{name}: the name of a config must stand before its keys'
  return str(error).removeprefix('ERROR:: ')


def _with_config(argv: Sequence[str]) -> Sequence[str]:
  """The arguments with --config FILE in the place of a first word."""
  if 'config' not in flags.FLAGS or len(argv) < 2 or argv[1].startswith('-'):
    return argv
  found = package_configs.find(argv[1])
  for word in _before_dashes(argv):
    if word.startswith('-') and word.lstrip('-').partition('=')[0] == 'config':
      raise InputError(f'{word}: there is a config already, {argv[1]}')
  return [argv[0], f'--config={found}', *argv[2:]]


def _before_dashes(argv: Sequence[str]) -> Sequence[str]:
  """The arguments up to a `--`, behind which no word is a flag."""
  return argv[1 : argv.index('--') if '--' in argv else None]


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
      '\n\nOptions of the config, with the values of configs/default.py:\n\n'
      + config_text.help_text()
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

    processes.disconnect()


def _machine_errors() -> tuple[type[Exception], ...]:
  """What is raised where memory ends or a device fails."""
  jax = sys.modules.get('jax')
  return (MemoryError, *([jax.errors.JaxRuntimeError] if jax else []))


def _named(argv: Sequence[str]) -> str | None:
  """The file that --config names, if it does, before it is a flag's value."""
  for flag, following in itertools.pairwise([*_before_dashes(argv), '']):
    name, equals, value = flag.lstrip('-').partition('=')
    if name == 'config' and flag.startswith('-'):
      return value if equals else following
  return None


def print_all(text: str) -> int:
  """Prints what was asked for. Returns the exit code."""
  try:
    show(text)
  except OSError as error:
    return _fail(_FAILED, errors.describe(error))
  return 0


def fail(message: object) -> int:
  """Prints a line about bad input. Returns the exit code."""
  return _fail(_BAD_INPUT, message)


def interrupted() -> int:
  """Prints a line about Ctrl-C. Returns the exit code."""
  return _fail(_SIGNAL + signal.SIGINT, 'interrupted')


def _fail(code: int, message: object) -> int:
  line = f'error: {" ".join(str(message).split())}'
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:  # The exit code is all that is left to say it.
    drop(sys.stderr)
  return code
