"""What clients keep from round to round, on the host instead of the devices.

A device then holds the states of a cohort alone: they are gathered before a
round and scattered after it, in memory or in a file, for populations whose
states fit on no device.

Shape letters: K clients, M clients of a cohort.
"""

from collections.abc import Callable
import errno
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.engine import superstep


class ClientStates:
  """The states of K clients; those that never took part cost nothing.

  Attributes:
    changes: times that states were scattered: what was read before one is
      not what is there after it.
  """

  def __init__(
    self,
    first: Callable[[np.ndarray], Any],
    num_clients: int,
    folder: pathlib.Path | None = None,
  ):
    """Begins with what clients have before their first round.

    Args:
      first: numbers of clients [M] int32 -> these states, [M, ...].
      num_clients: K.
      folder: on the disk, for a file without a name, which is gone with the
        process; None for memory.
    """
    self.changes = 0
    self._first = first
    self._shapes = jax.eval_shape(first, np.zeros(1, np.int32))
    self._took_part = np.zeros(num_clients, bool)
    self._folder = folder
    self._rows: list[Any] = []  # Made when there is something to keep.

  @property
  def clients(self) -> np.ndarray:
    """Those that have taken part."""
    return np.flatnonzero(self._took_part)

  def gather(self, clients: np.ndarray) -> Any:
    """States of some clients, [M, ...]."""
    known = self._took_part[clients]
    if known.all():  # Also of nobody.
      states = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype),
        self.shapes(len(clients))['states'],
      )
    else:
      states = self._first(np.asarray(clients, np.int32))
      states = jax.tree.map(np.array, states)  # To be written to.
    if known.any():
      rows, who = self._rows, clients[known]
      for own, leaf in zip(rows, jax.tree.leaves(states), strict=True):
        leaf[known] = own[who]
    return states

  def scatter(self, clients: np.ndarray, states: Any) -> None:
    """Keeps new states, [M, ...], of some clients."""
    if not self._rows:
      self._rows = list(map(self._room, jax.tree.leaves(self._shapes)))
    self.changes += 1
    self._took_part[clients] = True
    for own, leaf in zip(self._rows, jax.tree.leaves(states), strict=True):
      own[clients] = leaf

  def _room(self, leaf: jax.ShapeDtypeStruct) -> Any:
    """Rows for all clients, [K, ...]; they take what is written to them."""
    one = np.zeros(leaf.shape[1:], leaf.dtype)
    if self._folder is not None:
      return _Rows(one, self._folder)
    return np.zeros((len(self._took_part), *one.shape), one.dtype)

  def saved(self) -> dict[str, Any]:
    """What a checkpoint holds: clients that took part, and their states."""
    return {'clients': self.clients, 'states': self.gather(self.clients)}

  def shapes(self, number: int) -> dict[str, Any]:
    """Shapes of `saved` with so many clients."""

    def of(leaf):
      return jax.ShapeDtypeStruct((number, *leaf.shape[1:]), leaf.dtype)

    clients = jax.ShapeDtypeStruct((number,), np.dtype(np.int64))
    return {'clients': clients, 'states': jax.tree.map(of, self._shapes)}


class _Rows:
  """Rows of an array in a file, which take none of the process's memory."""

  def __init__(self, like: np.ndarray, folder: pathlib.Path):
    """Makes the file; what was never written must not be read."""
    self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
    self._shape, self._dtype, self._bytes = like.shape, like.dtype, like.nbytes
    self._size = like.size

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    read = np.empty((len(rows), *self._shape), self._dtype)
    for i, into in zip(rows, read.reshape(len(rows), self._size), strict=True):
      self._file.seek(int(i) * self._bytes)
      self._file.readinto(into.data)
    return read

  def __setitem__(self, rows: np.ndarray, new: np.ndarray) -> None:
    new = np.ascontiguousarray(new).reshape(len(rows), self._size)
    for i, own in zip(rows, new, strict=True):
      self._file.seek(int(i) * self._bytes)
      if self._file.write(own.data) != self._bytes:
        raise OSError(errno.ENOSPC, 'no room for what clients keep')

  def __del__(self):
    self._file.close()


class Cohorts:
  """Gives each round the states of its cohort, and takes them back.

  A round may begin before the one before it has ended: clients of both are
  handed on from one to the other on the devices.
  """

  def __init__(
    self,
    states: ClientStates,
    clients: Callable[[int], np.ndarray],
    place: Callable[[Any], Any],
  ):
    """Begins with what clients have kept so far.

    Args:
      states: of all clients.
      clients: number of a round -> the clients of its plan, [M].
      place: puts arrays of the host on the devices.
    """
    self._states, self._place = states, place
    # Drawn of all clients, and needed as long as a round is under way.
    self._clients = functools.lru_cache(2 * superstep.CALLS_IN_FLIGHT)(clients)
    self._under_way: dict[int, Any] = {}

  def begin(self, number: int) -> Any:
    """States of a round's clients on the devices, [M, ...]."""
    mine = self._clients(number)
    states = self._place(self._states.gather(mine))
    for other, theirs in self._under_way.items():
      _, here, there = np.intersect1d(
        mine, self._clients(other), return_indices=True
      )
      source = np.full(len(mine), -1, np.int32)
      source[here] = there
      if len(here):
        states = _handed_on(states, theirs, source)
    return states

  def under_way(self, number: int, states: Any) -> None:
    """Notes what a round that has begun will have left, on the devices."""
    self._under_way[number] = states

  def end(self, number: int) -> None:
    """Keeps what a round has left, once it has ended."""
    states = jax.device_get(self._under_way.pop(number))
    self._states.scatter(self._clients(number), states)


@jax.jit
def _handed_on(states, others, source):
  """Rows `source` of others where they are not negative."""

  def of(mine, theirs):
    chosen = (source >= 0).reshape(-1, *(1,) * (mine.ndim - 1))
    return jnp.where(chosen, theirs[source], mine)

  return jax.tree.map(of, states, others)
