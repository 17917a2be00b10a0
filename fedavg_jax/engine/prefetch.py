"""Prefetches each cohort's examples to the devices.

This serves populations that do not fit into memory: threads read only the rows
of cohorts, two rounds ahead. Each device receives the rows of its own lanes,
and each process reads those of its own devices. A plan then counts rows in the
buffer of its device; the results of a round are equal bit for bit.

Shape letters: N rows of a device's buffer, enough for any cohort; D devices.
"""

from collections.abc import Sequence
import concurrent.futures
import queue
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.schedule.planning import Planner

# The number of rounds that are read ahead.
AHEAD = 2


class Buffer(NamedTuple):
  """Holds the examples of a cohort, grouped by the device that trains them.

  Attributes:
    x: [D * N, ...] inputs, or a tree; rows after a device's last client are
      arbitrary.
    y: [D * N, ...] targets, or a tree.
    row: [D * N] int32, the row of each example among those of all clients.
  """

  x: Any
  y: Any
  row: Any


def shapes(clients: Clients, planner: Planner) -> Buffer:
  """Returns the shapes of the buffers of all devices, [D * N, ...]."""
  return _shapes(clients, planner.num_devices * planner.buffer_examples)


def _shapes(clients: Clients, number: int) -> Buffer:
  """Returns the shapes of a buffer with a given number of rows."""

  def like(array):
    return jax.ShapeDtypeStruct((number, *array.shape[1:]), array.dtype)

  return Buffer(
    trees.map_arrays(like, clients.x),
    trees.map_arrays(like, clients.y),
    jax.ShapeDtypeStruct((number,), np.dtype(np.int32)),
  )


class Stream:
  """Reads the buffers of rounds, one after another.

  Attributes:
    waited: the time in seconds that all calls have waited for the disk.
  """

  def __init__(
    self, clients: Clients, planner: Planner, mesh: jax.sharding.Mesh
  ):
    """Starts the threads, and reads nothing yet.

    Args:
      clients: the clients, whose arrays may be memory maps.
      planner: the planner of the rounds.
      mesh: the planner's devices.
    """
    self.waited = 0.0
    self._clients, self._planner = clients, planner
    self._sharding = jax.sharding.NamedSharding(mesh, jax.P('lanes'))
    self._own = [  # The devices of this process, with their numbers.
      (number, device)
      for number, device in enumerate(mesh.devices.flat)
      if device.process_index == jax.process_index()
    ]
    self._loading: dict[int, concurrent.futures.Future] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor(AHEAD)
    # Host memory is reused for later rounds, but not on a CPU, where an array
    # may share the memory from which it was made.
    self._reuses = mesh.devices.flat[0].platform != 'cpu'
    self._free: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(AHEAD):
      self._free.put(self._host_buffers())

  def __call__(self, numbers: Sequence[int]) -> Any:
    """Returns the buffer of a call's only round; starts to read later ones."""
    (number,) = numbers
    for later in [n for n in self._loading if n != number]:
      if not number < later <= number + AHEAD:
        self._loading.pop(later).cancel()  # These rounds were not requested.
    for n in range(number, number + AHEAD + 1):
      if n not in self._loading:
        self._loading[n] = self._pool.submit(self._load, n)
    begin = time.perf_counter()
    buffer = self._loading.pop(number).result()
    self.waited += time.perf_counter() - begin
    return buffer

  def _load(self, number: int) -> Buffer:
    free = self._free.get()
    try:
      loads = self._planner.loads(number)
      parts = []
      for buffer, (d, device) in zip(free, self._own, strict=True):
        self._read(loads[d], buffer)
        parts.append(jax.device_put(buffer, device))
      jax.block_until_ready(parts)  # The memory is reused after this.
    finally:
      self._free.put(free if self._reuses else self._host_buffers())
    return jax.tree.map(
      lambda shape, *parts: jax.make_array_from_single_device_arrays(
        shape.shape, self._sharding, list(parts)
      ),
      shapes(self._clients, self._planner),
      *parts,
    )

  def _read(self, clients: np.ndarray, buffer: Buffer) -> None:
    """Reads the examples of some clients into a buffer, contiguously."""
    # A disk serves many requests at once as fast as one: announce all of them
    # first, if the arrays are on disk and support it.
    arrays = trees.arrays(tuple(self._clients[:2]))
    for array in arrays:
      if isinstance(array, RowsOnDisk):
        for k in clients:
          array.expect(*self._clients.offsets[k : k + 2])
    position, into = 0, trees.arrays(tuple(buffer[:2]))
    for k in clients:
      first, stop = self._clients.offsets[k : k + 2]
      here = slice(position, position + int(stop - first))
      for array, own in zip(arrays, into, strict=True):
        own[here] = array[first:stop]
      buffer.row[here] = np.arange(first, stop)
      position = here.stop

  def _host_buffers(self) -> list[Buffer]:
    """Allocates a buffer for each device of this process."""
    like = _shapes(self._clients, self._planner.buffer_examples)
    return [
      jax.tree.map(lambda own: np.zeros(own.shape, own.dtype), like)
      for _ in self._own
    ]
