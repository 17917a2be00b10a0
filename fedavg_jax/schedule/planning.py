"""The round's programme: who trains, on which examples, in which lane, when.

NumPy only. A plan is a pure function of (seed, round, client sizes) and of how
the lanes are laid out; the device code follows it and knows no sampling, no
shuffling and no packing. The cohort, the order of a client's examples and its
batches never depend on lanes or devices.

A *lane* is one slot of the vmapped axis. It trains one client after another,
each from the global model. Clients are packed longest first onto the lane with
the least work. A *step* is one minibatch of every lane, or a part of one where
minibatches are large; an *event* is a step after which some lane ends a client.

Shape letters: K clients, M cohort, L lanes (of all devices), D devices, T steps
at most, S events at most, N positions in the order of reading, W widths.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.local_steps import client_steps
from fedavg_jax.schedule.local_steps import count_steps
from fedavg_jax.schedule.packing import pack
from fedavg_jax.schedule.participation import EVERYBODY
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.participation import num_unavailable
from fedavg_jax.schedule.plan import Plan

# One independent stream of random numbers for each purpose, beside those of
# partition/ and participation.py.
_COHORT, _ORDER = 1, 2


def cohort_size(num_clients: int, client_fraction: float) -> int:
  """The cohort, max(int(C * K), 1); a C such as 0.29 counts as written.

  Args:
    num_clients: K.
    client_fraction: C in [0, 1]; 0 is one client.

  Returns:
    m. The product is rounded to six decimals before it is cut, because
    0.29 * 100 is 28.999999999999996.

  >>> cohort_size(100, 0.29), cohort_size(100, 0.0)
  (29, 1)
  """
  rules.check_fraction('client_fraction', client_fraction, one=True)
  return max(int(round(client_fraction * num_clients, 6)), 1)


class Account(NamedTuple):
  """What a round costs outside the device, as the clients would see it.

  Attributes:
    drawn: clients that received the model.
    reported: clients whose message is in the mean.
    bytes_down: to the clients.
    bytes_up: from them.
    seconds: simulated, that all work of the slowest client takes, messages
      there and back included, or the deadline; None without a clock.
  """

  drawn: int
  reported: int
  bytes_down: int
  bytes_up: int
  seconds: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
  """Everything that plans depend on, but the round.

  Attributes:
    num_examples: [K] n_k of every client.
    cohort_size: m, clients that train in a round.
    participation: who can be drawn, and how far each client comes.
    epochs: E.
    batch_size: B, 0 for all local examples in one step.
    micro_batch: most examples of a step; a larger minibatch takes several
      steps, of about equal parts, and one update. 0 is no limit.
    shuffle: 'epoch' draws a new order for every epoch, 'round' one for all
      epochs of a round, as Algorithm 1 reads.
    weighting: of a client in the cohort's mean, 'examples' is n_k over the
      cohort's sum, 'uniform' one over the cohort's clients that have any.
    seed: of the cohorts and the orders.
    lanes: L, lanes of all devices together.
    num_devices: D, divides L.
    widths: [W] lanes of a device that step together, descending from L / D. A
      device goes on with fewer of them once the others are idle to the end.
    bytes_down: that a client receives at its begin.
    bytes_up: that it sends at its end.
    streamed: whether rows are counted in a buffer of each device, which holds
      the examples of its own clients alone, one after another.
    gathers: whether `Plan.cohort` counts in the states of the cohort alone, in
      the order of `slots`.
  """

  num_examples: np.ndarray
  cohort_size: int
  participation: Participation = EVERYBODY
  epochs: int
  batch_size: int
  micro_batch: int = 0
  shuffle: str = 'epoch'
  weighting: str = 'examples'
  seed: int
  lanes: int = 1
  num_devices: int = 1
  widths: tuple[int, ...] = ()
  bytes_down: int = 0
  bytes_up: int = 0
  streamed: bool = False
  gathers: bool = False

  def __post_init__(self):
    if not self.widths:
      width = (max(self.lanes // self.num_devices, 1),)
      object.__setattr__(self, 'widths', width)
    number = len(self.num_examples)
    rules.check_seed(self.seed)
    for name in ('cohort_size', 'epochs', 'batch_size', 'micro_batch', 'lanes'):
      low = int(name in ('cohort_size', 'epochs', 'lanes'))
      rules.check_whole(name, getattr(self, name), low)
    self.participation.check(number)
    away = self.participation.unavailable_fraction
    reachable = number - num_unavailable(number, away)
    for name, holds, rule in (
      (
        'num_examples',
        (self.num_examples > 0).any(),
        'some client must have examples',
      ),
      (
        'cohort_size',
        1 <= self.cohort_size <= reachable,
        f'must lie in [1, {reachable}], the clients in reach',
      ),
      (
        'epochs',
        self.epochs * int(self.num_examples.sum()) < 2**31,
        'times all examples must stay below 2**31',
      ),
      (
        'lanes',
        self.lanes % self.num_devices == 0,
        f'must be a multiple of num_devices = {self.num_devices}',
      ),
      (
        'widths',
        self.widths[0] * self.num_devices == self.lanes
        and all(a > b >= 1 for a, b in itertools.pairwise(self.widths)),
        'must descend from the lanes of a device',
      ),
    ):
      if not holds:
        raise InputError(f'{name} = {getattr(self, name)!r}: {rule}')
    choices.check_choice('shuffle', self.shuffle, choices.SHUFFLES)
    choices.check_choice('weighting', self.weighting, choices.WEIGHTINGS)

  @functools.cached_property
  def batch_examples(self) -> int:
    """Most examples of a minibatch: B, or the largest n_k where B is larger."""
    largest = int(self.num_examples.max())
    return min(self.batch_size or largest, largest)

  @functools.cached_property
  def step_examples(self) -> int:
    """Rows of a step: a minibatch, or the most of it that a step may hold."""
    parts = -(-self.batch_examples // (self.micro_batch or self.batch_examples))
    return -(-self.batch_examples // parts)

  @property
  def accumulates(self) -> bool:
    """Whether some minibatches take several steps."""
    return self.step_examples < self.batch_examples

  def cohort(self, round_number: int) -> np.ndarray:
    """The clients drawn for a round, without replacement, [m], m <= M."""
    return self.participation.draw(
      np.random.default_rng([self.seed, _COHORT, round_number]),
      round_number,
      len(self.num_examples),
      self.cohort_size,
    )

  def work(self, round_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Clients drawn for a round, and how far each comes.

    Returns:
      cohort [m], and completed [m], the minibatches that each client's message
      comes from; a client that completed none sends nothing.
    """
    cohort = self.cohort(round_number)
    updates = self.epochs * self._updates_of_an_epoch(cohort)
    return cohort, self.participation.completed(
      self.seed, round_number, updates, self._updates_in_time(cohort, updates)
    )

  def steps_of_round(self, round_number: int) -> np.ndarray:
    """Steps that each client of a round's cohort takes, [m]."""
    return count_steps(map(self._program, *self.work(round_number)))

  def slots(self, round_number: int) -> np.ndarray:
    """Clients by their places in a plan, [M]; the last may train nothing."""
    return self._slots(self.cohort(round_number))

  def _slots(self, cohort) -> np.ndarray:
    """The cohort, and others that train nothing, where it has too few."""
    missing = self.cohort_size - len(cohort)
    if not missing:
      return cohort
    others = np.setdiff1d(np.arange(len(self.num_examples)), cohort)
    return np.concatenate([cohort, others[:missing]])

  def loads(self, round_number: int) -> list[np.ndarray]:
    """Clients that each device trains in a round, [D] of them in lane order."""
    cohort, completed = self.work(round_number)
    lanes = self._deal(count_steps(map(self._program, cohort, completed)))
    width = self.widths[0]
    return [
      cohort[np.concatenate(lanes[d * width :][:width]).astype(np.int64)]
      for d in range(self.num_devices)
    ]

  def account(self, round_number: int) -> Account:
    """What a round costs outside the device."""
    cohort, completed = self.work(round_number)
    reports = completed > 0
    return Account(
      drawn=len(cohort),
      reported=int(reports.sum()),
      bytes_down=len(cohort) * self.bytes_down,
      bytes_up=int(reports.sum()) * self.bytes_up,
      seconds=self._simulated_seconds(cohort),
    )

  def _simulated_seconds(self, cohort) -> float | None:
    """What all work of the slowest client takes, the deadline at most.

    The server waits so long for stragglers by chance too: it does not know.
    """
    clock = self.participation.clock
    if clock is None:
      return None
    sizes = self.num_examples[cohort]
    seconds = (
      self._seconds_under_way(cohort)
      + self.epochs * sizes / clock.examples_per_second[cohort]
    )
    slowest = float(seconds[sizes > 0].max(initial=0.0))
    return min(slowest, clock.deadline or slowest)

  def _updates_of_an_epoch(self, cohort) -> np.ndarray:
    return -(-self.num_examples[cohort] // self.batch_examples)

  def _updates_in_time(self, cohort, updates) -> np.ndarray:
    """Of a client's minibatches, those that let its message be in time, [m]."""
    clock = self.participation.clock
    if clock is None or not clock.deadline:
      return updates
    left = np.maximum(clock.deadline - self._seconds_under_way(cohort), 0.0)
    sizes = self.num_examples[cohort]
    # What is exactly enough must not be one too few by rounding.
    examples = left * clock.examples_per_second[cohort] * (1 + 1e-9)
    examples = np.minimum(examples, self.epochs * sizes).astype(np.int64)
    epochs, rest = np.divmod(examples, np.maximum(sizes, 1))
    return (
      epochs * self._updates_of_an_epoch(cohort) + rest // self.batch_examples
    )

  def _seconds_under_way(self, cohort) -> np.ndarray:
    """Simulated seconds of a client's messages, there and back, [m]."""
    clock = self.participation.clock
    assert clock is not None
    return (
      self.bytes_down / clock.bytes_down_per_second[cohort]
      + self.bytes_up / clock.bytes_up_per_second[cohort]
    )

  def _program(self, client, completed) -> tuple[np.ndarray, ...]:
    return client_steps(
      int(self.num_examples[client]),
      self.batch_examples,
      self.step_examples,
      self.epochs,
      int(completed),
    )

  def epoch_orders(self, round_number: int, client: int) -> np.ndarray:
    """The order in which a client reads its 0 .. n_k - 1 examples, [E, n_k]."""
    rng = np.random.default_rng([self.seed, _ORDER, round_number, client])
    size = int(self.num_examples[client])
    if self.shuffle == 'round':
      return np.tile(rng.permutation(size), (self.epochs, 1))
    return np.stack([rng.permutation(size) for _ in range(self.epochs)])

  def padded_batches(
    self, round_number: int, ids: Sequence[int] | np.ndarray
  ) -> np.ndarray:
    """The batches of some clients for `reference.py`, [M, T, B], -1 = padding.

    A client reads each row of `epoch_orders` in batches of B, the last one of
    an epoch may be short; after its own batches come empty ones.
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

  def __call__(self, round_number: int) -> Plan:
    """The plan of one round; its shapes are the same for every round."""
    cohort, completed = self.work(round_number)
    programs = list(map(self._program, cohort, completed))
    steps = count_steps(programs)
    weights = self._weights[cohort] * (completed > 0)
    total = weights.sum()
    plan = self._empty()
    plan.cohort[:] = (
      np.arange(self.cohort_size) if self.gathers else self._slots(cohort)
    )
    plan.share[...] = total / self._weights.sum()
    ends = []  # (lane, first step, last step + 1, position in the cohort)
    position = 0
    loaded = np.zeros(self.num_devices, np.int64)  # Rows of their buffers.
    for lane, mine in enumerate(self._deal(steps)):
      t = 0
      for i in mine:
        k, device = cohort[i], lane // self.widths[0]
        begin = loaded[device] if self.streamed else self._offsets[k]
        loaded[device] += self.num_examples[k]
        orders = self.epoch_orders(round_number, k)  # [E, n_k]
        start, count, batch, completes = programs[i]
        rows = begin + orders.ravel()
        plan.order[position : position + rows.size] = rows
        now = slice(t, t + start.size)
        plan.start[lane, now] = position + start
        plan.count[lane, now] = count
        plan.batch[lane, now] = batch
        plan.completes[lane, now] = completes
        position += rows.size
        # A step reads on behind a short minibatch. Those losses are masked, but
        # zero times another client's Inf would be in the gradient: own rows.
        padding = self.step_examples - int(count[-1])
        plan.order[position : position + padding] = rows[0]
        position += padding
        ends.append((lane, t, now.stop, i))
        t = now.stop
    width = self.widths[0]
    for device in range(self.num_devices):
      mine = [end for end in ends if end[0] // width == device]
      times = sorted({stop for *_, stop, _ in mine})
      plan.event[device, : len(times)] = times
      # The longest lane is the first: as many are busy as end later.
      lane_ends = (plan.count[device * width :][:width] > 0).sum(axis=1)
      for w, fewer in enumerate([*self.widths[1:], 0]):
        plan.until[device, w] = np.searchsorted(
          times, lane_ends[fewer], 'right'
        )
      after = {stop: s + 1 for s, stop in enumerate(times)} | {0: 0}
      for lane, first, stop, i in mine:
        s = after[stop] - 1
        plan.begins[lane, after[first]] = i
        plan.ends[lane, s] = i
        plan.weight[lane, s] = weights[i] / total
    return plan

  def _deal(self, steps: np.ndarray) -> list[list[int]]:
    """Clients of every lane; the longest lanes come first on every device."""
    packed = pack(steps, self.lanes)
    packed.sort(key=lambda mine: -steps[mine].sum())
    return [
      packed[i * self.num_devices + device]
      for device in range(self.num_devices)
      for i in range(self.widths[0])
    ]

  def steps(self, num_examples: np.ndarray) -> np.ndarray:
    """Steps that E epochs of clients of these sizes take."""
    full, rest = np.divmod(num_examples, self.batch_examples)
    per_full = -(-self.batch_examples // self.step_examples)
    return self.epochs * (full * per_full + -(-rest // self.step_examples))

  @functools.cached_property
  def _weights(self) -> np.ndarray:
    """Weights of all clients, to be divided by a sum, [K]."""
    if self.weighting == 'uniform':
      return (self.num_examples > 0).astype(np.float64)
    return self.num_examples

  @functools.cached_property
  def _offsets(self):
    return np.concatenate([[0], np.cumsum(self.num_examples)])

  @functools.cached_property
  def buffer_examples(self) -> int:
    """Examples that one device's clients can have at most, of any cohort."""
    everybody = int(np.sort(self.num_examples)[-self.cohort_size :].sum())
    clock = self.participation.clock
    if self.participation.straggler_fraction or (clock and clock.deadline):
      return everybody  # Who stops early has more examples than steps for them.
    longest, _ = self._sizes
    steps = self.widths[0] * longest  # Of a device: each reads so many at most.
    return min(everybody, steps * self.step_examples // self.epochs)

  @functools.cached_property
  def _sizes(self) -> tuple[int, int]:
    """T and N that are enough for the largest cohort there can be."""
    largest = np.sort(self.num_examples)[-self.cohort_size :]
    steps = self.steps(largest)
    # Longest first never exceeds this (Graham 1969): the lane that ends last
    # had the least work when it took its last client, so at most the average
    # of all the others.
    longest = -(-(steps.sum() + (self.lanes - 1) * steps.max()) // self.lanes)
    padding = self.cohort_size * (self.step_examples - 1)
    return int(longest), int(self.epochs * largest.sum() + padding)

  def _empty(self) -> Plan:
    """An idle plan, large enough for every cohort."""
    longest, positions = self._sizes
    lanes, devices, events = self.lanes, self.num_devices, self.cohort_size
    return Plan(
      cohort=np.zeros(events, np.int32),
      share=np.zeros((), np.float32),
      order=np.zeros(positions, np.int32),
      start=np.zeros((lanes, longest), np.int32),
      count=np.zeros((lanes, longest), np.int32),
      batch=np.zeros((lanes, longest), np.int32),
      completes=np.zeros((lanes, longest), bool),
      event=np.zeros((devices, events), np.int32),
      until=np.zeros((devices, len(self.widths)), np.int32),
      ends=np.full((lanes, events), -1, np.int32),
      begins=np.full((lanes, events + 1), -1, np.int32),
      weight=np.zeros((lanes, events), np.float32),
      seed=np.array(self.seed, np.int32),
    )
