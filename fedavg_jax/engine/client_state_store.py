"""Stores client states on the host instead of the devices.

The devices then have only the cohort's states, which are gathered before a
round and scattered back after it. The store is in memory or in a file, for
populations whose states do not fit on a device.

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
  """Holds the states of K clients; those that never took part cost nothing.

  Attributes:
    changes: the number of scatters so far; each invalidates earlier reads.
  """

  def __init__(
    self,
    first: Callable[[np.ndarray], Any],
    num_clients: int,
    folder: pathlib.Path | None = None,
  ):
    """Starts with the clients' initial states.

    Args:
      first: the function client ids [M] int32 -> initial states [M, ...].
      num_clients: K, the number of clients.
      folder: the directory of an unnamed temporary file, which disappears with
        the process; None stores the states in memory.
    """
    self.changes = 0
    self._first = first
    self._shapes = jax.eval_shape(first, np.zeros(1, np.int32))
    self._took_part = np.zeros(num_clients, bool)
    self._folder = folder
    self._rows: list[Any] = []  # Created at the first scatter.

  @property
  def clients(self) -> np.ndarray:
    """Returns the ids of the clients that have taken part."""
    return np.flatnonzero(self._took_part)

  def gather(self, clients: np.ndarray) -> Any:
    """Returns the states of some clients, [M, ...]."""
    known = self._took_part[clients]
    if known.all():  # Also for no clients.
      states = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype),
        self.shapes(len(clients))['states'],
      )
    else:
      states = self._first(np.asarray(clients, np.int32))
      states = jax.tree.map(np.array, states)  # A writable copy.
    if known.any():
      rows, who = self._rows, clients[known]
      for own, leaf in zip(rows, jax.tree.leaves(states), strict=True):
        leaf[known] = own[who]
    return states

  def scatter(self, clients: np.ndarray, states: Any) -> None:
    """Stores new states, [M, ...], of some clients."""
    if not self._rows:
      self._rows = list(map(self._room, jax.tree.leaves(self._shapes)))
    self.changes += 1
    self._took_part[clients] = True
    for own, leaf in zip(self._rows, jax.tree.leaves(states), strict=True):
      own[clients] = leaf

  def _room(self, leaf: jax.ShapeDtypeStruct) -> Any:
    """Returns writable rows for all clients, [K, ...]."""
    one = np.zeros(leaf.shape[1:], leaf.dtype)
    if self._folder is not None:
      return _Rows(one, self._folder)
    return np.zeros((len(self._took_part), *one.shape), one.dtype)

  def saved(self) -> dict[str, Any]:
    """Returns the content of a checkpoint: participants and their states."""
    return {'clients': self.clients, 'states': self.gather(self.clients)}

  def shapes(self, number: int) -> dict[str, Any]:
    """Returns the shapes of `saved` for a given number of clients."""

    def of(leaf):
      return jax.ShapeDtypeStruct((number, *leaf.shape[1:]), leaf.dtype)

    clients = jax.ShapeDtypeStruct((number,), np.dtype(np.int64))
    return {'clients': clients, 'states': jax.tree.map(of, self._shapes)}


class _Rows:
  """Stores the rows of an array in a file instead of memory."""

  def __init__(self, like: np.ndarray, folder: pathlib.Path):
    """Creates the file; rows must be written before they are read."""
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
        raise OSError(errno.ENOSPC, 'no space left for client states')

  def __del__(self):
    self._file.close()


class Cohorts:
  """Loads the states of each round's cohort, and stores them afterwards.

  A round may start before the previous one has ended: the states of clients in
  both are passed from one to the other on the devices.
  """

  def __init__(
    self,
    states: ClientStates,
    clients: Callable[[int], np.ndarray],
    place: Callable[[Any], Any],
  ):
    """Starts with the current client states.

    Args:
      states: the states of all clients.
      clients: the function round number -> clients of its plan, [M].
      place: the function that copies arrays from the host to the devices.
    """
    self._states, self._place = states, place
    # A draw costs time and is needed as long as its round is in flight.
    self._clients = functools.lru_cache(2 * superstep.CALLS_IN_FLIGHT)(clients)
    self._under_way: dict[int, Any] = {}

  def begin(self, number: int) -> Any:
    """Returns the states of a round's clients on the devices, [M, ...]."""
    mine = self._clients(number)
    states = self._place(self._states.gather(mine))
    for other, theirs in self._under_way.items():
      _, here, there = np.intersect1d(
        mine, self._clients(other), return_indices=True
      )
      source = np.full(len(mine), -1, np.int32)
      source[here] = there
      if len(here):
        states = _replace_rows(states, theirs, source)
    return states

  def under_way(self, number: int, states: Any) -> None:
    """Records the states, on the devices, that a dispatched round returns."""
    self._under_way[number] = states

  def end(self, number: int) -> None:
    """Stores the states that a round has returned, once it has ended."""
    states = jax.device_get(self._under_way.pop(number))
    self._states.scatter(self._clients(number), states)


@jax.jit
def _replace_rows(states, others, source):
  """Returns `states` with rows others[source] where source is not negative."""

  def of(mine, theirs):
    chosen = (source >= 0).reshape(-1, *(1,) * (mine.ndim - 1))
    return jnp.where(chosen, theirs[source], mine)

  return jax.tree.map(of, states, others)
