"""Runs many commands as forks of a process that imports modules once."""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from tests.testing import PROGRAMS


class Outcome(NamedTuple):
  """Holds the outcome of a command.

  Attributes:
    code: the exit code.
    out: the standard output.
    err: the standard error.
    jax: whether JAX was imported.

  """

  code: int
  out: str
  err: str
  jax: bool

  def assert_one_line(self, *words, code=2):
    assert self.code == code, self
    # A run prints its name before it imports JAX, and that it compiles.
    assert not self.out if not self.jax else self.out.count('\n') <= 2
    (line,) = self.err.splitlines()
    assert line.startswith('error: ') and len(line) < 400
    for word in words:
      assert word in line


class CommandServer:
  """Runs commands as forks of a process that has imported some modules."""

  def __init__(self, folder: pathlib.Path, modules: Sequence[str], **env: str):
    self._folder, self._number = folder, 0
    self._process = subprocess.Popen(
      [sys.executable, PROGRAMS / 'command_server.py', *modules],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | env,
      text=True,
      bufsize=1,
    )

  def run(self, folder, *args, module='fedavg_jax', reader=True) -> Outcome:
    """Executes `python -m MODULE ARGS` in a folder."""
    self._number += 1
    own = self._folder / f'{self._number}'
    own.mkdir()
    case = {name: str(own / name) for name in ('out', 'err', 'jax')}
    case |= {'folder': str(folder), 'args': [str(arg) for arg in args]}
    case |= {'module': module, 'reader': reader}
    self._process.stdin.write(json.dumps(case) + '\n')
    code = int(self._process.stdout.readline())
    out = (own / 'out').read_text() if reader else ''
    jax = (own / 'jax').exists() and json.loads((own / 'jax').read_text())
    return Outcome(code, out, (own / 'err').read_text(), jax)

  def close(self):
    self._process.stdin.close()
    assert self._process.wait(timeout=60) == 0
    self._process.stdout.close()
