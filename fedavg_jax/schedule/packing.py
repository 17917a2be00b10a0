"""Assigns the clients of a cohort to lanes of about equal length."""

from collections.abc import Sequence
import heapq

import numpy as np


def pack(steps: np.ndarray, lanes: int) -> list[list[int]]:
  """Assigns clients to lanes so that the longest lane is short.

  Clients are taken longest first, each by the lane with the least work. Then
  lanes exchange clients with the shortest lane as long as this shortens the
  longer of the two. In the result no lane is idle while a client waits in
  another.

  Args:
    steps: [M] steps of each client; clients without steps are left out.
    lanes: L, the number of lanes.

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
  """Exchanges clients of the shortest lane and the longest lane that can.

  Returns:
    Whether there was such an exchange.
  """
  low = int(work.argmin())
  returned = np.array([*steps[packed[low]], 0])  # One client, or none.
  for high in np.argsort(-work, kind='stable'):
    gap = work[high] - work[low]
    if gap <= 1:
      return False
    moved = steps[packed[high]][:, None] - returned
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
  """Counts the steps that each device takes at each width, [D, W].

  The sum of their products with `widths` is the number of steps that the lanes
  execute, idle ones included.

  Args:
    steps: [M] steps of a cohort's clients.
    num_devices: D, the number of devices.
    widths: [W] lanes of a device that step together, as in `Planner`.
  """
  packed = pack(steps, num_devices * widths[0])
  ends = np.sort([steps[mine].sum() for mine in packed])[::-1]
  # Lane i of a device is idle after its end: `widths[w]` lanes step until the
  # end of the first lane beyond the next width.
  until = [ends.reshape(-1, num_devices)[w] for w in (*widths[1:], 0)]
  return np.diff(np.stack(until, axis=1), axis=1, prepend=0)
