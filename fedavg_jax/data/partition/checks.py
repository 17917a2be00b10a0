"""What every partition asks of its arguments, and how it rounds."""

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
  own, num_examples: int, num_clients: int, *, rest: bool = False
) -> np.ndarray:
  """Sizes [K] as an array; raises InputError unless they add up to n.

  With `rest` they may add up to less: some examples are then left to nobody.
  """
  own = np.asarray(own)
  if not own.size or not np.issubdtype(own.dtype, np.integer):
    raise InputError(f'sizes = {own}: must be whole numbers, one at least')
  if len(own) != num_clients:
    raise InputError(
      f'sizes: {len(own)} of them, must be one for each of num_clients ='
      f' {num_clients}'
    )
  if own.min() < 1:
    raise InputError(f'sizes: one is {own.min()}; must be at least 1')
  total = sum(map(int, own))
  if total > num_examples or (total < num_examples and not rest):
    at_most = ' at most' if rest else ''
    raise InputError(
      f'sizes: add up to {total}; must add up to{at_most} {num_examples}, the'
      ' number of training examples'
    )
  return own


def cut(number: int, shares: np.ndarray) -> np.ndarray:
  """Whole numbers close to `number * shares` that add up to `number`."""
  wanted = number * shares
  whole = np.floor(wanted).astype(np.int64)
  missing = number - whole.sum()
  whole[np.argsort(whole - wanted, kind='stable')[:missing]] += 1
  return whole
