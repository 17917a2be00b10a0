"""The cohort's examples alone on the devices, read while they train others.

For populations that fit in no memory: of the clients' arrays only the cohort's
rows are read, two rounds ahead, by threads; each device gets those of its own
lanes, and each process reads those of its own devices. A plan then counts rows
in the buffer of its device; the rest of a round is the same, bit for bit.

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

# Rounds that are read before they are asked for.
AHEAD = 2


class Buffer(NamedTuple):
  """Examples of a cohort, of every device those of its lanes in a row.

  Attributes:
    x: [D * N, ...], or a tree; rows behind a device's last client are any.
    y: [D * N, ...].
    row: [D * N] int32, where each stands among all clients' examples.
  """

  x: Any
  y: Any
  row: Any


def shapes(clients: Clients, planner: Planner) -> Buffer:
  """What a buffer of a population looks like, without its content."""
  return _shapes(clients, planner.num_devices * planner.buffer_examples)


def _shapes(clients: Clients, number: int) -> Buffer:
  """The same of so many rows."""

  def like(array):
    return jax.ShapeDtypeStruct((number, *array.shape[1:]), array.dtype)

  return Buffer(
    trees.map_arrays(like, clients.x),
    trees.map_arrays(like, clients.y),
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
      mesh: the planner's devices.
    """
    self.waited = 0.0
    self._clients, self._planner = clients, planner
    self._sharding = jax.sharding.NamedSharding(mesh, jax.P('lanes'))
    self._own = [  # Of this process: number, device.
      (number, device)
      for number, device in enumerate(mesh.devices.flat)
      if device.process_index == jax.process_index()
    ]
    self._loading: dict[int, concurrent.futures.Future] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor(AHEAD)
    # Host memory that is read into, again and again. Not on a CPU: there an
    # array may be the memory that it was made of.
    self._reuses = mesh.devices.flat[0].platform != 'cpu'
    self._free: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(AHEAD):
      self._free.put(self._host_buffers())

  def __call__(self, numbers: Sequence[int]) -> Any:
    """The buffer of a call's only round; begins to read the next ones."""
    (number,) = numbers
    for later in [n for n in self._loading if n != number]:
      if not number < later <= number + AHEAD:
        self._loading.pop(later).cancel()  # Of rounds that never came.
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
      jax.block_until_ready(parts)  # Before the memory is used again.
    finally:
      self._free.put(free if self._reuses else self._host_buffers())
    return jax.tree.map(
      lambda whole, *parts: jax.make_array_from_single_device_arrays(
        whole.shape, self._sharding, list(parts)
      ),
      shapes(self._clients, self._planner),
      *parts,
    )

  def _read(self, clients: np.ndarray, buffer: Buffer) -> None:
    """Reads some clients, one behind another."""
    # A disk answers many questions at a time as fast as one: ask all of them
    # first, where the arrays are on one and can be asked.
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
    """One for each device of this process."""
    like = _shapes(self._clients, self._planner.buffer_examples)
    return [
      jax.tree.map(lambda own: np.zeros(own.shape, own.dtype), like)
      for _ in self._own
    ]
