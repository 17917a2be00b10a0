"""Measures the seconds from the start of a process to its first round.

Systems of ours are started several times each; they alternate, and only one of
them runs at a time. The first start of each, which writes Python's bytecode and
warms the file cache, is not counted.
"""

from collections.abc import Mapping
import pathlib
import statistics
import time
from typing import Any
from typing import NamedTuple

from experiments import checkout
from experiments.benchmark.racer import Racer
from experiments.benchmark.racer import System

FIRST_ROUND = pathlib.Path(__file__).with_name('first_round.py')


class Starts(NamedTuple):
  """Holds seconds since the start of the process, one entry per start.

  Attributes:
    started: seconds until everything is imported.
    ready: seconds until the first round's result has arrived, including data,
      compilation and round 1.
  """

  started: list[float]
  ready: list[float]


def measure(systems: Mapping[str, System], times: int) -> dict[str, Starts]:
  """Starts every system several times; reports and drops those that fail.

  Args:
    systems: name -> a system that has a `first_round` command.
    times: the number of starts that are counted.
  """
  found = {name: Starts([], []) for name in systems}
  for number in range(times + 1):
    for name in list(found):
      begin = time.perf_counter()
      try:
        system = systems[name]
        racer = Racer(system.first_round, system.tree or checkout.here())
        started = time.perf_counter() - begin
        try:
          racer.turn(counts=True)
          ready = time.perf_counter() - begin
        finally:
          racer.close()
      except ChildProcessError as error:
        print(f'{name}: fails before its first round, left out: {error}')
        found.pop(name)
        continue
      if number:
        found[name].started.append(started)
        found[name].ready.append(ready)
  return found


def add(rows: list[dict[str, Any]], found: Mapping[str, Starts]) -> None:
  """Adds the measured seconds to the rows of the systems.

  Args:
    rows: the rows of `race.rows`, changed in place.
    found: the result of `measure`.
  """
  ours = found.get('fedavg_jax')
  for row in rows:
    if (mine := found.get(row['system'])) is None:
      continue
    row |= {'started_seconds': mine.started, 'ready_seconds': mine.ready}
    if ours is not None:
      row['ready_ratio_to_ours'] = statistics.median(
        mine.ready
      ) / statistics.median(ours.ready)
