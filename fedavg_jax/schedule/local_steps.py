"""Splits one client's minibatches into steps, large ones into several."""

from collections.abc import Iterable
import functools

import numpy as np


@functools.lru_cache(maxsize=4096)  # Many clients are of the same size.
def client_steps(
  size: int, width: int, rows: int, epochs: int, completed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the steps of a client until it has completed its minibatches.

  Args:
    size: n_k, the client's examples.
    width: examples of a minibatch.
    rows: examples of a step, at most.
    epochs: E.
    completed: minibatches after which the client stops.

  Returns:
    For each step its start in the client's order of reading, its count of
    examples, the size of its minibatch, and whether it is the minibatch's last
    one, as in `Plan`.
  """
  firsts = np.arange(0, size, width)[:, None]  # One per minibatch.
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
  """Counts the steps of each client's program, [m]."""
  return np.array([len(start) for start, *_ in programs], np.int64)
