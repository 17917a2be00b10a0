"""Runs a federation of uneven clients in the engine and in plain NumPy."""

import numpy as np

import fedavg_jax as fa
from fedavg_jax.schedule.planning import Planner
from tests.testing import rounds
from tests.testing import twin

ETA, ROUNDS = 0.2, 3
SETTING = {'cohort_size': 3, 'epochs': 2, 'batch_size': 3, 'seed': 3}


class World:
  """Holds uneven clients, their minibatches, and the initial model."""

  def __init__(self, x, y, parts):
    self.pixels, self.y, self.parts = x, y, parts
    self.x = x.reshape(len(x), -1) / 255.0
    self.planner = Planner(
      num_examples=np.array([len(part) for part in parts]), **SETTING
    )
    self.params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
    self.sizes = {k: len(part) for k, part in enumerate(parts)}

  def cohort(self, number):
    return [int(k) for k in self.planner.cohort(number)]

  def train(self, params, number, k, update):
    """Returns the local model after an update for each minibatch."""
    w = dict(params)
    for batch in twin.batches_of(self.planner, number, k):
      rows = self.parts[k][batch]
      _, gradient = twin.losses_and_gradient(w, self.x[rows], self.y[rows])
      w = update(w, gradient)
    return w

  def loss(self, params, k):
    rows = self.parts[k]
    losses, _ = twin.losses_and_gradient(params, self.x[rows], self.y[rows])
    return losses.mean()

  def engine(self, algorithm, lanes=2, num_devices=2, **changes):
    """Returns server state, client states and metrics of the engine."""
    return rounds.run_states(
      fa.build_clients(fa.Examples(self.pixels, self.y), self.parts),
      rounds=ROUNDS,
      algorithm=algorithm,
      lanes=lanes,
      num_devices=num_devices,
      **(SETTING | changes),
    )


def close(got, expected, tolerance=1e-5):
  for name, value in expected.items():
    np.testing.assert_allclose(
      got[name], value, rtol=0, atol=tolerance, err_msg=name
    )


def combine(trees, weights):
  """Returns the sum of weights[k] * trees[k]."""
  return {
    n: sum(weights[k] * tree[n] for k, tree in trees.items())
    for n in next(iter(trees.values()))
  }


def minus(a, b):
  return {n: a[n] - b[n] for n in a}
