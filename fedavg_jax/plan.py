"""The round's programme: who trains, on which examples, in which lane, when.

NumPy only. A plan is a pure function of (seed, round, client sizes) and of how
the lanes are laid out; the device code follows it and knows no sampling, no
shuffling and no packing. The cohort, the order of a client's examples and its
batches never depend on lanes or devices.

A *lane* is one slot of the vmapped axis. It trains one client after another,
each from the global model. Clients are packed longest first onto the lane with
the least work. A *step* is one minibatch of every lane; an *event* is a step
after which some lane ends a client.

Shape letters: K clients, M cohort, L lanes (of all devices), D devices, T steps
at most, S events at most, N positions in the order of reading.
"""

from collections.abc import Sequence
import dataclasses
import heapq
from typing import NamedTuple

import numpy as np

from fedavg_jax.errors import InputError

SHUFFLES = ('epoch', 'round')

# One independent stream of random numbers for each purpose, beside the one of
# partition.py.
_COHORT, _ORDER = 1, 2


class Plan(NamedTuple):
  """One round as integers; lanes d * L/D ... belong to device d.

  Attributes:
    order: [N] int32, row of the clients' arrays that is read at each position.
    start: [L, T] int32, position where the lane's batch of a step starts.
    count: [L, T] int32, examples in that batch; 0 means an idle lane.
    event: [D, S] int32, number of steps done when the device's s-th event
      happens, ascending.
    num_events: [D] int32, how many of the S entries are real.
    client: [L, S] int32, the client that the lane ends at an event, else -1.
    weight: [L, S] float32, that client's n_k over the sum of the cohort's.
  """

  order: np.ndarray
  start: np.ndarray
  count: np.ndarray
  event: np.ndarray
  num_events: np.ndarray
  client: np.ndarray
  weight: np.ndarray


def cohort_size(num_clients: int, client_fraction: float) -> int:
  """The cohort, max(int(C * K), 1); a C such as 0.29 counts as written.

  Args:
    num_clients: K.
    client_fraction: C in [0, 1]; 0 is one client.

  Returns:
    m. The product is rounded to six decimals before it is cut, because
    0.29 * 100 is 28.999999999999996.
  """
  if not 0 <= client_fraction <= 1:
    raise InputError(f'client_fraction = {client_fraction}: must lie in [0, 1]')
  return max(int(round(client_fraction * num_clients, 6)), 1)


def num_unavailable(num_clients: int, unavailable_fraction: float) -> int:
  """Clients that cannot be reached in a round, cut to a whole number."""
  return int(round(unavailable_fraction * num_clients, 6))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
  """Everything that plans depend on, but the round.

  Attributes:
    num_examples: [K] n_k of every client.
    cohort_size: m, clients that train in a round.
    num_unavailable: clients that cannot be reached in a round, drawn anew.
    epochs: E.
    batch_size: B, 0 for all local examples in one step.
    shuffle: 'epoch' draws a new order for every epoch, 'round' one for all
      epochs of a round, as Algorithm 1 reads.
    seed: of the cohorts and the orders.
    lanes: L, lanes of all devices together.
    num_devices: D, divides L.
  """

  num_examples: np.ndarray
  cohort_size: int
  num_unavailable: int = 0
  epochs: int
  batch_size: int
  shuffle: str = 'epoch'
  seed: int
  lanes: int = 1
  num_devices: int = 1

  def __post_init__(self):
    reachable = len(self.num_examples) - self.num_unavailable
    for name, holds, rule in (
      ('num_unavailable', self.num_unavailable >= 0, 'must be at least 0'),
      (
        'cohort_size',
        1 <= self.cohort_size <= reachable,
        f'must lie in [1, {reachable}], the clients in reach',
      ),
      ('epochs', self.epochs >= 1, 'must be at least 1'),
      (
        'epochs',
        self.epochs * int(self.num_examples.sum()) < 2**31,
        'times all examples must stay below 2**31',
      ),
      ('batch_size', self.batch_size >= 0, 'must be at least 0'),
      ('shuffle', self.shuffle in SHUFFLES, f'must be one of {SHUFFLES}'),
      (
        'lanes',
        self.lanes >= 1 and self.lanes % self.num_devices == 0,
        f'must be a positive multiple of num_devices = {self.num_devices}',
      ),
    ):
      if not holds:
        raise InputError(f'{name} = {getattr(self, name)!r}: {rule}')

  @property
  def step_examples(self) -> int:
    """Rows of one step's batch: B, or the largest n_k where B is larger."""
    largest = int(self.num_examples.max())
    return min(self.batch_size or largest, largest)

  def cohort(self, round_number: int) -> np.ndarray:
    """The cohort: reachable clients, uniform, without replacement, [M]."""
    rng = np.random.default_rng([self.seed, _COHORT, round_number])
    drawn = rng.permutation(len(self.num_examples))
    return drawn[self.num_unavailable :][: self.cohort_size]

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
    width = self.step_examples
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
    ids = self.cohort(round_number)
    steps = self._steps(self.num_examples[ids])
    total = self.num_examples[ids].sum()
    offsets = np.concatenate([[0], np.cumsum(self.num_examples)])
    width = self.step_examples
    plan = self._empty()
    ends = []  # (lane, steps done, client)
    position = 0
    for lane, mine in enumerate(pack(steps, self.lanes)):
      t = 0
      for k in ids[mine]:
        orders = self.epoch_orders(round_number, k)  # [E, n_k]
        in_epoch = np.arange(0, orders.shape[1], width)
        starts = orders.shape[1] * np.arange(self.epochs)[:, None] + in_epoch
        counts = np.minimum(width, orders.shape[1] - in_epoch)
        plan.order[position : position + orders.size] = (
          offsets[k] + orders.ravel()
        )
        steps_k = slice(t, t + starts.size)
        plan.start[lane, steps_k] = position + starts.ravel()
        plan.count[lane, steps_k] = np.tile(counts, self.epochs)
        position += orders.size
        t += starts.size
        ends.append((lane, t, k))
    lanes_per_device = self.lanes // self.num_devices
    for device in range(self.num_devices):
      mine = [end for end in ends if end[0] // lanes_per_device == device]
      times = sorted({t for _, t, _ in mine})
      plan.event[device, : len(times)] = times
      plan.num_events[device] = len(times)
      for lane, t, k in mine:
        s = np.searchsorted(times, t)
        plan.client[lane, s] = k
        plan.weight[lane, s] = self.num_examples[k] / total
    return plan

  def _steps(self, num_examples):
    """Minibatches of E epochs of clients of these sizes."""
    return self.epochs * -(-num_examples // self.step_examples)

  def _empty(self) -> Plan:
    """An idle plan, large enough for the largest cohort there can be."""
    largest = np.sort(self.num_examples)[-self.cohort_size :]
    steps = self._steps(largest)
    # Longest first never exceeds this (Graham 1969): the lane that ends last
    # had the least work when it took its last client, so at most the average
    # of all the others.
    longest = -(-(steps.sum() + (self.lanes - 1) * steps.max()) // self.lanes)
    positions = self.epochs * largest.sum() + self.step_examples
    lanes, devices, events = self.lanes, self.num_devices, self.cohort_size
    return Plan(
      order=np.zeros(positions, np.int32),
      start=np.zeros((lanes, longest), np.int32),
      count=np.zeros((lanes, longest), np.int32),
      event=np.zeros((devices, events), np.int32),
      num_events=np.zeros(devices, np.int32),
      client=np.full((lanes, events), -1, np.int32),
      weight=np.zeros((lanes, events), np.float32),
    )


def pack(steps: np.ndarray, lanes: int) -> list[list[int]]:
  """Deals clients to lanes, longest first, to the lane with the least work.

  Args:
    steps: [M] minibatches of each client; clients without any are left out.
    lanes: L.

  Returns:
    For every lane the positions in `steps`, in the order of training.
  """
  queue = [(0, lane) for lane in range(lanes)]
  packed: list[list[int]] = [[] for _ in range(lanes)]
  for i in np.argsort(-steps, kind='stable'):
    if steps[i] == 0:
      break
    work, lane = heapq.heappop(queue)
    packed[lane].append(int(i))
    heapq.heappush(queue, (work + int(steps[i]), lane))
  return packed
