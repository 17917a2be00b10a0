"""Partitions examples by their labels."""

from collections.abc import Sequence

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import exact
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.partition.checks import check_clients
from fedavg_jax.data.partition.checks import check_sizes
from fedavg_jax.data.partition.checks import cut
from fedavg_jax.data.partition.dealing import deal
from fedavg_jax.data.partition.dealing import rows_by_class

# Draws of a Dirichlet partition until all clients are large enough.
_MOST_DRAWS = 1000


def shards(
  labels: np.ndarray, *, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
  """Sorts by label, splits into shards, and deals these to clients at random.

  With 200 shards of 300 examples, two per client, it is the pathological
  non-IID split of MNIST in McMahan et al. 2017, section 3, in which most
  clients have two digits. If the number of shards does not divide n, shards
  differ in size by at most one.

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K, the number of clients.
    shards_per_client: the number of shards of each client.
    seed: the seed of the deal.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, or there are fewer examples than
      shards.

  >>> import fedavg_jax as fa
  >>> labels = np.repeat(np.arange(4), 10)
  >>> parts = fa.partition.shards(
  ...   labels, num_clients=4, shards_per_client=1, seed=0)
  >>> [(len(part), len(set(labels[part]))) for part in parts]
  [(10, 1), (10, 1), (10, 1), (10, 1)]
  """
  labels = exact.class_numbers(labels, 'labels')
  num_examples = len(labels)
  check_clients(num_examples, num_clients)
  rules.check_seed(seed)
  rules.check_whole('shards_per_client', shards_per_client, 1)
  num_shards = num_clients * shards_per_client
  if num_shards > num_examples:
    raise InputError(
      f'num_clients = {num_clients} with shards_per_client ='
      f' {shards_per_client}: {num_shards} shards need at least as many'
      f' training examples, got {num_examples}'
    )
  by_label = np.argsort(labels, kind='stable')
  pieces = np.array_split(by_label, num_shards)
  order = np.random.default_rng(seed).permutation(num_shards)
  return [
    np.concatenate([pieces[i] for i in mine])
    for mine in np.split(order, num_clients)
  ]


def dirichlet(
  labels: np.ndarray,
  *,
  num_clients: int,
  alpha: float | Sequence[float],
  min_size: int = 10,
  self_balancing: bool = False,
  seed: int,
) -> list[np.ndarray]:
  """Deals every class to the clients in proportions p ~ Dir(alpha).

  With a small alpha few clients have most of a class, and sizes differ much
  (Hsu et al. 2019).

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K, the number of clients.
    alpha: the concentration, one number for all clients or K of them.
    min_size: the minimum number of examples of every client; the partition is
      drawn anew until all clients have it.
    self_balancing: whether a client that has n / K examples gets no more.
    seed: the seed of the draws.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, or some client is too small in each of
      1000 draws.

  >>> import fedavg_jax as fa
  >>> labels = np.repeat(np.arange(10), 60)
  >>> parts = fa.partition.dirichlet(labels, num_clients=5, alpha=1.0, seed=0)
  >>> len(parts), sum(len(part) for part in parts)
  (5, 600)
  """
  labels = exact.class_numbers(labels, 'labels')
  num_examples = len(labels)
  check_clients(num_examples, num_clients)
  rules.check_seed(seed)
  rules.check_whole('min_size', min_size, 0)
  concentrations = _check_alpha(alpha, 'num_clients', num_clients)
  if not 0 <= min_size * num_clients <= num_examples:
    raise InputError(
      f'min_size = {min_size}: must be at least 0, and num_clients ='
      f' {num_clients} times it at most the {num_examples} training examples'
    )
  rng = np.random.default_rng(seed)
  by_class = rows_by_class(labels, rng)
  for _ in range(_MOST_DRAWS):
    totals = np.zeros(num_clients, np.int64)
    counts = []  # [K] per class.
    for rows in by_class:
      share = rng.dirichlet(concentrations)
      if self_balancing:
        share = _within(share, totals < num_examples / num_clients)
      counts.append(cut(len(rows), share))
      totals += counts[-1]
    if totals.min() >= min_size:
      return deal(by_class, np.stack(counts), rng)
  raise InputError(
    f'alpha = {alpha}: left some of num_clients = {num_clients} with fewer than'
    f' min_size = {min_size} examples in each of {_MOST_DRAWS} draws; must be'
    ' larger, or min_size smaller'
  )


def inner_dirichlet(
  labels: np.ndarray,
  *,
  sizes: np.ndarray,
  alpha: float | Sequence[float],
  seed: int,
) -> list[np.ndarray]:
  """Draws a mix of classes p ~ Dir(alpha) for each client, at given sizes.

  All clients' places are filled in one random order, each with a class drawn
  from its client's mix, without the classes that are used up (Acar et al.
  2021).

  Args:
    labels: [n] class numbers of any dtype.
    sizes: [K] sizes of the clients, which add up to n.
    alpha: the concentration, one number for all classes or one for each.
    seed: the seed of the draws.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule.

  >>> import fedavg_jax as fa
  >>> labels = np.repeat(np.arange(10), 6)
  >>> parts = fa.partition.inner_dirichlet(
  ...   labels, sizes=np.array([40, 15, 5]), alpha=0.5, seed=0)
  >>> [len(part) for part in parts]
  [40, 15, 5]
  """
  labels = exact.class_numbers(labels, 'labels')
  rules.check_seed(seed)
  sizes = check_sizes(sizes, len(labels))
  rng = np.random.default_rng(seed)
  by_class = rows_by_class(labels, rng)
  concentrations = _check_alpha(alpha, 'the number of labels', len(by_class))
  left = np.array([len(rows) for rows in by_class])
  mixes = rng.dirichlet(concentrations, size=len(sizes))  # [K, classes]
  places = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))  # [n]
  counts = np.zeros((len(by_class), len(sizes)), np.int64)
  while len(places):
    mixes = np.stack([_within(mix, left > 0) for mix in mixes])
    bounds = np.cumsum(mixes, axis=1)[places]
    drawn = (rng.random((len(places), 1)) * bounds[:, -1:] >= bounds).sum(
      axis=1
    )
    # The first places get the class; those that are too late draw again without
    # it.
    late = np.zeros(len(places), bool)
    for label in range(len(by_class)):
      here = np.flatnonzero(drawn == label)
      taken, late[here[left[label] :]] = here[: left[label]], True
      left[label] -= len(taken)
      np.add.at(counts[label], places[taken], 1)
    places = places[late]
  return deal(by_class, counts, rng)


def pathological(
  labels: np.ndarray,
  *,
  num_clients: int,
  classes_per_client: int,
  assignment: str = 'random',
  seed: int,
) -> list[np.ndarray]:
  """Assigns k classes to each client, and divides a class evenly among these.

  Every class has a client: if the draw leaves a class without one, it replaces
  a class that has the most clients.

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K, the number of clients.
    classes_per_client: k, the exact number of classes of each client.
    assignment: the way to assign classes. 'random' draws those of each client;
      'deterministic' assigns classes i, i + 1, ... to client i, and class 0
      after the last; 'first_deterministic' assigns class i and draws the
      others.
    seed: the seed of classes and examples.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, or a class has too few examples or
      no client.

  >>> import fedavg_jax as fa
  >>> labels = np.repeat(np.arange(3), 10)
  >>> parts = fa.partition.pathological(
  ...   labels, num_clients=3, classes_per_client=2,
  ...   assignment='deterministic', seed=0)
  >>> [sorted(set(labels[part].tolist())) for part in parts]
  [[0, 1], [1, 2], [0, 2]]
  """
  labels = exact.class_numbers(labels, 'labels')
  check_clients(len(labels), num_clients)
  rules.check_seed(seed)
  rules.check_whole('classes_per_client', classes_per_client, 1)
  choices.check_choice(
    'class_assignment', assignment, choices.CLASS_ASSIGNMENTS
  )
  rng = np.random.default_rng(seed)
  by_class = rows_by_class(labels, rng)
  number = len(by_class)
  if not 1 <= classes_per_client <= number:
    raise InputError(
      f'classes_per_client = {classes_per_client}: must be in [1, {number}],'
      ' the number of labels'
    )
  if num_clients * classes_per_client < number:
    raise InputError(
      f'classes_per_client = {classes_per_client}: with num_clients ='
      f' {num_clients} leaves some of the {number} labels without a client'
    )
  has = np.zeros((number, num_clients), bool)
  for k in range(num_clients):
    if assignment == 'deterministic':
      mine = (k + np.arange(classes_per_client)) % number
    elif assignment == 'random':
      mine = rng.choice(number, classes_per_client, replace=False)
    else:
      others = np.delete(np.arange(number), k % number)
      mine = [k % number]
      mine += list(rng.choice(others, classes_per_client - 1, replace=False))
    has[mine, k] = True
  while not has.any(axis=1).all():
    missing = int(has.any(axis=1).argmin())
    most = int(has.sum(axis=1).argmax())
    k = int(rng.choice(np.flatnonzero(has[most])))
    has[missing, k], has[most, k] = True, False
  counts = np.stack(
    [
      cut(len(rows), mine / mine.sum())
      for rows, mine in zip(by_class, has, strict=True)
    ]
  )
  short = (has & (counts == 0)).any(axis=1)
  if short.any():
    label = int(short.argmax())
    raise InputError(
      f'num_clients = {num_clients}: {int(has[label].sum())} of them would'
      f' share the {len(by_class[label])} examples of one label; must be fewer'
    )
  return deal(by_class, counts, rng)


def _check_alpha(alpha, what: str, number: int) -> np.ndarray:
  values = np.asarray(alpha, np.float64)
  if values.ndim and values.shape != (number,):
    raise InputError(
      f'alpha: has {values.size} numbers; must be one, or as many as {what} ='
      f' {number}'
    )
  if not (np.isfinite(values) & (values > 0)).all():
    raise InputError(f'alpha = {alpha}: must be above 0')
  return np.broadcast_to(values, number)


def _within(shares: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """Normalizes the shares that are allowed; equal ones if all are zero."""
  shares = np.where(allowed, shares, 0.0)
  total = shares.sum()
  return shares / total if total > 0 else allowed / allowed.sum()
