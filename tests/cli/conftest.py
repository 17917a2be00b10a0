"""Commands by the dozen, from one process that has imported them once."""

import json
import subprocess
import sys
from typing import NamedTuple

import pytest

# Each command is a fork with its own arguments, folder, files and exit code,
# which writes down whether it has imported JAX.
SERVER = """
import importlib, json, os, runpy, sys, traceback
from fedavg_jax.cli import dispatch
for name in dispatch.COMMANDS:
  importlib.import_module(f'fedavg_jax.cli.{name}')
for line in sys.stdin:
  case = json.loads(line)
  child = os.fork()
  if not child:
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
    except BaseException:
      traceback.print_exc()
      code = 1
    try:
      sys.stdout.flush()
    except OSError:
      traceback.print_exc()  # As Python does at its end.
      code = 120
    with open(case['jax'], 'w') as file:
      json.dump('jax' in sys.modules, file)
    sys.stderr.flush()
    os._exit(code)
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Outcome(NamedTuple):
  """How a command has ended.

  Attributes:
    code: the exit code.
    out: what is on stdout.
    err: what is on stderr.
    jax: whether JAX was imported.
  """

  code: int
  out: str
  err: str
  jax: bool

  def assert_one_line(self, *words, code=2):
    assert self.code == code, self
    assert not self.out
    (line,) = self.err.splitlines()
    assert line.startswith('error: ') and len(line) < 400
    for word in words:
      assert word in line


@pytest.fixture(scope='session')
def _server():
  process = subprocess.Popen(
    [sys.executable, '-c', SERVER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    bufsize=1,
  )
  yield process
  process.stdin.close()
  assert process.wait(timeout=60) == 0
  process.stdout.close()


@pytest.fixture
def command(_server, tmp_path, tmp_path_factory):
  """Runs `python -m fedavg_jax ARGS` in `tmp_path`."""

  def run(*args, module='fedavg_jax', reader=True):
    own = tmp_path_factory.mktemp('command')
    case = {name: str(own / name) for name in ('out', 'err', 'jax')}
    case |= {'folder': str(tmp_path), 'args': args}
    case |= {'module': module, 'reader': reader}
    _server.stdin.write(json.dumps(case) + '\n')
    code = int(_server.stdout.readline())
    out = (own / 'out').read_text() if reader else ''
    jax = json.loads((own / 'jax').read_text())
    return Outcome(code, out, (own / 'err').read_text(), jax)

  return run
