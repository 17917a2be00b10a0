"""Partitions that go by label."""

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

# Of a Dirichlet partition until all clients are large enough.
_MOST_DRAWS = 1000


def shards(
  labels: np.ndarray, *, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
  """Sorts by label, cuts into shards, deals each client some at random.

  The paper's pathological non-IID split of MNIST: 200 shards of 300, two per
  client, so that most clients hold two digits. Where the number of shards does
  not divide the examples, shards differ in size by at most one.

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K.
    shards_per_client: shards that each client gets.
    seed: decides which shards.

  Returns:
    K index arrays.
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
      f' training examples, there are {num_examples}'
    )
  by_label = np.argsort(labels, kind='stable')
  pieces = np.array_split(by_label, num_shards)
  deal = np.random.default_rng(seed).permutation(num_shards)
  return [
    np.concatenate([pieces[i] for i in mine])
    for mine in np.split(deal, num_clients)
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

  Small alpha: few clients have most of a class, and sizes differ much.

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K.
    alpha: one number for all clients, or K of them.
    min_size: examples that every client must have; the whole partition is drawn
      anew until they do.
    self_balancing: deals nothing more to a client that has n / K examples.
    seed: of the draws.

  Returns:
    K index arrays.

  Raises:
    InputError: a value breaks its rule, or 1000 draws leave some client short.

  >>> labels = np.repeat(np.arange(10), 60)
  >>> parts = dirichlet(labels, num_clients=5, alpha=1.0, seed=0)
  >>> sum(len(part) for part in parts)
  600
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
    held = np.zeros(num_clients, np.int64)
    counts = []  # Of every class, [K].
    for rows in by_class:
      share = rng.dirichlet(concentrations)
      if self_balancing:
        share = _within(share, held < num_examples / num_clients)
      counts.append(cut(len(rows), share))
      held += counts[-1]
    if held.min() >= min_size:
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
  """Gives each client a mix of classes p ~ Dir(alpha), at given sizes.

  All clients' places are filled in one random order, each with a class drawn
  from its client's mix; where that class is used up, from the others in their
  proportions.

  Args:
    labels: [n] class numbers of any dtype.
    sizes: [K] of the clients, which add up to n.
    alpha: one number for all classes, or one for each.
    seed: of the draws.

  Returns:
    K index arrays.
  """
  labels = exact.class_numbers(labels, 'labels')
  rules.check_seed(seed)
  sizes = check_sizes(sizes, len(labels), len(sizes))
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
    # The first ones get it; who came too late draws again without that class.
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
  """Each client has exactly so many classes; a class is shared out evenly.

  Args:
    labels: [n] class numbers of any dtype.
    num_clients: K.
    classes_per_client: k. Every class has a client: where the draw leaves one
      without, it takes the place of one that has the most.
    assignment: 'random' draws the classes of each client; 'deterministic' gives
      client i the classes i, i + 1, ... and begins again after the last;
      'first_deterministic' gives it class i and draws the others.
    seed: of classes and examples.

  Returns:
    K index arrays.
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
      ' the labels there are'
    )
  if num_clients * classes_per_client < number:
    raise InputError(
      f'classes_per_client = {classes_per_client}: with num_clients ='
      f' {num_clients} leaves some of the {number} labels to nobody'
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
  own = np.asarray(alpha, np.float64)
  if own.ndim and own.shape != (number,):
    raise InputError(
      f'alpha: {own.size} numbers; must be one, or as many as {what} = {number}'
    )
  if not (np.isfinite(own) & (own > 0)).all():
    raise InputError(f'alpha = {alpha}: must be above 0')
  return np.broadcast_to(own, number)


def _within(shares: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """The shares of those that are allowed, evenly where they have none."""
  shares = np.where(allowed, shares, 0.0)
  total = shares.sum()
  return shares / total if total > 0 else allowed / allowed.sum()
