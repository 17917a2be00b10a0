"""MimeLite follows its equations in NumPy, and is FedAvg without statistics."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import rest_slow
from tests.testing import twin
from tests.testing.world import ETA
from tests.testing.world import ROUNDS
from tests.testing.world import World
from tests.testing.world import close
from tests.testing.world import combine
from tests.testing.world import minus

RHO = 0.8
B1, B2, TAU = 0.9, 0.95, 0.1


@pytest.fixture
def world(uneven_examples):
  x, y, parts = uneven_examples
  return World(x, y, [np.asarray(part) for part in parts])


def momentum(g, s):
  """Returns update and statistics of SGD with momentum, for one array."""
  m = g + RHO * s
  return -ETA * m, m


def adam(g, s):
  """Returns update and statistics of Adam without bias correction."""
  m, v = B1 * s[0] + (1 - B1) * g, B2 * s[1] + (1 - B2) * g**2
  return -ETA * m / (np.sqrt(v) + TAU), np.stack([m, v])


BASES = {
  'momentum': (
    momentum,
    np.zeros_like,
    optax.sgd(ETA, momentum=RHO),
    lambda found: found[0].trace,
  ),
  'adam': (
    adam,
    lambda w: np.stack([np.zeros_like(w), np.full_like(w, TAU**2)]),
    fa.adaptive('adam', ETA, b1=B1, b2=B2, tau=TAU),
    lambda found: jax.tree.map(lambda m, v: np.stack([m, v]), *found),
  ),
}


@pytest.mark.parametrize(
  ('name', 'lanes', 'num_devices', 'weighting'),
  rest_slow(
    2,
    [
      ('momentum', 2, 2, 'examples'),
      ('adam', 1, 1, 'uniform'),
      ('momentum', 8, 2, 'uniform'),
    ],
    True,
  ),
)
def test_mimelite(world, name, lanes, num_devices, weighting):
  """The server's step of 0.7 is applied to the mean of the deltas."""
  step, begin, base, statistics = BASES[name]
  params, s = world.params, {n: begin(w) for n, w in world.params.items()}
  weights = world.sizes
  if weighting == 'uniform':
    weights = dict.fromkeys(world.sizes, 1)
  for t in range(1, ROUNDS + 1):
    delta, full = {}, {}
    for k in world.cohort(t):

      def update(w, g, s=s):
        return {n: w[n] + step(g[n], s[n])[0] for n in w}

      delta[k] = minus(world.train(params, t, k, update), params)
      rows = world.parts[k]
      _, full[k] = twin.losses_and_gradient(
        params, world.x[rows], world.y[rows]
      )
    cohort = sum(weights[k] for k in delta)
    p = {k: weights[k] / cohort for k in delta}
    mean, gradient = combine(delta, p), combine(full, p)
    s = {n: step(gradient[n], s[n])[1] for n in s}
    params = {n: params[n] + 0.7 * mean[n] for n in params}
  lite = fa.experimental.mimelite(base, optax.sgd(0.7))
  state, _, _ = world.engine(lite, lanes, num_devices, weighting=weighting)
  close(state.params, params, 2e-5)
  close(statistics(state.server.statistics), s, 2e-5)


@pytest.mark.parametrize('rho', rest_slow(1, [0.0, None]))
def test_without_statistics_it_is_fedavg_to_the_bit(world, rho):
  server = optax.sgd(0.7, momentum=0.5)
  lite, plain = (
    world.engine(algorithm)[0]
    for algorithm in (
      fa.experimental.mimelite(optax.sgd(ETA, momentum=rho), server),
      fa.fedavg(optax.sgd(ETA), server),
    )
  )
  jax.tree.map(np.testing.assert_array_equal, lite.params, plain.params)
  jax.tree.map(
    np.testing.assert_array_equal, lite.server.optimizer, plain.server
  )
