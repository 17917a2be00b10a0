"""A partition with sizes of any law and a few labels for each client.

Labels are drawn first. How many examples of its labels each client then has is
a flow from clients to labels, which is found wherever there is one.

Shape letters: n examples, K clients, C labels that there are.
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

# Of the clients' labels, until their examples are enough.
_MOST_DRAWS = 100


def few_labels(
  labels: np.ndarray,
  *,
  sizes: np.ndarray,
  classes_per_client: int | Sequence[int],
  assignment: str = 'random',
  seed: int,
) -> list[np.ndarray]:
  """Gives each client its size, of exactly so many labels.

  A client's labels have about as many examples each, as far as there are enough
  of them; examples that no size asks for are in no part. With log-normal sizes,
  10 at least, and 'deterministic' labels this is the division of MNIST among
  1,000 clients in FedProx (Li et al. 2020), but for the shares of a client's
  labels, which are uneven there.

  Args:
    labels: [n] class numbers of any dtype.
    sizes: [K] of the clients, from `sizes` or your own; they add up to n at
      most.
    classes_per_client: of each client, one number for all or K of them.
    assignment: 'random' draws labels, the more likely the more of its examples
      are left; 'deterministic' gives client i the labels i, i + 1, ... and
      begins again after the last; 'first_deterministic' gives it label i and
      draws the others.
    seed: of labels and examples.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, a client is smaller than its number of
      labels, or there are too few examples of the clients' labels.

  >>> labels = np.repeat(np.arange(10), 60)
  >>> parts = few_labels(
  ...   labels, sizes=[200, 2, 31], classes_per_client=[4, 1, 2], seed=0)
  >>> [(len(part), len(set(labels[part]))) for part in parts]
  [(200, 4), (2, 1), (31, 2)]
  """
  labels = exact.class_numbers(labels, 'labels')
  rules.check_seed(seed)
  sizes = check_sizes(sizes, len(labels), len(sizes), rest=True)
  choices.check_choice(
    'class_assignment', assignment, choices.CLASS_ASSIGNMENTS
  )
  rng = np.random.default_rng(seed)
  by_class = rows_by_class(labels, rng)
  available = np.array([len(rows) for rows in by_class])  # [C]
  numbers = _check_numbers(classes_per_client, sizes, len(available))
  # Labels in turn would be the same ones again.
  most = 1 if assignment == 'deterministic' else _MOST_DRAWS
  counts, short = _draw_counts(sizes, numbers, available, assignment, rng)
  for _ in range(most - 1):
    if not short.any():
      break
    counts, short = _draw_counts(sizes, numbers, available, assignment, rng)
  if short.any():
    raise _too_few(np.unique(labels), counts, available, short, most)
  return deal(by_class, counts, rng)


def _check_numbers(own, sizes: np.ndarray, num_labels: int) -> np.ndarray:
  """Returns the number of labels of each client, [K]."""
  numbers = np.asarray(own)
  if numbers.dtype.kind not in 'iu' or numbers.shape not in ((), sizes.shape):
    raise InputError(
      f'classes_per_client = {own!r}: must be a whole number, or one for'
      f' each of {len(sizes)} clients'
    )
  numbers = np.broadcast_to(numbers, sizes.shape)
  if numbers.min() < 1 or numbers.max() > num_labels:
    raise InputError(
      f'classes_per_client = {own!r}: must be in [1, {num_labels}], the labels'
      ' there are'
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
  """Draws labels, and returns counts [C, K] and who is short, as `_level`."""
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
  # The largest clients choose first, while most is left to choose from.
  for k in np.argsort(-sizes, kind='stable'):
    if assignment == 'deterministic':
      mine = (k + np.arange(numbers[k])) % num_labels
    else:
      # Who arrives first at these rates is drawn in proportion to them; what is
      # used up comes last.
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
  """Shares each size out among its labels, by at most one unevenly, [C, K]."""
  each, rest = np.divmod(sizes, has.sum(axis=0))
  order = np.where(has, rng.random(has.shape), np.inf)
  rank = np.argsort(np.argsort(order, axis=0), axis=0)
  return np.where(has, each + (rank < rest), 0)


def _level(
  has: np.ndarray, counts: np.ndarray, available: np.ndarray
) -> np.ndarray:
  """Moves examples between clients' labels until no label has too many.

  It is the method of Edmonds and Karp (1972): along the shortest path from a
  label with too many to one with room, as much as can be moved, where a client
  of both labels can take more of the next one and keeps one of each.

  Args:
    has: [C, K] which labels each client has.
    counts: [C, K] examples of each; it is changed in place, its sums over
      labels stay.
    available: [C] examples that there are.

  Returns:
    [C] bool, labels of which clients must have more than there are, whatever is
    moved; none where all is level.
  """
  while True:
    room = available - counts.sum(axis=1)
    if room.min() >= 0:
      return np.zeros(len(available), bool)
    spare = np.where(has, counts - 1, 0)
    # Of label c (rows), what could be of label d; exact below 2**53.
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
      own = np.where(has[d], spare[c], 0)
      moved = cut(amount, own / own.sum())
      counts[c] -= moved
      counts[d] += moved


def _shortest_path(
  edges: np.ndarray, start: int, ends: np.ndarray
) -> tuple[list[int], np.ndarray]:
  """Finds the shortest path in a directed graph, breadth first.

  Args:
    edges: [C, C] bool, from rows to columns.
    start: a node.
    ends: [C] bool, nodes that a path may end with.

  Returns:
    The path, empty where there is none; and [C] bool, the nodes reached.
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
  own = names[short].tolist()
  listed = ', '.join(map(str, own[:8])) + ', ...' * (len(own) > 8)
  return InputError(
    f'sizes: need{found} {counts[short].sum()} examples of labels {listed},'
    f' there are {available[short].sum()}; must be smaller, or'
    ' classes_per_client larger'
  )
