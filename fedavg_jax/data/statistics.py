"""Summarizes how examples and labels are distributed over clients."""

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.data import partition


def label_counts(clients: Clients, num_classes: int) -> np.ndarray:
  """Counts the examples of each label at each client.

  Sequences and targets of arbitrary numbers have no labels; all their examples
  count as one.

  Args:
    clients: the population.
    num_classes: the number of labels, 0 .. num_classes - 1; at most 1 for data
      without labels.

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
  """Describes the clients' examples in lines of text, one per property.

  Args:
    counts: [K, classes], from `label_counts`.
  """
  sizes = counts.sum(axis=1)
  lines = [
    f'clients              {len(sizes):,}',
    f'training examples    {sizes.sum():,}',
    f'examples per client  {_spread(sizes)}',
  ]
  if counts.shape[1] > 1:
    shares = counts / np.maximum(sizes, 1)[:, None]
    everybody = counts.sum(axis=0) / sizes.sum()
    # Total variation: the fraction of a client's examples that would have to
    # change their label to get the mix of all clients.
    distance = np.abs(shares - everybody).sum(axis=1) / 2
    lines += [
      f'labels per client    {_spread((counts > 0).sum(axis=1))}',
      'label mix            differs from that of all clients by'
      f' {np.average(distance, weights=sizes):.2f} (total variation; 0 is IID)',
    ]
  return lines


def _spread(values: np.ndarray) -> str:
  few, median, many = np.quantile(values, (0.1, 0.5, 0.9))
  return (
    f'min {values.min():,}, median {median:,.4g}, max {values.max():,};'
    f' mean {values.mean():,.4g}, 80 % from {few:,.4g} to {many:,.4g}'
  )
