"""Deals the clients of a cohort to lanes, so that all lanes end together."""

from collections.abc import Sequence
import heapq

import numpy as np


def pack(steps: np.ndarray, lanes: int) -> list[list[int]]:
  """Deals clients to lanes so that the longest lane is short.

  Longest first, each to the lane with the least work; then lanes exchange
  clients with the shortest one as long as the longer of the two gets shorter.
  In the end no lane is idle while a client waits in another.

  Args:
    steps: [M] steps of each client; clients without any are left out.
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
  work = np.zeros(lanes, np.int64)
  for load, lane in queue:
    work[lane] = load
  least = max(int(steps.max(initial=0)), -(-int(steps.sum()) // lanes))
  while work.max() > least and _exchange(steps, packed, work):
    pass
  return [sorted(mine, key=lambda i: (-steps[i], i)) for mine in packed]


def _exchange(steps, packed, work) -> bool:
  """Levels the shortest lane and the longest one that can be; False if none."""
  low = int(work.argmin())
  gives = np.array([*steps[packed[low]], 0])  # A client, or none.
  for high in np.argsort(-work, kind='stable'):
    gap = work[high] - work[low]
    if gap <= 1:
      return False
    moved = steps[packed[high]][:, None] - gives
    moved = np.where((moved > 0) & (moved < gap), moved, 0)
    i, j = np.unravel_index(np.abs(2 * moved - gap).argmin(), moved.shape)
    if moved[i, j] == 0:
      continue
    taken = packed[high].pop(i)
    if j < len(packed[low]):
      packed[high].append(packed[low].pop(j))
    packed[low].append(taken)
    work[high] -= moved[i, j]
    work[low] += moved[i, j]
    return True
  return False


def steps_by_width(
  steps: np.ndarray, num_devices: int, widths: Sequence[int]
) -> np.ndarray:
  """Steps that each device takes with each number of lanes, [D, W].

  Times `widths`, their sum is what the lanes execute, on nothing included.

  Args:
    steps: [M] steps of a cohort's clients.
    num_devices: D.
    widths: [W], as in `Planner`.
  """
  packed = pack(steps, num_devices * widths[0])
  ends = np.sort([steps[mine].sum() for mine in packed])[::-1]
  # Lane i of a device is idle after its end: `widths[w]` lanes step until the
  # lane ends that is the first beyond the next width.
  until = [ends.reshape(-1, num_devices)[w] for w in (*widths[1:], 0)]
  return np.diff(np.stack(until, axis=1), axis=1, prepend=0)
