"""The command line: flags, one call, one line for what a person can mend.

Kept short: everything else lives in modules that a notebook can import.
"""

from collections.abc import Sequence
import itertools
import os
import pathlib
import re
import signal
import sys
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags

from fedavg_jax import train
from fedavg_jax.errors import DivergedError
from fedavg_jax.errors import InputError
from fedavg_jax.errors import StoppedError
from fedavg_jax.progress import say
from fedavg_jax.workdir import default_workdir

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of a setting, configs/NAME.py or configs/NAME.py:ARG.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'New folder for results, or that of an interrupted run, which then goes on;'
  ' default outputs/<date>/<time>_...',
)
_RESUME = flags.DEFINE_enum(
  'resume',
  'auto',
  ['auto', 'extend'],
  'auto: goes on with the config it began with. extend: with more rounds.',
)

# Exit codes: 2 for what was asked, 1 for what the machine could not do, 3 for
# training that left the finite numbers; as shells have it for signals, 130 for
# Ctrl-C and 143 for SIGTERM.
_FAILED, _BAD_INPUT, _DIVERGED, _SIGNAL = 1, 2, 3, 128


def main(argv: Sequence[str]) -> int:
  """Runs one setting. Returns the exit code."""
  if len(argv) > 1:
    return _fail(_BAD_INPUT, f'{argv[1]}: not a flag; flags begin with --')
  flag: Any = flags.FLAGS['config']
  if not flag.present or not flag.config_filename:
    return _fail(_BAD_INPUT, '--config is missing: name a file of configs/')
  source = flag.config_filename
  path, *argument = source.split(':')
  if not pathlib.Path(path).is_file():
    return _fail(_BAD_INPUT, f'--config {source}: there is no such file')
  if not isinstance(_CONFIG.value, ml_collections.ConfigDict):
    return _fail(_BAD_INPUT, f'{source}: get_config() must return a ConfigDict')
  name = '_'.join([pathlib.Path(path).stem, *argument])
  if _WORKDIR.value == '':
    return _fail(_BAD_INPUT, '--workdir is empty: name a new folder')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells its life story.
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  workdir = pathlib.Path(
    os.path.expanduser(_WORKDIR.value or default_workdir(name))
  )
  try:
    summary = train.train(
      _CONFIG.value, workdir, extend=_RESUME.value == 'extend'
    )
  except InputError as error:
    return _fail(_BAD_INPUT, error)
  except DivergedError as error:
    return _fail(_DIVERGED, error)
  except OSError as error:
    what = error.filename or f'workdir = {workdir}'
    return _fail(_FAILED, f'{what}: {error.strerror or error}')
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _fail(_FAILED, f'out of memory or device failed: {reason[:200]}')
  except StoppedError as error:
    code = _fail(_SIGNAL + error.signum, f'interrupted: {error}')
    sys.stdout.flush()
    # Python would wait for the rounds in line, which nobody needs any more.
    os._exit(code)
  except KeyboardInterrupt:
    return _fail(_SIGNAL + signal.SIGINT, 'interrupted')
  say(
    f'{summary["status"]} after {summary["rounds"]} rounds: test accuracy'
    f' {summary["final_test_accuracy"]:.4f} (best'
    f' {summary["best_test_accuracy"]:.4f}),'
    f' {summary["rounds_per_second"]:.3g} rounds/s; results in {workdir}'
  )
  if summary.get('skipped_clients'):
    say(
      f'{summary["skipped_clients"]} times a client was left out, whose numbers'
      ' were not finite'
    )
  return 0


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:
      # Closed by who has started us: no file of ours may take its number.
      os.dup2(os.open(os.devnull, os.O_WRONLY), number)
      setattr(sys, name, os.fdopen(number, 'w'))
  logging.set_verbosity(logging.ERROR)  # What is wrong is told in one line.
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # An error inside get_config() arrives with its traceback: keep the end.
    traced = re.split(r'^Traceback .*\n(?:  .*\n)+', str(error), flags=re.M)
    if len(traced) == 1:
      sys.exit(_fail(_BAD_INPUT, error))
    sys.exit(_fail(_BAD_INPUT, f'--config{_named(argv)}: {traced[-1]}'))
  except SystemExit as error:
    frames = traceback.extract_tb(error.__traceback__)
    if not any('config_flags' in frame.filename for frame in frames):
      raise  # As --help ends.
    message = f'--config{_named(argv)}: exits ({error.code})'
    sys.exit(_fail(_BAD_INPUT, message))
  except Exception as error:  # An unknown key; or a person's own file.
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    kind = type(error).__name__
    if 'ml_collections' in where and kind in ('AttributeError', 'KeyError'):
      # ml_collections quotes the text of a KeyError inside another error.
      kind = 'no such key'
      text = text[1:-1].replace("\\'", "'").replace('\\n', ' ')
    sys.exit(_fail(_BAD_INPUT, f'--config{_named(argv)}: {kind}: {text}'))


def _named(argv: Sequence[str]) -> str:
  """The file that --config names, before it is a flag's value."""
  for flag, following in itertools.pairwise([*argv, '']):
    name, equals, value = flag.lstrip('-').partition('=')
    if name == 'config':
      return f' {value if equals else following}'
  return ''


def _fail(code: int, message: object) -> int:
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  return code


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
