"""Clients' steps are DP-SGD's, as a twin in NumPy computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import check_refused
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin
from tests.testing import uneven_examples
from tests.testing import world

own = fa.experimental
FEDAVG = rounds.fedavg(optax.sgd(world.ETA))


@pytest.fixture(scope='module')
def uneven():
  return world.World(*uneven_examples())


def clipped_mean(uneven, w, rows, clip, denominator):
  """Returns the sum of clipped gradients of single examples over B."""
  total = {name: np.zeros_like(leaf) for name, leaf in w.items()}
  for row in rows:
    _, g = twin.losses_and_gradient(w, uneven.x[[row]], uneven.y[[row]])
    norm = np.sqrt(sum((leaf**2).sum() for leaf in g.values()))
    for name in total:
      total[name] += g[name] * min(1, clip / norm) / denominator
  return total


def twin_rounds(uneven, clip, denominator):
  """Returns the model after the rounds, with one-example and full clients."""
  params = uneven.params
  for number in range(1, world.ROUNDS + 1):
    cohort, locals_ = uneven.cohort(number), {}
    for k in cohort:
      w = dict(params)
      for batch in twin.batches_of(uneven.planner, number, k):
        g = clipped_mean(uneven, w, uneven.parts[k][batch], clip, denominator)
        w = {name: w[name] - world.ETA * g[name] for name in w}
      locals_[k] = w
    total = sum(uneven.sizes[k] for k in cohort)
    params = world.combine(
      locals_, {k: uneven.sizes[k] / total for k in cohort}
    )
  return params


@pytest.mark.parametrize('micro_batch', rest_slow(1, [2, 0]))
def test_rounds_of_uneven_clients(uneven, micro_batch):
  """Short last minibatches are divided by B too, and so are split ones."""
  clip = 0.4
  private = own.example_dp(FEDAVG, clip, 0.0, denominator=3)
  state, _, _ = uneven.engine(private, micro_batch=micro_batch)
  world.close(state.params, twin_rounds(uneven, clip, 3))


SIZES, RUN = np.array([4, 2, 1]), 300


def flat(algorithm, **options):
  """Builds a simulation whose gradients are zero, so that noise remains."""
  y = np.zeros(SIZES.sum(), np.float32)
  parts = np.split(np.arange(len(y)), np.cumsum(SIZES)[:-1])
  examples = fa.Examples(y[:, None], y)
  model = fa.Model(
    'point',
    lambda key: {'w': jnp.float32(0.0)},
    lambda params, x: jnp.broadcast_to(params['w'], (len(x),)),
  )
  return simulations.build_simulation(
    model,
    fa.build_clients(examples, parts),
    examples,
    algorithm=algorithm,
    loss=lambda outputs, batch: 0 * outputs,
    **{'client_fraction': 1.0, 'epochs': 2, 'batch_size': 2, 'seed': 1}
    | options,
  )


@pytest.mark.parametrize(
  'options', rest_slow(1, [{'micro_batch': 1}, {}, {'batch_size': 0}])
)
def test_noise_enters_once_per_minibatch(options):
  """A client's delta is eta times the sum of the noise of its minibatches.

  Split minibatches have the same noise; the variance is within 5 deviations.
  """
  algorithm = fa.fedavg(optax.sgd(0.5), optax.sgd(1.0))
  private = own.example_dp(algorithm, 2.0, 3.0, denominator=4)
  w = [
    float(record.state.params['w'])
    for record in fa.simulate(
      flat(private, **options), rounds=RUN, needs_state=lambda number: True
    )
  ]
  updates = 2 * (np.ones(3) if 'batch_size' in options else -(-SIZES // 2))
  shares = SIZES / SIZES.sum()
  variance = (0.5 * 3.0 * 2.0 / 4) ** 2 * np.sum(shares**2 * updates)
  steps = np.diff(w)
  assert abs(steps.var() / variance - 1) < 5 * np.sqrt(2 / RUN)
  assert abs(steps.mean()) < 5 * np.sqrt(variance / RUN)


BY_LOSS = FEDAVG._replace(
  client_finish=lambda result: fa.ClientOutput(
    jax.tree.map(lambda d: d * result.mean_loss, result.delta)
  )
)
CASES = {
  'clip': (lambda: own.example_dp(FEDAVG, -1.0, 1.0, 3), 'clip = -1.0'),
  'denominator': (
    lambda: own.example_dp(FEDAVG, 1.0, 1.0, 0),
    'denominator = 0: must be above 0',
  ),
  'clipped twice': (
    lambda: own.example_dp(own.example_dp(FEDAVG, 1.0, 1.0, 3), 1.0, 1.0, 3),
    'algorithm.client_gradient: is set',
  ),
  'full gradients': (
    lambda: own.example_dp(
      own.mimelite(optax.sgd(0.1, momentum=0.9), optax.sgd(1.0)), 1.0, 1.0, 3
    ),
    'algorithm.full_gradient: must be False',
  ),
  'losses that are sent': (
    lambda: flat(own.example_dp(BY_LOSS, 1.0, 1.0, 3)),
    'depends on its loss',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  check_refused(*CASES[name])
