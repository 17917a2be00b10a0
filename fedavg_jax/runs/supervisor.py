"""A parent that says in one line that one of several processes was ended.

JAX's runtime ends a process at once, from a thread of its own and with a stack
of C++, where another one has gone: nothing inside that process can say it in
plainer words. So the command runs again as a child. What the child itself
prints for people comes through a pipe; what the runtime writes goes to a log,
which is named where the runtime has ended the child.
"""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading

from absl import logging

_CHILD = 'FEDAVG_JAX_CHILD'  # The pipe, by its number.
_WAYS_TO_ASK = (signal.SIGINT, signal.SIGTERM)


def is_child() -> bool:
  """Tells whether this process has such a parent, whose pipe is open."""
  try:
    pipe = os.fstat(int(os.environ.get(_CHILD, '')))
  except (ValueError, OverflowError, OSError):
    return False
  return stat.S_ISFIFO(pipe.st_mode)


def live_with_parent() -> None:
  """Prints into the parent's pipe, and ends as soon as the parent has gone."""
  sys.stderr = os.fdopen(int(os.environ[_CHILD]), 'w', buffering=1)
  logging.get_absl_handler().python_handler.stream = sys.stderr

  def wait():
    os.read(0, 1)  # Nothing ever comes but the end.
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def run() -> int:
  """Runs this process's command as a child. Returns the exit code."""
  reading, writing = os.pipe()
  log, name = tempfile.mkstemp(prefix='fedavg_jax-', suffix='.log')
  child = subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:]],
    env=os.environ | {_CHILD: str(writing)},
    stdin=subprocess.PIPE,
    stderr=log,
    pass_fds=[writing],
  )
  for descriptor in (writing, log):
    os.close(descriptor)
  for signum in _WAYS_TO_ASK:
    signal.signal(signum, lambda signum, frame: child.send_signal(signum))
  said = False
  with os.fdopen(reading, errors='replace') as lines:
    for line in lines:
      said = said or line.startswith(('error: ', 'Traceback '))
      print(line, end='', file=sys.stderr, flush=True)
  code = child.wait()
  if code >= 0 or said or -code in _WAYS_TO_ASK:
    os.unlink(name)
  if code >= 0 or said:
    return max(code, 1) if code else 0
  if -code in _WAYS_TO_ASK:
    print(
      f'error: interrupted by {signal.Signals(-code).name}; the same command'
      ' continues, or begins, the run',
      file=sys.stderr,
    )
    return 128 - code
  print(
    "error: JAX's runtime has ended this process: another one has ended, does"
    ' not answer or never came (--connect_seconds), or --num_processes or'
    ' --process_id are not as they must be; the same command resumes from the'
    f' last checkpoint; the log of the runtime is {name}',
    file=sys.stderr,
  )
  return 1
