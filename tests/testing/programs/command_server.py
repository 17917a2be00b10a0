"""Is the command again and again: every case of its input is a fork of it.

A case is a line of JSON: the folder to run in, the arguments, the files for
standard output and error. The answer is a line with the exit code.
"""

import json
import os
import sys
import traceback
import warnings

from fedavg_jax.cli import dispatch
from fedavg_jax.cli import partition
from fedavg_jax.cli import run
from fedavg_jax.cli import sweep

# Imported once, for all forks.
IMPORTED = (partition, run, sweep)


def run_case(case) -> int:
  """Runs a case in this process. Returns the exit code."""
  os.chdir(case['folder'])
  for number, name in ((0, os.devnull), (1, case['out']), (2, case['err'])):
    mode = os.O_RDWR | os.O_CREAT
    os.dup2(os.open(name, mode, 0o600), number)
  command, *arguments = sys.argv[1:] = case['args']
  try:
    dispatch.start(command, arguments)
  except SystemExit as error:
    if isinstance(error.code, int) or error.code is None:
      return error.code or 0
    print(error.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
  return 1


warnings.simplefilter('ignore')
for line in sys.stdin:
  child = os.fork()
  if not child:
    exit_code = run_case(json.loads(line))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
