"""A parent that tells in one line how one of several processes has ended.

JAX's runtime ends a process at once, from a thread of its own and with a stack
of C++, where another one has gone: nothing inside that process can say it in
plainer words. So the command runs again as a child, and this parent, which does
nothing else, hands on what the child says and how it ends.
"""

import os
import re
import signal
import subprocess
import sys
import threading

_CHILD = 'FEDAVG_JAX_CHILD'
# What the runtime writes: log lines of C++, which name its files, and stacks.
_NATIVE = re.compile(
  r'[IWEF]\d{4} [\d:.]+ +\d+ [\w./-]+\.(cc|cpp|cu|h):\d+\]|WARNING: All log'
  r'|\s+@ +0x|\*\*\* |Additional GRPC|:UNKNOWN|RPC: |$'
)
# After an error of the runtime, what its text goes on with, up to one of these.
_ERROR = re.compile(r'[EF]\d{4} [\d:.]+ +\d+ [\w./-]+\.(cc|cpp|cu|h):')
_OURS = re.compile(r'error: |Traceback |[IWEF]\d{4} .*\.py:\d+\]|.*\.py:\d+: ')
_FATAL = re.compile(r'F\d{4} \d\d:\d\d:\d\d')
_WAYS_TO_ASK = (signal.SIGINT, signal.SIGTERM)
# What a fatal line has in it, and what has gone wrong then.
_REASONS = (
  (
    'Unexpected task',
    '--num_processes: process 0 was started with fewer; must be the same for'
    ' every process',
  ),
  (
    'incarnation',
    '--process_id: two processes have the same; each must have its own',
  ),
  (
    'RegisterTask',
    '--num_processes: not so many processes came in time (--connect_seconds);'
    ' must be the same for every process, and each must be started',
  ),
  (
    '',
    'another process has ended, or does not answer any more, so this one has'
    ' ended too; the same command goes on from the last checkpoint',
  ),
)


def is_child() -> bool:
  """Whether this process has such a parent."""
  return _CHILD in os.environ


def end_with_parent() -> None:
  """Ends this process as soon as its parent has gone."""

  def wait():
    os.read(0, 1)  # Nothing ever comes but the end.
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def run() -> int:
  """Runs this process's command as a child. Returns the exit code."""
  child = subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:]],
    env=os.environ | {_CHILD: '1'},
    stdin=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
  )
  for signum in _WAYS_TO_ASK:
    signal.signal(signum, lambda signum, frame: child.send_signal(signum))
  assert child.stderr
  told, theirs, fatal = False, False, ''
  for line in child.stderr:
    if fatal or _FATAL.match(line):
      fatal += line
    told = told or line.startswith(('error: ', 'Traceback '))
    theirs = bool(_ERROR.match(line)) or (theirs and not _OURS.match(line))
    if not (theirs or _NATIVE.match(line)):
      print(line, end='', file=sys.stderr, flush=True)
  code = child.wait()
  if told or (code >= 0 and not fatal):
    return code if code >= 0 else 1
  if -code in _WAYS_TO_ASK:
    print('error: interrupted before round 1', file=sys.stderr)
    return 128 - code
  reason = f'the process was ended by signal {-code}'
  if fatal:
    reason = next(text for key, text in _REASONS if key in fatal)
  print(f'error: {reason}', file=sys.stderr)
  return 1
