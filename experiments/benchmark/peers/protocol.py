"""How `experiments.benchmark` talks to the systems that it races.

Each system is a process of its own. It gets a workload as JSON on its command
line, says on standard output what it is, then answers every line of standard
input, a number of rounds, with the seconds that they took. Needs Python alone.
"""

from collections.abc import Callable
import functools
import json
import os
import sys
import time
from typing import Any


@functools.cache
def _answers():
  """Where standard output went; libraries print to standard error from now."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  return answers


def workload() -> dict[str, Any]:
  """The workload, as `workloads.Workload.as_dict` wrote it."""
  _answers()
  return json.loads(sys.argv[1])


def answer(**content: Any) -> None:
  """Writes one answer."""
  _answers().write(json.dumps(content) + '\n')
  _answers().flush()


def asked() -> int | None:
  """Waits for a line; the number of rounds it asks for, None at the end."""
  line = sys.stdin.readline()
  return int(line) if line.strip() else None


def serve(run_rounds: Callable[[int], Any], **facts: Any) -> None:
  """Answers until standard input ends.

  Args:
    run_rounds: runs so many rounds and returns when they are done.
    **facts: what the system says of itself, in its first answer.
  """
  answer(**facts)
  while (rounds := asked()) is not None:
    start = time.perf_counter()
    run_rounds(rounds)
    answer(seconds=time.perf_counter() - start)


class Turns:
  """For systems that run their own loop over rounds: it waits its turn.

  Attributes:
    left: rounds of this turn that are still to be done.
  """

  def __init__(self):
    self.left = 0
    self._start = 0.0

  def between_rounds(self) -> bool:
    """Call it before the first round and after each; False ends the loop."""
    if self.left:
      self.left -= 1
      if not self.left:
        answer(seconds=time.perf_counter() - self._start)
    if not self.left:
      rounds = asked()
      if rounds is None:
        return False
      self.left = rounds
      self._start = time.perf_counter()
    return True
