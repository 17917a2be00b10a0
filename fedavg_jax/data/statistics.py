"""What the clients of a population hold, in numbers."""

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.data import partition


def label_counts(clients: Clients, num_classes: int) -> np.ndarray:
  """Examples of each label at each client; all count as one without labels.

  Args:
    clients: the population; without labels are sequences, and targets that are
      any numbers.
    num_classes: labels are 0 .. num_classes - 1; at most 1 is none.

  Returns:
    [K, classes], or [K, 1] without labels.
  """
  if trees.is_tree(clients.y) or len(clients.y.shape) > 1 or num_classes <= 1:
    return clients.num_examples[:, None]
  labels = np.asarray(clients.y)
  if not exact.are_whole(labels):
    return clients.num_examples[:, None]
  parts = np.split(np.arange(len(labels)), clients.offsets[1:-1])
  return partition.label_counts(labels, parts, num_classes)


def describe(counts: np.ndarray) -> list[str]:
  """What the clients hold, one line of text for each property.

  Args:
    counts: [K, classes], from `label_counts`.
  """
  sizes = counts.sum(axis=1)
  lines = [
    f'clients              {len(sizes):,}',
    f'training examples    {sizes.sum():,}',
    f'a client has         {_spread(sizes)}',
  ]
  if counts.shape[1] > 1:
    shares = counts / np.maximum(sizes, 1)[:, None]
    everybody = counts.sum(axis=0) / sizes.sum()
    # Half the sum of differences: 0 where a client's mix is that of all, and
    # how much of it would have to change.
    distance = np.abs(shares - everybody).sum(axis=1) / 2
    lines += [
      f'labels of a client   {_spread((counts > 0).sum(axis=1))}',
      'mix of labels        differs from that of all by'
      f' {np.average(distance, weights=sizes):.2f} (total variation; 0 is IID)',
    ]
  return lines


def _spread(values: np.ndarray) -> str:
  few, median, many = np.quantile(values, (0.1, 0.5, 0.9))
  return (
    f'{values.min():,} at least, {median:,.4g} in the middle,'
    f' {values.max():,} at most; mean {values.mean():,.4g}, 80 % of them'
    f' {few:,.4g} to {many:,.4g}'
  )
