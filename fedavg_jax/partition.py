"""How a data set is divided among K clients. NumPy only, seeded.

A partition is a list of K index arrays; every example is in exactly one.
Source: McMahan et al. 2017, section 3.
"""

from collections.abc import Sequence

import numpy as np

from fedavg_jax.errors import InputError

NAMES = ('iid', 'shards', 'natural')

_HOLD_OUT = 3  # plan.py has 1 and 2.


def iid(num_examples: int, *, num_clients: int, seed: int) -> list[np.ndarray]:
  """Shuffles, then cuts into K parts whose sizes differ by at most one."""
  _check_clients(num_examples, num_clients)
  order = np.random.default_rng(seed).permutation(num_examples)
  return np.array_split(order, num_clients)


def shards(
  labels: np.ndarray, *, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
  """Sorts by label, cuts into shards, deals each client some at random.

  The paper's pathological non-IID split of MNIST: 200 shards of 300, two per
  client, so that most clients hold two digits. Where the number of shards does
  not divide the examples, shards differ in size by at most one.

  Args:
    labels: [n] integers.
    num_clients: K.
    shards_per_client: shards that each client gets.
    seed: decides which shards.

  Returns:
    K index arrays.
  """
  num_examples = len(labels)
  _check_clients(num_examples, num_clients)
  if shards_per_client < 1:
    raise InputError(
      f'shards_per_client = {shards_per_client}: must be at least 1'
    )
  num_shards = num_clients * shards_per_client
  if num_shards > num_examples:
    raise InputError(
      f'num_clients = {num_clients} with shards_per_client ='
      f' {shards_per_client}: {num_shards} shards need at least as many'
      f' training examples, there are {num_examples}'
    )
  by_label = np.argsort(labels, kind='stable')
  pieces = np.array_split(by_label, num_shards)
  deal = np.random.default_rng(seed).permutation(num_shards)
  return [
    np.concatenate([pieces[i] for i in mine])
    for mine in np.split(deal, num_clients)
  ]


def by_owner(owners: np.ndarray) -> list[np.ndarray]:
  """Natural clients: each has its own examples, in their order.

  Args:
    owners: [n] integers, the client of every example.

  Returns:
    K index arrays; K is the largest owner and one.
  """
  order = np.argsort(owners, kind='stable')
  return np.split(order, np.cumsum(np.bincount(owners))[:-1])


def hold_out(
  parts: Sequence[np.ndarray], *, fraction: float, seed: int
) -> list[np.ndarray]:
  """Takes int(fraction * n_k) random examples of every client out of training.

  Every client keeps at least one example, because fraction < 1.
  """
  kept = []
  for client, part in enumerate(parts):
    # Apart from the stream `seed` of the division, and from those of plan.py;
    # never a trailing zero, which a short seed is padded with.
    rng = np.random.default_rng([seed, _HOLD_OUT, client + 1])
    kept.append(rng.permutation(part)[int(fraction * len(part)) :])
  return kept


def label_counts(
  labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
  """Examples of each label at each client, [K, num_classes]."""
  return np.stack(
    [np.bincount(labels[part], minlength=num_classes) for part in parts]
  )


def _check_clients(num_examples: int, num_clients: int) -> None:
  if not 1 <= num_clients <= num_examples:
    raise InputError(
      f'num_clients = {num_clients}: must be at least 1 and at most'
      f' {num_examples}, the number of training examples'
    )
