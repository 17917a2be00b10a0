"""Runs a system of the benchmark in a separate process."""

from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
from typing import Any
from typing import NamedTuple

from experiments import checkout

_TURN_SECONDS = 1.0


class System(NamedTuple):
  """Describes how a system is started.

  Attributes:
    command: the command of its worker.
    tree: the tree that it runs in and imports; this process's if None.
    first_round: the command that `starts.measure` runs; systems of ours only.
  """

  command: Sequence[Any]
  tree: checkout.Tree | None = None
  first_round: Sequence[Any] = ()


class Racer:
  """Runs one system of a race and records its times.

  Attributes:
    facts: the facts that the system reports at its start.
    commit: the commit of its code; '' for the working tree.
    seconds: seconds per round, one entry per turn that counts.
    rounds: the number of rounds of each turn.
    peak_kib: the peak memory summed over its processes so far, in KiB.
  """

  def __init__(self, command: Sequence[Any], tree: checkout.Tree | None = None):
    """Starts a system and waits for its first answer.

    Args:
      command: the command of its worker.
      tree: the tree that it runs in and imports; this process's if None.

    Raises:
      ChildProcessError: the process has ended without an answer.
    """
    self._errors = tempfile.TemporaryFile('w+', encoding='utf-8')
    self._process = subprocess.Popen(
      [str(part) for part in command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      start_new_session=True,
      text=True,
      cwd=tree.folder if tree else None,
      env=tree.environment() if tree else None,
    )
    self.commit = tree.commit if tree else ''
    self.seconds: list[float] = []
    self.rounds = 1
    self.peak_kib = 0
    try:
      self.facts = self._answer()
    except (KeyboardInterrupt, SystemExit):
      self.close()
      raise

  def turn(self, *, counts: bool) -> None:
    """Lets the system take one turn, which is `rounds` rounds.

    Args:
      counts: whether its seconds are recorded. Otherwise it is a warm-up, and
        decides how many rounds fill a turn.
    """
    assert self._process.stdin
    self._process.stdin.write(f'{self.rounds}\n')
    self._process.stdin.flush()
    answer = self._answer()
    seconds = answer['seconds'] / self.rounds
    self.peak_kib = max(self.peak_kib, _peak_kib(self._process.pid))
    if counts:
      self.seconds.append(seconds)
    else:
      self.rounds = max(1, round(_TURN_SECONDS / seconds))

  def close(self) -> None:
    """Ends the process and its descendants."""
    assert self._process.stdin and self._process.stdout
    self._process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    line = self._process.stdout.readline()
    if not line:
      self._errors.seek(0)
      last = self._errors.read().strip().splitlines()[-1:]
      self.close()
      raise ChildProcessError(f'ended: {" ".join(last) or "no message"}')
    return json.loads(line)


def _peak_kib(pid: int) -> int:
  """Sums the peak memory of a process and all its descendants; Linux only."""
  parents, peaks = {}, {}
  for status in pathlib.Path('/proc').glob('[0-9]*/status'):
    with contextlib.suppress(OSError, KeyError):  # It may have just ended.
      lines = status.read_text().splitlines()
      facts = dict(line.split(':', 1) for line in lines if ':' in line)
      parents[int(facts['Pid'])] = int(facts['PPid'])
      peaks[int(facts['Pid'])] = int(facts['VmHWM'].split()[0])

  def descends(process: int) -> bool:
    while process and process != pid:
      process = parents.get(process, 0)
    return process == pid

  return sum(peak for process, peak in peaks.items() if descends(process))
