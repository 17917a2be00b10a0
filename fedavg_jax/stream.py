"""The cohort's examples alone on the device, read while it still trains others.

For populations that fit in no memory: the clients' arrays may be memory maps,
of which only the cohort's rows are read, two rounds ahead, by threads. A plan
then counts rows in the round's own buffer; the rest of a round is the same, bit
for bit.

Shape letters: N rows of a buffer, enough for the largest cohort there can be.
"""

from collections.abc import Sequence
import concurrent.futures
import queue
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.clients import Clients
from fedavg_jax.plan import Planner

# Rounds that are read before they are asked for.
_AHEAD = 2


class Buffer(NamedTuple):
  """Examples of a cohort, client after client in the order it was drawn.

  Attributes:
    x: [N, ...]; rows behind the last client are anybody's.
    y: [N, ...].
    row: [N] int32, where each stands among all clients' examples.
  """

  x: Any
  y: Any
  row: Any


def shapes(clients: Clients, planner: Planner) -> Buffer:
  """What a buffer of a population looks like, without its content."""
  number = planner.buffer_examples

  def like(array):
    return jax.ShapeDtypeStruct((number, *array.shape[1:]), array.dtype)

  return Buffer(
    like(clients.x),
    like(clients.y),
    jax.ShapeDtypeStruct((number,), np.dtype(np.int32)),
  )


class Stream:
  """Gives the buffers of rounds, one after another.

  Attributes:
    waited: seconds that `__call__` has waited for the disk, of all rounds.
  """

  def __init__(
    self, clients: Clients, planner: Planner, mesh: jax.sharding.Mesh
  ):
    """Reads nothing yet.

    Args:
      clients: whose arrays may be memory maps.
      planner: of the rounds.
      mesh: devices that each get the whole buffer.
    """
    self.waited = 0.0
    self._clients, self._planner = clients, planner
    self._everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    self._loading: dict[int, concurrent.futures.Future] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor(_AHEAD)
    # Host memory that is read into, again and again. Not on a CPU: there an
    # array may be the memory that it was made of.
    self._reuses = mesh.devices.flat[0].platform != 'cpu'
    self._free: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(_AHEAD):
      self._free.put(self._host_buffer())

  def __call__(self, numbers: Sequence[int]) -> Any:
    """The buffer of a call's only round; begins to read the next ones."""
    (number,) = numbers
    for later in [n for n in self._loading if n != number]:
      if not number < later <= number + _AHEAD:
        self._loading.pop(later).cancel()  # Of rounds that never came.
    for n in range(number, number + _AHEAD + 1):
      if n not in self._loading:
        self._loading[n] = self._pool.submit(self._load, n)
    begin = time.perf_counter()
    buffer = self._loading.pop(number).result()
    self.waited += time.perf_counter() - begin
    return buffer

  def _load(self, number: int) -> Buffer:
    host = self._free.get()
    try:
      x, y, row = host
      position = 0
      for k in self._planner.cohort(number):
        first, stop = self._clients.offsets[k : k + 2]
        here = slice(position, position + int(stop - first))
        x[here] = self._clients.x[first:stop]
        y[here] = self._clients.y[first:stop]
        row[here] = np.arange(first, stop)
        position = here.stop
      buffer = jax.device_put(Buffer(x, y, row), self._everywhere)
      return jax.block_until_ready(buffer)  # Before the memory is used again.
    finally:
      self._free.put(host if self._reuses else self._host_buffer())

  def _host_buffer(self) -> Buffer:
    return jax.tree.map(
      lambda own: np.zeros(own.shape, own.dtype),
      shapes(self._clients, self._planner),
    )
