"""Checks the arguments of partitions, and rounds shares to counts."""

import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError


def check_clients(num_examples: int, num_clients: int) -> None:
  """Raises InputError unless every client can have an example."""
  rules.check_whole('num_clients', num_clients, -rules.MOST)
  if not 1 <= num_clients <= num_examples:
    raise InputError(
      f'num_clients = {num_clients}: must be at least 1 and at most'
      f' {num_examples}, the number of training examples'
    )


def check_sizes(
  sizes,
  num_examples: int,
  num_clients: int | None = None,
  *,
  rest: bool = False,
) -> np.ndarray:
  """Returns sizes [K] as an array; raises InputError unless they add up to n.

  With `rest` they may add up to less; some examples are then in no part.
  """
  sizes = np.asarray(sizes)
  if (
    sizes.ndim != 1
    or not sizes.size
    or not np.issubdtype(sizes.dtype, np.integer)
  ):
    raise InputError(f'sizes = {sizes}: must be whole numbers, at least one')
  if num_clients is not None and len(sizes) != num_clients:
    raise InputError(
      f'sizes: has {len(sizes)} numbers; must have one for each of'
      f' num_clients = {num_clients}'
    )
  if sizes.min() < 1:
    raise InputError(f'sizes: has {sizes.min()}; must be at least 1')
  total = sum(map(int, sizes))
  if total > num_examples or (total < num_examples and not rest):
    at_most = ' at most' if rest else ''
    raise InputError(
      f'sizes: add up to {total}; must add up to{at_most} {num_examples}, the'
      ' number of training examples'
    )
  return sizes


def cut(number: int, shares: np.ndarray) -> np.ndarray:
  """Returns integers close to `number * shares` that add up to `number`."""
  exact = number * shares
  rounded = np.floor(exact).astype(np.int64)
  missing = number - rounded.sum()
  rounded[np.argsort(rounded - exact, kind='stable')[:missing]] += 1
  return rounded
