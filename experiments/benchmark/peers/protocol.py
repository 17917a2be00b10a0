"""Defines the protocol between `experiments.benchmark` and its systems.

Each system is a separate process. It gets a workload as JSON on its command
line and writes facts about itself to standard output. It then answers every
line of standard input, a number of rounds, with the seconds that they took.
This module needs only the standard library.
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
  """Returns the original standard output.

  From the first call on, standard output goes to standard error, so that what
  libraries print is not taken for an answer.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  return answers


def workload() -> dict[str, Any]:
  """Returns the workload of `workloads.Workload.as_dict`."""
  _answers()
  return json.loads(sys.argv[1])


def answer(**content: Any) -> None:
  """Writes one answer."""
  _answers().write(json.dumps(content) + '\n')
  _answers().flush()


def next_request() -> int | None:
  """Waits for a request; returns its number of rounds, None at the end."""
  line = sys.stdin.readline()
  return int(line) if line.strip() else None


def serve(run_rounds: Callable[[int], Any], **facts: Any) -> None:
  """Answers until standard input ends.

  Args:
    run_rounds: a function that runs a number of rounds, and returns when they
      are done.
    **facts: facts about the system, which are its first answer.
  """
  answer(**facts)
  while (rounds := next_request()) is not None:
    start = time.perf_counter()
    run_rounds(rounds)
    answer(seconds=time.perf_counter() - start)


class Turns:
  """Makes a system that runs its own loop over rounds wait for its turns.

  Attributes:
    left: the number of rounds of this turn that remain.
  """

  def __init__(self):
    self.left = 0
    self._start = 0.0

  def between_rounds(self) -> bool:
    """Waits for the next turn once the current one is over.

    The loop calls it before the first round and after each round.

    Returns:
      Whether the loop continues; False ends it.
    """
    if self.left:
      self.left -= 1
      if not self.left:
        answer(seconds=time.perf_counter() - self._start)
    if not self.left:
      rounds = next_request()
      if rounds is None:
        return False
      self.left = rounds
      self._start = time.perf_counter()
    return True
