"""Plans a round: which client trains in which lane, on which examples, when.

NumPy only. `sampling.py` decides who takes part and in which order each client
reads its examples, and `packing.py` assigns clients to lanes. A plan is a pure
function of (seed, round, client sizes) and of the layout of the lanes; the
device code follows it and contains no sampling, shuffling or packing. The
cohort, the order of a client's examples and its batches never depend on lanes
or devices.

A *lane* is one slot of the vmapped axis. It trains one client after another,
each from the global model. Clients are packed longest first onto the lane with
the least work. A *step* is one minibatch of every lane, or a part of one if
minibatches are large; an *event* is a step after which a client of some lane
has finished.

Shape letters: K clients, M cohort, L lanes (of all devices), D devices, T steps
at most, S events at most, N positions in the order of reading, W widths.
"""

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
from fedavg_jax.schedule.plan import Plan
from fedavg_jax.schedule.sampling import Sampler


class _Stay(NamedTuple):
  """Holds a client's place in its lane: steps `first` to `stop` - 1."""

  lane: int
  first: int
  stop: int
  position: int  # In the cohort.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planner(Sampler):
  """Assigns the clients of a round to lanes: round number -> `Plan`.

  The attributes of `Sampler` come first. All plans have the same shapes, which
  suffice for every cohort.

  >>> import fedavg_jax as fa
  >>> planner = fa.engine.Planner(
  ...   num_examples=np.array([3, 1, 2, 6]), cohort_size=2, epochs=1,
  ...   batch_size=2, lanes=2, seed=0)
  >>> plan = planner(1)
  >>> plan.cohort.shape, plan.start.shape  # [M], [L, T].
  ((2,), (2, 4))
  >>> bool((plan.count > 0).sum() == planner.steps_of_round(1).sum())
  True

  Attributes:
    micro_batch: the most examples of a step; a larger minibatch takes several
      steps, of about equal size, and one update. 0 is no limit.
    weighting: a client's weight in the cohort's mean; 'examples' is n_k over
      the cohort's sum, 'uniform' is one over the number of the cohort's clients
      that have examples.
    lanes: L, the number of lanes of all devices together.
    num_devices: D, the number of devices, which divides L.
    widths: [W] lanes of a device that step together, descending from L / D. A
      device continues with fewer of them once the others are idle to the end.
    streamed: whether `Plan.order` counts rows in a buffer of each device, which
      has only the examples of the device's clients, one after another.
    gathers: whether `Plan.slots` counts rows in the cohort's states, in the
      order of `Sampler.slots`, instead of the states of all clients.

  Raises:
    InputError: a value breaks its rule.
  """

  micro_batch: int = 0
  weighting: str = 'examples'
  lanes: int = 1
  num_devices: int = 1
  widths: tuple[int, ...] = ()
  streamed: bool = False
  gathers: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.widths:
      width = (max(self.lanes // self.num_devices, 1),)
      object.__setattr__(self, 'widths', width)
    rules.check_whole('micro_batch', self.micro_batch, 0)
    rules.check_whole('lanes', self.lanes, 1)
    for name, holds, rule in (
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
    choices.check_choice('weighting', self.weighting, choices.WEIGHTINGS)

  @functools.cached_property
  def step_examples(self) -> int:
    """Returns the rows of a step: a minibatch, or its largest part."""
    parts = -(-self.batch_examples // (self.micro_batch or self.batch_examples))
    return -(-self.batch_examples // parts)

  @property
  def accumulates(self) -> bool:
    """Returns whether some minibatches take several steps."""
    return self.step_examples < self.batch_examples

  def steps_of_round(self, round_number: int) -> np.ndarray:
    """Returns the steps that each client of a round's cohort takes, [m]."""
    return count_steps(map(self._program, *self.work(round_number)))

  def loads(self, round_number: int) -> list[np.ndarray]:
    """Returns the clients of each device in a round, [D] arrays by lane."""
    cohort, completed = self.work(round_number)
    lanes = self._deal(count_steps(map(self._program, cohort, completed)))
    width = self.widths[0]
    return [
      cohort[np.concatenate(lanes[d * width :][:width]).astype(np.int64)]
      for d in range(self.num_devices)
    ]

  def _program(self, client, completed) -> tuple[np.ndarray, ...]:
    return client_steps(
      int(self.num_examples[client]),
      self.batch_examples,
      self.step_examples,
      self.epochs,
      int(completed),
    )

  def __call__(self, round_number: int) -> Plan:
    """Returns the plan of a round; its shapes are the same for every round."""
    cohort, completed = self.work(round_number)
    programs = list(map(self._program, cohort, completed))
    weights = self._weights[cohort] * (completed > 0)
    total = weights.sum()
    plan = self._empty()
    plan.cohort[:] = self._slots(cohort)
    plan.slots[:] = np.arange(self.cohort_size) if self.gathers else plan.cohort
    plan.num_examples[:] = self.num_examples[plan.cohort]
    plan.share[...] = total / self._weights.sum()
    if plan.staleness is not None:
      plan.staleness[:] = self.arrivals.of_round(round_number).staleness
    stays = self._write_steps(plan, round_number, cohort, programs)
    for device in range(self.num_devices):
      mine = [stay for stay in stays if stay.lane // self.widths[0] == device]
      self._write_events(plan, device, mine, weights / (total or 1.0))
    return plan

  def _write_steps(
    self, plan: Plan, round_number: int, cohort: np.ndarray, programs: list
  ) -> list[_Stay]:
    """Writes what each lane reads in each step; returns the clients' places."""
    stays, position = [], 0
    loaded = np.zeros(self.num_devices, np.int64)  # Rows in each buffer.
    for lane, mine in enumerate(self._deal(count_steps(programs))):
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
        # A step reads beyond a short minibatch. Those losses are masked, but
        # zero times another client's Inf would be NaN in the gradient, so the
        # padding is a row of the same client.
        padding = self.step_examples - int(count[-1])
        plan.order[position : position + padding] = rows[0]
        position += padding
        stays.append(_Stay(lane, t, now.stop, i))
        t = now.stop
    return stays

  def _write_events(
    self, plan: Plan, device: int, stays: list[_Stay], shares: np.ndarray
  ) -> None:
    """Writes when a device's clients begin and end, and their weights."""
    width = self.widths[0]
    times = sorted({stay.stop for stay in stays})
    plan.event[device, : len(times)] = times
    # Lanes are sorted, the longest first: as many are busy as end later.
    lane_ends = (plan.count[device * width :][:width] > 0).sum(axis=1)
    for w, fewer in enumerate([*self.widths[1:], 0]):
      plan.until[device, w] = np.searchsorted(times, lane_ends[fewer], 'right')
    after = {stop: s + 1 for s, stop in enumerate(times)} | {0: 0}
    for lane, first, stop, i in stays:
      s = after[stop] - 1
      plan.begins[lane, after[first]] = i
      plan.ends[lane, s] = i
      plan.weight[lane, s] = shares[i]

  def _deal(self, steps: np.ndarray) -> list[list[int]]:
    """Assigns clients to lanes, the longest lanes first on every device."""
    packed = pack(steps, self.lanes)
    packed.sort(key=lambda mine: -steps[mine].sum())
    return [
      packed[i * self.num_devices + device]
      for device in range(self.num_devices)
      for i in range(self.widths[0])
    ]

  def steps(self, num_examples: np.ndarray) -> np.ndarray:
    """Counts the steps that E epochs of clients of these sizes take."""
    full, rest = np.divmod(num_examples, self.batch_examples)
    per_full = -(-self.batch_examples // self.step_examples)
    return self.epochs * (full * per_full + -(-rest // self.step_examples))

  @functools.cached_property
  def _weights(self) -> np.ndarray:
    """Returns the weights of all clients before normalization, [K]."""
    if self.weighting == 'uniform':
      return (self.num_examples > 0).astype(np.float64)
    return self.num_examples

  @functools.cached_property
  def _offsets(self):
    return np.concatenate([[0], np.cumsum(self.num_examples)])

  @functools.cached_property
  def buffer_examples(self) -> int:
    """Returns the examples that suffice for one device and any cohort.

    If clients differ in size, this is a power of two, as in `_sizes`.
    """
    everybody = int(np.sort(self.num_examples)[-self.cohort_size :].sum())
    if self.participation.stops_early:
      most = everybody  # Steps are no bound for clients that stop early.
    else:  # The most that a device's lanes can take.
      steps = self.widths[0] * self._longest_lane
      most = min(everybody, steps * self.step_examples // self.epochs)
    return most if self._all_equal else next_power(most)

  @functools.cached_property
  def _all_equal(self) -> bool:
    return bool(self.num_examples.min() == self.num_examples.max())

  @functools.cached_property
  def _longest_lane(self) -> int:
    """Returns a number of steps that suffices for every lane and cohort."""
    steps = self.steps(np.sort(self.num_examples)[-self.cohort_size :])
    # Packing longest first never exceeds this (Graham 1969): the lane that ends
    # last had the least work when it took its last client, so at most the
    # average of all the other work.
    return int(-(-(steps.sum() + (self.lanes - 1) * steps.max()) // self.lanes))

  @functools.cached_property
  def _sizes(self) -> tuple[int, int]:
    """Returns T and N that suffice for every cohort.

    If clients differ in size, these are powers of two, so that most seeds of a
    population share a compiled program. What is beyond the plan is never read.
    """
    largest = np.sort(self.num_examples)[-self.cohort_size :]
    padding = self.cohort_size * (self.step_examples - 1)
    longest = self._longest_lane
    positions = int(self.epochs * largest.sum() + padding)
    if self._all_equal:
      return longest, positions
    return next_power(longest), next_power(positions)

  def _empty(self) -> Plan:
    """Returns an idle plan, large enough for every cohort."""
    longest, positions = self._sizes
    lanes, devices, events = self.lanes, self.num_devices, self.cohort_size
    return Plan(
      cohort=np.zeros(events, np.int32),
      slots=np.zeros(events, np.int32),
      num_examples=np.zeros(events, np.int32),
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
      staleness=np.zeros(events, np.int32) if self.concurrency else None,
    )


def next_power(number: int) -> int:
  """Returns the smallest power of two that is at least a number.

  >>> [next_power(number) for number in (0, 1, 3, 8)]
  [1, 1, 4, 8]
  """
  return 1 << max(number - 1, 0).bit_length()
