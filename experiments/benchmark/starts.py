"""How long systems of ours take from a process's start to its first round.

Each is started anew so many times, one after the other in turns; only one of
them runs at a time. A first start of each, which writes Python's bytecode and
warms the file cache, does not count.
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
  """Seconds since the start of the process, an entry per start.

  Attributes:
    started: until everything is imported.
    ready: until the first round's result has arrived: data, compilation and
      round 1 included.
  """

  started: list[float]
  ready: list[float]


def measure(systems: Mapping[str, System], times: int) -> dict[str, Starts]:
  """Starts every system so many times; reports and leaves out those that fail.

  Args:
    systems: with a command for their first round.
    times: that count.
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
        print(f'{name}: does not reach its first round, left out: {error}')
        found.pop(name)
        continue
      if number:
        found[name].started.append(started)
        found[name].ready.append(ready)
  return found


def add(rows: list[dict[str, Any]], found: Mapping[str, Starts]) -> None:
  """Adds what was measured to the rows of the systems, the engine's first."""
  ours = found.get('fedavg_jax')
  for row in rows:
    if (mine := found.get(row['system'])) is None:
      continue
    row |= {'started_seconds': mine.started, 'ready_seconds': mine.ready}
    if ours is not None:
      row['ready_ratio_to_ours'] = statistics.median(
        mine.ready
      ) / statistics.median(ours.ready)
