"""Draws a round's cohort, its clients' completed work and their reading order.

NumPy only. All of it is a pure function of (seed, round, client sizes),
independent of lanes and devices, for which `planning.py` lays it out.

Shape letters: K clients, M cohort size, m <= M clients of a round.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule import arrivals
from fedavg_jax.schedule.completion import WorkContext
from fedavg_jax.schedule.draws import DrawContext
from fedavg_jax.schedule.draws import num_unavailable
from fedavg_jax.schedule.participation import EVERYBODY
from fedavg_jax.schedule.participation import Participation

# One independent stream of random numbers for each purpose; partition/,
# participation.py and clock.py have others.
_COHORT, _ORDER = 1, 2


def cohort_size(num_clients: int, client_fraction: float) -> int:
  """Returns the size of a cohort, max(int(C * K), 1).

  The product is rounded to six decimals before it is truncated, because
  0.29 * 100 is 28.999999999999996.

  Args:
    num_clients: K, the number of clients.
    client_fraction: C in [0, 1]; 0 is one client.

  >>> cohort_size(100, 0.29), cohort_size(100, 0.0)
  (29, 1)
  """
  rules.check_fraction('client_fraction', client_fraction, one=True)
  return max(int(round(client_fraction * num_clients, 6)), 1)


def poisson_rate(num_clients: int, client_fraction: float) -> float:
  """Returns the probability q of drawing each client independently.

  It is C, but at least 1 / K: as in `cohort_size`, C = 0 stands for a cohort of
  one client, here on average.

  Args:
    num_clients: K, the number of clients.
    client_fraction: C in [0, 1].

  >>> poisson_rate(100, 0.29), poisson_rate(100, 0.0)
  (0.29, 0.01)
  """
  rules.check_fraction('client_fraction', client_fraction, one=True)
  return max(float(client_fraction), 1 / num_clients)


def expected_cohort(
  num_clients: int, client_fraction: float, *, poisson: bool
) -> float:
  """Returns the expected number of clients that a round draws.

  Args:
    num_clients: K, the number of clients.
    client_fraction: C in [0, 1].
    poisson: whether each client is drawn independently.

  >>> expected_cohort(101, 0.1, poisson=False)
  10.0
  >>> round(expected_cohort(101, 0.1, poisson=True), 6)
  10.1
  """
  if poisson:
    return poisson_rate(num_clients, client_fraction) * num_clients
  return float(cohort_size(num_clients, client_fraction))


def most_drawn(num_clients: int, client_fraction: float) -> int:
  """Returns the largest cohort of a Poisson draw, for one compiled shape.

  It is the mean plus five standard deviations of the number of clients drawn,
  rounded up, at most K. Larger cohorts are truncated, see `draws.poisson`.

  >>> most_drawn(100, 0.1), most_drawn(100, 1.0)
  (25, 100)
  """
  rate = poisson_rate(num_clients, client_fraction)
  mean = rate * num_clients
  # Rounded before it is rounded up, as 10 + 5 * 3.0000000000000004 is not 25.
  most = math.ceil(round(mean + 5 * math.sqrt(mean * (1 - rate)), 6))
  return min(most, num_clients)


class RoundCost(NamedTuple):
  """Holds a round's communication cost and its simulated time.

  Attributes:
    drawn: clients that received the model.
    reported: clients whose update is in the mean.
    bytes_down: bytes that the clients receive.
    bytes_up: bytes that the clients send.
    seconds: simulated seconds of the slowest client's download, work and
      upload, at most the deadline; None without a clock.
  """

  drawn: int
  reported: int
  bytes_down: int
  bytes_up: int
  seconds: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
  """Draws cohorts and reading orders, and computes a round's cost.

  Attributes:
    num_examples: [K] n_k of every client.
    cohort_size: M, clients that train in a round.
    participation: the draw of clients and the work that each completes.
    epochs: E, local epochs.
    batch_size: B; 0 puts all local examples into one minibatch.
    shuffle: 'epoch' draws a new order for every epoch; 'round' draws one for
      all epochs of a round, as Algorithm 1 of McMahan et al. 2017 does.
    seed: the seed of the cohorts and the orders.
    bytes_down: bytes that a client receives before it trains.
    bytes_up: bytes that a client sends after it has trained.
    concurrency: the number of clients that train at any time with a
      `participation.buffer`, which M then is; 0 trains whole cohorts.
    rate: q, the probability of drawing each client with `participation.poisson`
      of which at most M then train; 0 draws M clients.

  Raises:
    InputError: a value breaks its rule.
  """

  num_examples: np.ndarray
  cohort_size: int
  participation: Participation = EVERYBODY
  epochs: int
  batch_size: int
  shuffle: str = 'epoch'
  seed: int
  bytes_down: int = 0
  bytes_up: int = 0
  concurrency: int = 0
  rate: float = 0.0

  def __post_init__(self) -> None:
    rules.check_seed(self.seed)
    number = len(self.num_examples)
    self.participation.check(number)
    for name in ('cohort_size', 'epochs', 'batch_size'):
      rules.check_whole(name, getattr(self, name), int(name != 'batch_size'))
    unavailable = self.participation.unavailable_fraction
    available = number - num_unavailable(number, unavailable)
    if not (self.num_examples > 0).any():
      raise InputError('num_examples: are all 0; a client must have examples')
    for name, holds, rule in (
      (
        'cohort_size',
        1 <= self.cohort_size <= available,
        f'must be in [1, {available}], the available clients',
      ),
      (
        'rate',
        0 < self.rate <= 1 if self.participation.poisson else self.rate == 0,
        'must be in (0, 1] with participation.poisson, else 0',
      ),
      (
        'epochs',
        self.epochs * int(self.num_examples.sum()) < 2**31,
        'times all examples must stay below 2**31',
      ),
      (
        'epochs',
        self.epochs > 1 or not self.participation.stragglers_by_epoch,
        "must be at least 2 with straggler_work = 'epochs': stragglers complete"
        ' some epochs, but not all',
      ),
    ):
      if not holds:
        raise InputError(f'{name} = {getattr(self, name)!r}: {rule}')
    choices.check_choice('shuffle', self.shuffle, choices.SHUFFLES)
    if self.participation.has_own_rules:
      self._check_custom_rules()

  def _check_custom_rules(self) -> None:
    """Raises InputError if a custom rule fails or is not pure in round 1.

    With a rule that counts its calls, or draws from another generator, results
    would depend on the rounds per call and change after a resume.
    """
    first, again = self.work(1), self.work(1)
    for name, result, other in zip(
      ('draw', 'completion'), first, again, strict=True
    ):
      if not np.array_equal(result, other):
        raise InputError(
          f'participation.{name}: returns another result when it is called'
          ' again for round 1; must depend on its arguments alone'
        )

  @functools.cached_property
  def _readonly_sizes(self) -> np.ndarray:
    """Returns n_k of every client as a view that rules cannot change, [K]."""
    sizes = self.num_examples.view()
    sizes.flags.writeable = False
    return sizes

  @functools.cached_property
  def batch_examples(self) -> int:
    """Returns the most examples of a minibatch: B, at most max(n_k)."""
    largest = int(self.num_examples.max())
    return min(self.batch_size or largest, largest)

  def cohort(self, round_number: int) -> np.ndarray:
    """Returns the clients of a round's updates, all different, [m] int64."""
    if self.concurrency:
      return self.arrivals.of_round(round_number).clients
    return self.participation.cohort(
      np.random.default_rng([self.seed, _COHORT, round_number]),
      DrawContext(
        round_number, self._readonly_sizes, self.cohort_size, self.rate
      ),
    )

  @property
  def num_models(self) -> int:
    """Counts the last models that asynchronous clients need; 0 if none are."""
    return self.participation.most_staleness + 1 if self.concurrency else 0

  @functools.cached_property
  def arrivals(self) -> arrivals.Arrivals:
    """Returns the arrivals of asynchronous clients."""
    everybody = np.arange(len(self.num_examples))
    seconds = self._work_seconds(everybody)
    return arrivals.Arrivals(
      np.where(self.num_examples > 0, seconds, np.inf),
      concurrency=self.concurrency,
      buffer=self.cohort_size,
      most_staleness=self.participation.most_staleness,
      seed=self.seed,
    )

  def work(self, round_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a round's clients and the work that each completes.

    Returns:
      cohort [m], and completed [m], the minibatches behind each client's
      update; a client that completed none sends nothing.
    """
    cohort = self.cohort(round_number)
    updates = self._updates_of_an_epoch(cohort)
    work = WorkContext(
      round_number=round_number,
      clients=cohort,
      num_examples=self.num_examples[cohort],
      epochs=self.epochs,
      updates_per_epoch=updates,
      in_time=self._updates_in_time(cohort, self.epochs * updates),
    )
    return cohort, self.participation.completed(self.seed, work)

  def slots(self, round_number: int) -> np.ndarray:
    """Returns the clients of a plan's slots, [M]; the last may be idle."""
    return self._slots(self.cohort(round_number))

  def _slots(self, cohort) -> np.ndarray:
    """Fills up a cohort of fewer than M with clients that do not train."""
    missing = self.cohort_size - len(cohort)
    if not missing:
      return cohort
    others = np.setdiff1d(np.arange(len(self.num_examples)), cohort)
    return np.concatenate([cohort, others[:missing]])

  def cost(self, round_number: int) -> RoundCost:
    """Returns a round's communication cost and its simulated time."""
    if self.concurrency:
      return self._asynchronous_cost(round_number)
    cohort, completed = self.work(round_number)
    reports = completed > 0
    return RoundCost(
      drawn=len(cohort),
      reported=int(reports.sum()),
      bytes_down=len(cohort) * self.bytes_down,
      bytes_up=int(reports.sum()) * self.bytes_up,
      seconds=self._simulated_seconds(cohort),
    )

  def _asynchronous_cost(self, round_number: int) -> RoundCost:
    """Returns the cost since the round before, discarded updates included."""
    now, before = self.arrivals.of_round(round_number), 0.0
    if round_number > 1:
      before = self.arrivals.of_round(round_number - 1).time
    return RoundCost(
      drawn=now.started,
      reported=len(now.clients),
      bytes_down=now.started * self.bytes_down,
      bytes_up=now.finished * self.bytes_up,
      seconds=now.time - before,
    )

  def _simulated_seconds(self, cohort) -> float | None:
    """Returns the time of the slowest client's work, at most the deadline.

    The server waits as long for clients that stop early by chance, because it
    cannot know that they have stopped.
    """
    clock = self.participation.clock
    if clock is None:
      return None
    seconds = self._work_seconds(cohort)[self.num_examples[cohort] > 0]
    slowest = float(seconds.max(initial=0.0))
    return min(slowest, clock.deadline or slowest)

  def _work_seconds(self, cohort) -> np.ndarray:
    """Returns simulated seconds of each client's round, [m]."""
    clock = self.participation.clock
    assert clock is not None
    work = self.epochs * self.num_examples[cohort]
    return (
      self._transfer_seconds(cohort) + work / clock.examples_per_second[cohort]
    )

  def _updates_of_an_epoch(self, cohort) -> np.ndarray:
    return -(-self.num_examples[cohort] // self.batch_examples)

  def _updates_in_time(self, cohort, updates) -> np.ndarray:
    """Returns the minibatches each client finishes before the deadline, [m]."""
    clock = self.participation.clock
    if clock is None or not clock.deadline:
      return updates
    left = np.maximum(clock.deadline - self._transfer_seconds(cohort), 0.0)
    sizes = self.num_examples[cohort]
    # Rounding must not lose an example that is just in time.
    examples = left * clock.examples_per_second[cohort] * (1 + 1e-9)
    examples = np.minimum(examples, self.epochs * sizes).astype(np.int64)
    epochs, rest = np.divmod(examples, np.maximum(sizes, 1))
    return (
      epochs * self._updates_of_an_epoch(cohort) + rest // self.batch_examples
    )

  def _transfer_seconds(self, cohort) -> np.ndarray:
    """Returns simulated seconds of each client's download and upload, [m]."""
    clock = self.participation.clock
    assert clock is not None
    return (
      self.bytes_down / clock.bytes_down_per_second[cohort]
      + self.bytes_up / clock.bytes_up_per_second[cohort]
    )

  def epoch_orders(self, round_number: int, client: int) -> np.ndarray:
    """Returns the order in which a client reads its examples, [E, n_k].

    Each row is a permutation of 0 .. n_k - 1.
    """
    rng = np.random.default_rng([self.seed, _ORDER, round_number, client])
    size = int(self.num_examples[client])
    if self.shuffle == 'round':
      return np.tile(rng.permutation(size), (self.epochs, 1))
    return np.stack([rng.permutation(size) for _ in range(self.epochs)])

  def padded_batches(
    self, round_number: int, ids: Sequence[int] | np.ndarray
  ) -> np.ndarray:
    """Returns the batches of some clients, [M, T, B], with -1 as padding.

    A client reads each row of `epoch_orders` in batches of B; the last one of
    an epoch may be short. After the client's batches follow empty ones.
    `reference.py` trains on them.
    """
    width = self.batch_examples
    batches = [
      [
        order[start : start + width]
        for order in self.epoch_orders(round_number, k)
        for start in range(0, len(order), width)
      ]
      for k in ids
    ]
    longest = max(len(mine) for mine in batches)
    padded = np.full((len(ids), longest, width), -1, np.int32)
    for row, mine in enumerate(batches):
      for t, batch in enumerate(mine):
        padded[row, t, : len(batch)] = batch
    return padded
