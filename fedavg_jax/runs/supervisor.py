"""Supervises a distributed process and reports its death in one line.

When another process is gone, JAX's runtime ends a process at once, from its own
thread and with a C++ stack trace; no code in that process can print a plainer
message. So the command runs again as a child. The child's own messages come
through a pipe; the output of the runtime goes to a log file, whose name is
printed if the runtime has ended the child.
"""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading

from absl import logging

_CHILD = 'FEDAVG_JAX_CHILD'  # Holds the file descriptor of the pipe.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_child() -> bool:
  """Returns whether this process is such a child, with an open pipe."""
  try:
    pipe = os.fstat(int(os.environ.get(_CHILD, '')))
  except (ValueError, OverflowError, OSError):
    return False
  return stat.S_ISFIFO(pipe.st_mode)


def live_with_parent() -> None:
  """Redirects messages to the parent's pipe, and exits when the parent dies."""
  sys.stderr = os.fdopen(int(os.environ[_CHILD]), 'w', buffering=1)
  logging.get_absl_handler().python_handler.stream = sys.stderr

  def wait():
    os.read(0, 1)  # Only the end of the parent ends this call.
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def run() -> int:
  """Executes this process's command in a child; returns the exit code."""
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
  for signum in _STOP_SIGNALS:
    signal.signal(signum, lambda signum, frame: child.send_signal(signum))
  reported = False
  with os.fdopen(reading, errors='replace') as lines:
    for line in lines:
      reported = reported or line.startswith(('error: ', 'Traceback '))
      print(line, end='', file=sys.stderr, flush=True)
  code = child.wait()
  if code >= 0 or reported or -code in _STOP_SIGNALS:
    os.unlink(name)
  if code >= 0 or reported:
    return max(code, 1) if code else 0
  if -code in _STOP_SIGNALS:
    print(
      f'error: interrupted by {signal.Signals(-code).name}; rerun the same'
      ' command to resume or start the run',
      file=sys.stderr,
    )
    return 128 - code
  print(
    "error: JAX's runtime has ended this process: another process has ended,"
    ' does not answer or never connected (--connect_seconds), or'
    ' --num_processes or --process_id is wrong; rerun the same command to'
    f' resume from the last checkpoint; the log of the runtime is {name}',
    file=sys.stderr,
  )
  return 1
