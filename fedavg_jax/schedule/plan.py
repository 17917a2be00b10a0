"""Defines a round's plan: the integers that the device follows.

Shape letters: M cohort, L lanes (of all devices), D devices, T steps at most,
S events at most, N positions in the order of reading, W widths.
"""

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
  """Holds one round's plan as integers.

  Device d has the lanes from d * L / D on. In this example clients 0, 1 and 2
  have 3, 1 and 2 examples, in rows 0 to 5; E = 1, B = 2. Client 0, the longest,
  trains in lane 0 with two steps; clients 1 and 2 share lane 1. Every step
  reads B rows: a short minibatch is padded with a row of the same client.

  >>> from fedavg_jax.schedule.planning import Planner
  >>> sizes = np.array([3, 1, 2])
  >>> local = {'epochs': 1, 'batch_size': 2, 'seed': 0}
  >>> planner = Planner(num_examples=sizes, cohort_size=3, lanes=2, **local)
  >>> plan = planner(1)
  >>> plan.order[:8]  # Client 0, its padding, client 1, its padding, client 2.
  array([0, 1, 2, 0, 3, 3, 5, 4], dtype=int32)
  >>> plan.start[:, :2].tolist(), plan.count[:, :2].tolist()  # By lane.
  ([[0, 2], [4, 6]], [[2, 1], [1, 2]])
  >>> plan.event[0, :2].tolist()  # Steps done: client 1 ends, then both others.
  [1, 2]
  >>> plan.ends.tolist(), plan.begins[:, :2].tolist()
  ([[-1, 0, -1], [1, 2, -1]], [[0, -1], [1, 2]])
  >>> plan.weight[0, 1] == sizes[0] / sizes.sum()
  np.True_

  Attributes:
    cohort: [M] int32, the clients of the round.
    slots: [M] int32, their rows in the array of client states; 0 .. M - 1 if
      the planner gathers the cohort's states.
    num_examples: [M] int32, n_k of each of them.
    share: [] float32, the cohort's fraction of the weight of all clients.
    order: [N] int32, the row that is read at each position, in the clients'
      arrays, or in the round's buffer if examples are streamed. After a short
      minibatch follow padding rows of the same client.
    start: [L, T] int32, position where the lane's examples of a step start.
    count: [L, T] int32, examples of the step; 0 for an idle lane.
    batch: [L, T] int32, examples of the minibatch that the step belongs to.
    completes: [L, T] bool, whether the step is the last of its minibatch.
    event: [D, S] int32, number of steps done when the device's s-th event
      happens, ascending.
    until: [D, W] int32, events that happen before the device continues with
      fewer lanes, the next of `Planner.widths`; the last entry counts them all.
    ends: [L, S] int32, position in `cohort` of the client that the lane ends at
      an event, else -1.
    begins: [L, S + 1] int32, position in `cohort` of the client that the lane
      begins before its first step (0) or after event s - 1, else -1.
    weight: [L, S] float32, the ending client's weight in the cohort's mean.
    seed: [] int32, the seed of the run, from which the device's random numbers
      derive.
    staleness: [M] int32, the number of rounds by which each client's initial
      model is behind; None if all clients start from the newest one.
  """

  cohort: np.ndarray
  slots: np.ndarray
  num_examples: np.ndarray
  share: np.ndarray
  order: np.ndarray
  start: np.ndarray
  count: np.ndarray
  batch: np.ndarray
  completes: np.ndarray
  event: np.ndarray
  until: np.ndarray
  ends: np.ndarray
  begins: np.ndarray
  weight: np.ndarray
  seed: np.ndarray
  staleness: np.ndarray | None = None
