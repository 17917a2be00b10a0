"""Simulates asynchronous clients: which updates arrive when, and how stale.

A number of clients trains at any time, the concurrency. Each starts from the
model that the server then has and sends its update when its work is done; then
the next client starts. After every `buffer` updates the server makes a new
model: a round, as in FedBuff (Nguyen et al. 2022, "Federated Learning with
Buffered Asynchronous Aggregation", Algorithm 1). A client whose update waits in
the buffer does not start again before the round ends. NumPy only.

Shape letters: K clients, M updates of a round (the buffer).
"""

from collections.abc import Sequence
import heapq
import threading
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.errors import InputError

# A stream of random numbers; sampling.py, participation.py, clock.py and
# partition/ have others.
_STARTS = 7


class Arrived(NamedTuple):
  """Holds the updates of one round, in the order of their arrival.

  Attributes:
    clients: [M] int64, the clients, all different.
    staleness: [M] int32, rounds between the model from which a client started
      and the newest model when the round ends; 0 is the newest.
    started: the number of clients that started since the round before.
    finished: the number of clients that sent an update since then; those that
      are too stale are not among `clients`.
    time: the simulated time in seconds at which the round ends.
  """

  clients: np.ndarray
  staleness: np.ndarray
  started: int
  finished: int
  time: float


class Arrivals:
  """Simulates the events of all rounds, as far as they have been requested.

  Everything follows from the seed and the durations, so that a resumed run has
  the same arrivals.

  >>> arrivals = Arrivals(
  ...   np.array([1.0, 1.0, 1.0, 5.0]), concurrency=2, buffer=2,
  ...   most_staleness=9, seed=0)
  >>> first = arrivals.of_round(1)
  >>> len(first.clients), first.staleness.tolist(), first.started
  (2, [0, 0], 3)
  """

  def __init__(
    self,
    seconds: np.ndarray | Sequence[float],
    *,
    concurrency: int,
    buffer: int,
    most_staleness: int,
    seed: int,
  ):
    """Starts the first clients, at time 0.

    Args:
      seconds: [K] simulated seconds from the start of a client to the arrival
        of its update; a client with infinity is never drawn.
      concurrency: the number of clients that train at any time.
      buffer: M, the updates of a round, at most the concurrency.
      most_staleness: the staleness above which an update is discarded.
      seed: the seed of the run.

    Raises:
      InputError: there are too few clients, or the buffer is too large.
    """
    self._seconds = np.asarray(seconds, np.float64)
    self._idle = np.flatnonzero(np.isfinite(self._seconds)).tolist()
    check(len(self._idle), concurrency=concurrency, buffer=buffer)
    self._concurrency, self._buffer = concurrency, buffer
    self._most = most_staleness
    self._rng = np.random.default_rng([seed, _STARTS])
    self._training: list[tuple[float, int, int, int]] = []
    self._rounds: list[Arrived] = []
    self._starts = self._started = self._finished = 0
    self._arrived: list[tuple[int, int]] = []  # Client, version.
    self._lock = threading.Lock()  # Threads that prefetch plan rounds too.
    self._start_clients(0.0)

  def of_round(self, number: int) -> Arrived:
    """Returns the arrivals of a round, by its number from 1."""
    with self._lock:
      while len(self._rounds) < number:
        self._next_arrivals()
    return self._rounds[number - 1]

  def _start_clients(self, now: float) -> None:
    """Starts idle clients, drawn uniformly, from the newest model."""
    while self._idle and len(self._training) < self._concurrency:
      place = int(self._rng.integers(len(self._idle)))
      self._idle[place], self._idle[-1] = self._idle[-1], self._idle[place]
      client = self._idle.pop()
      ends = now + float(self._seconds[client])
      event = ends, self._starts, client, len(self._rounds)
      heapq.heappush(self._training, event)
      self._starts += 1
      self._started += 1

  def _next_arrivals(self) -> None:
    """Lets all updates of the next instant arrive, then starts as many."""
    now = self._training[0][0]
    while self._training and self._training[0][0] == now:
      _, _, client, version = heapq.heappop(self._training)
      self._finished += 1
      if len(self._rounds) - version > self._most:
        self._idle.append(client)
        continue
      self._arrived.append((client, version))
      if len(self._arrived) == self._buffer:
        self._end_round(now)
    self._start_clients(now)

  def _end_round(self, now: float) -> None:
    """Makes a round of the updates in the buffer; its clients become idle."""
    clients, versions = np.array(self._arrived, np.int64).T
    staleness = (len(self._rounds) - versions).astype(np.int32)
    self._rounds.append(
      Arrived(clients, staleness, self._started, self._finished, now)
    )
    self._started = self._finished = 0
    self._idle += clients.tolist()
    self._arrived = []


def check(num_clients: int, *, concurrency: int, buffer: int) -> None:
  """Raises InputError unless the buffer fills and every client finds work.

  Args:
    num_clients: the clients that can be drawn.
    concurrency: the number of clients that train at any time.
    buffer: M, the updates of a round.
  """
  if not 1 <= buffer <= concurrency:
    raise InputError(
      f'buffer = {buffer}: must be in [1, {concurrency}], the clients that'
      ' train at the same time'
    )
  if num_clients < concurrency:
    raise InputError(
      f'client_fraction: lets {concurrency} clients train at the same time, but'
      f' only {num_clients} have examples'
    )
