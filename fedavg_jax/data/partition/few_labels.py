"""Partitions examples into clients of any sizes with a few labels each.

Labels are drawn first. The number of examples that each client then has of
each label is a flow from clients to labels, which is found whenever one exists.

Shape letters: n examples, K clients, C labels that occur.
"""

import collections
from collections.abc import Sequence
import itertools

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import exact
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.partition.checks import check_sizes
from fedavg_jax.data.partition.checks import cut
from fedavg_jax.data.partition.dealing import deal
from fedavg_jax.data.partition.dealing import rows_by_class

# Draws of the clients' labels until there are enough examples of them.
_MOST_DRAWS = 100


def few_labels(
  labels: np.ndarray,
  *,
  sizes: np.ndarray,
  classes_per_client: int | Sequence[int],
  assignment: str = 'random',
  seed: int,
) -> list[np.ndarray]:
  """Partitions into clients of given sizes and numbers of labels.

  A client has about as many examples of each of its labels, if there are
  enough. The sizes may add up to less than n; the other examples are in no
  part. With log-normal sizes, at least 10, and 'deterministic' labels this is
  the partition of MNIST into 1,000 clients in FedProx (Li et al. 2020), except
  that a client's labels have unequal shares there.

  Args:
    labels: [n] class numbers of any dtype.
    sizes: [K] sizes of the clients, from `sizes` or custom ones; their sum is
      at most n.
    classes_per_client: the number of labels of each client, one number for all
      clients or K of them.
    assignment: the way to assign labels. 'random' draws those of each client,
      in proportion to the examples that are left of them; 'deterministic'
      assigns labels i, i + 1, ... to client i, and label 0 after the last;
      'first_deterministic' assigns label i and draws the others.
    seed: the seed of labels and examples.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, a client is smaller than its number of
      labels, or there are too few examples of the clients' labels.

  >>> import fedavg_jax as fa
  >>> labels = np.repeat(np.arange(10), 60)
  >>> parts = fa.partition.few_labels(
  ...   labels, sizes=[200, 2, 31], classes_per_client=[4, 1, 2], seed=0)
  >>> [(len(part), len(set(labels[part]))) for part in parts]
  [(200, 4), (2, 1), (31, 2)]
  """
  labels = exact.class_numbers(labels, 'labels')
  rules.check_seed(seed)
  sizes = check_sizes(sizes, len(labels), rest=True)
  choices.check_choice(
    'class_assignment', assignment, choices.CLASS_ASSIGNMENTS
  )
  rng = np.random.default_rng(seed)
  by_class = rows_by_class(labels, rng)
  available = np.array([len(rows) for rows in by_class])  # [C]
  numbers = _check_numbers(classes_per_client, sizes, len(available))
  # Deterministic labels would be the same in every draw.
  most = 1 if assignment == 'deterministic' else _MOST_DRAWS
  counts, short = _draw_counts(sizes, numbers, available, assignment, rng)
  for _ in range(most - 1):
    if not short.any():
      break
    counts, short = _draw_counts(sizes, numbers, available, assignment, rng)
  if short.any():
    raise _too_few(np.unique(labels), counts, available, short, most)
  return deal(by_class, counts, rng)


def _check_numbers(given, sizes: np.ndarray, num_labels: int) -> np.ndarray:
  """Returns the number of labels of each client, [K]."""
  numbers = np.asarray(given)
  if numbers.dtype.kind not in 'iu' or numbers.shape not in ((), sizes.shape):
    raise InputError(
      f'classes_per_client = {given!r}: must be a whole number, or one for'
      f' each of {len(sizes)} clients'
    )
  numbers = np.broadcast_to(numbers, sizes.shape)
  if numbers.min() < 1 or numbers.max() > num_labels:
    raise InputError(
      f'classes_per_client = {given!r}: must be in [1, {num_labels}], the'
      ' number of labels'
    )
  if (sizes < numbers).any():
    k = int((sizes < numbers).argmax())
    raise InputError(
      f'sizes: client {k} has {sizes[k]} examples; must have at least the'
      f' {numbers[k]} of its classes_per_client'
    )
  return numbers


def _draw_counts(
  sizes: np.ndarray,
  numbers: np.ndarray,
  available: np.ndarray,
  assignment: str,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws labels; returns counts [C, K] and short labels, as `_level` does."""
  has = _draw_labels(sizes, numbers, available, assignment, rng)
  counts = _even_counts(has, sizes, rng)
  return counts, _level(has, counts, available)


def _draw_labels(
  sizes: np.ndarray,
  numbers: np.ndarray,
  available: np.ndarray,
  assignment: str,
  rng: np.random.Generator,
) -> np.ndarray:
  """Returns which labels each client has, [C, K] bool."""
  num_labels = len(available)
  has = np.zeros((num_labels, len(sizes)), bool)
  left = available.astype(np.float64)
  # The largest clients come first, while most examples are left.
  for k in np.argsort(-sizes, kind='stable'):
    if assignment == 'deterministic':
      mine = (k + np.arange(numbers[k])) % num_labels
    else:
      # The first arrivals at these rates are a draw in proportion to them;
      # labels that are used up come last.
      arrival = rng.exponential(size=num_labels) / np.maximum(left, 1e-6)
      if assignment == 'first_deterministic':
        arrival[k % num_labels] = 0.0
      mine = np.argsort(arrival)[: numbers[k]]
    has[mine, k] = True
    left[mine] -= sizes[k] / numbers[k]
  return has


def _even_counts(
  has: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Divides each size among its labels, equally up to one example, [C, K]."""
  each, rest = np.divmod(sizes, has.sum(axis=0))
  order = np.where(has, rng.random(has.shape), np.inf)
  rank = np.argsort(np.argsort(order, axis=0), axis=0)
  return np.where(has, each + (rank < rest), 0)


def _level(
  has: np.ndarray, counts: np.ndarray, available: np.ndarray
) -> np.ndarray:
  """Moves examples between clients' labels until no label has too many.

  It is the method of Edmonds and Karp (1972): as much as possible is moved
  along the shortest path from a label with too many to one with room. A client
  of two labels on the path exchanges examples of the one for examples of the
  other, and retains at least one of each.

  Args:
    has: [C, K] bool, whether a client has a label.
    counts: [C, K] examples of each label at each client, changed in place; the
      sums over labels stay the same.
    available: [C] examples of each label.

  Returns:
    [C] bool, labels for which there is no solution: their clients need more
    examples than are available. All are False if `counts` is a solution.
  """
  while True:
    room = available - counts.sum(axis=1)
    if room.min() >= 0:
      return np.zeros(len(available), bool)
    spare = np.where(has, counts - 1, 0)
    # Examples of label c (rows) that could be of label d; exact below 2**53.
    movable = spare.astype(np.float64) @ has.T.astype(np.float64)
    path, reached = _shortest_path(movable > 0, int(room.argmin()), room > 0)
    if not path:
      return reached
    steps = list(itertools.pairwise(path))
    amount = min(
      int(-room[path[0]]),
      int(room[path[-1]]),
      *(int(movable[c, d]) for c, d in steps),
    )
    for c, d in steps:
      shares = np.where(has[d], spare[c], 0)
      moved = cut(amount, shares / shares.sum())
      counts[c] -= moved
      counts[d] += moved


def _shortest_path(
  edges: np.ndarray, start: int, ends: np.ndarray
) -> tuple[list[int], np.ndarray]:
  """Finds the shortest path in a directed graph, breadth first.

  Args:
    edges: [C, C] bool, edges from rows to columns.
    start: the first node.
    ends: [C] bool, nodes that a path may end with.

  Returns:
    The path, empty if there is none; and [C] bool, the nodes reached.
  """
  before = {start: start}
  queue = collections.deque([start])
  while queue:
    node = queue.popleft()
    if ends[node]:
      path = [node]
      while path[-1] != start:
        path.append(before[path[-1]])
      return path[::-1], ends
    for following in np.flatnonzero(edges[node]).tolist():
      if following not in before:
        before[following] = node
        queue.append(following)
  reached = np.zeros(len(ends), bool)
  reached[list(before)] = True
  return [], reached


def _too_few(
  names: np.ndarray,
  counts: np.ndarray,
  available: np.ndarray,
  short: np.ndarray,
  draws: int,
) -> InputError:
  """Returns the error that names the labels with too few examples."""
  found = f' in each of {draws} draws, last' if draws > 1 else ''
  labels = names[short].tolist()
  listed = ', '.join(map(str, labels[:8])) + ', ...' * (len(labels) > 8)
  return InputError(
    f'sizes: need{found} {counts[short].sum()} examples of labels {listed},'
    f' only {available[short].sum()} are available; must be smaller, or'
    ' classes_per_client larger'
  )
