"""Runs commands, each as a fork of this process.

command_server.py MODULE ...

Imports the modules once, for all forks. A case is a line of JSON; the answer is
a line with the exit code. Each fork has its own arguments, folder and files,
and records whether JAX is imported at its end.

"""

import gc
import importlib
import json
import os
import runpy
import sys
import traceback
import warnings


def run_case(case) -> int:
  """Executes a case in this process; returns the exit code."""
  os.chdir(case['folder'])
  mode = os.O_RDWR | os.O_CREAT
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(os.open(case['err'], mode, 0o600), 2)
  if case['reader']:
    os.dup2(os.open(case['out'], mode, 0o600), 1)
  else:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
  code = 0
  try:
    sys.argv = [case['module'], *case['args']]
    runpy.run_module(case['module'], run_name='__main__', alter_sys=True)
  except SystemExit as error:
    code = error.code or 0
    if not isinstance(code, int):
      print(code, file=sys.stderr)
      code = 1
  except BaseException:
    traceback.print_exc()
    code = 1
  try:
    sys.stdout.flush()
  except OSError:
    traceback.print_exc()  # Python does so at its end.
    code = 120
  with open(case['jax'], 'w') as file:
    json.dump('jax' in sys.modules, file)
  sys.stderr.flush()
  return code


warnings.simplefilter('ignore')
for module in sys.argv[1:]:
  importlib.import_module(module)
gc.freeze()  # Forks copy what a collection touches.
for line in sys.stdin:
  child = os.fork()
  if not child:
    os._exit(run_case(json.loads(line)))
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
