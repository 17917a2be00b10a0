"""Sorts a few long rows, each coordinate on its own.

Sorts of XLA go through one column at a time. A network of comparisons goes
through whole rows: on a CPU that takes a quarter of the time for 25 rows.

Shape letters: N rows, S stages of the network, about log2(N)^2 / 2.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def sort_rows(rows: jax.Array) -> jax.Array:
  """Sorts [N, ...] numbers along the first axis; NaN is not allowed.

  >>> sort_rows(jnp.array([[3.0, 1.0], [2.0, 4.0], [1.0, 9.0]])).tolist()
  [[1.0, 1.0], [2.0, 4.0], [3.0, 9.0]]
  """
  partner, lower = network(rows.shape[0])
  shape = -1, *(1,) * (rows.ndim - 1)

  def stage(s, rows):
    other = rows[partner[s]]
    small, large = jnp.minimum(rows, other), jnp.maximum(rows, other)
    return jnp.where(jnp.reshape(lower[s], shape), small, large)

  if not len(partner):
    return rows
  partner, lower = jnp.asarray(partner), jnp.asarray(lower)
  return lax.fori_loop(0, partner.shape[0], stage, rows)


@functools.lru_cache
def network(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the odd-even merge network of Batcher 1968 for N numbers.

  Returns:
    partner [S, N] int32, the row that each row is compared with, itself if
    there is none; and lower [S, N] bool, True for rows that keep the minimum.
  """
  stages = []
  for width in _powers_of_two(size):
    for apart in reversed(_powers_of_two(2 * width)):
      partner = np.arange(size, dtype=np.int32)
      first = apart % width  # 0 where two sorted halves are first compared.
      for low in range(first, size - apart):
        high, inside = low + apart, (low - first) // apart % 2 == 0
        if inside and low // (2 * width) == high // (2 * width):
          partner[low], partner[high] = high, low
      stages.append(partner)
  partners = np.array(stages, np.int32).reshape(-1, size)
  return partners, partners >= np.arange(size)


def _powers_of_two(limit: int) -> list[int]:
  """Returns 1, 2, 4, ... below a limit."""
  return [2**i for i in range((limit - 1).bit_length())]
