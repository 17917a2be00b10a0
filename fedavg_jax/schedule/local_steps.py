"""The steps of one client: its minibatches, in parts where they are large."""

from collections.abc import Iterable
import functools

import numpy as np


@functools.lru_cache(maxsize=4096)  # Many clients are of the same size.
def client_steps(
  size: int, width: int, rows: int, epochs: int, completed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Start, count, batch and completes of each step of a client of `size`.

  Up to and with the step that completes so many minibatches.
  """
  firsts = np.arange(0, size, width)[:, None]  # Of each minibatch.
  batches = np.minimum(width, size - firsts)
  inside = np.arange(0, width, rows)
  real = inside < batches  # The last minibatch may take fewer steps.
  counts = np.minimum(rows, batches - inside)
  completes = np.tile((inside + rows >= batches)[real], epochs)
  batches = np.broadcast_to(batches, real.shape)
  start = size * np.arange(epochs)[:, None] + (firsts + inside)[real]
  batch = np.tile(batches[real], epochs)
  ends = np.flatnonzero(completes)
  stop = int(ends[completed - 1]) + 1 if completed else 0
  return (
    start.ravel()[:stop],
    np.tile(counts[real], epochs)[:stop],
    batch[:stop],
    completes[:stop],
  )


def count_steps(programs: Iterable[tuple[np.ndarray, ...]]) -> np.ndarray:
  """Steps of each client's program, [m]."""
  return np.array([len(start) for start, *_ in programs], np.int64)
