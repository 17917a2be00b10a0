"""SCAFFOLD follows its paper in NumPy; copies with known faults do not."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import twin
from tests.testing.scaffold_mutants import MUTANTS
from tests.testing.scaffold_mutants import one_of
from tests.testing.world import ETA
from tests.testing.world import ROUNDS
from tests.testing.world import World
from tests.testing.world import close
from tests.testing.world import combine
from tests.testing.world import minus


@pytest.fixture
def world(uneven_examples):
  x, y, parts = uneven_examples
  return World(x, y, [np.asarray(part) for part in parts])


def scaffold_twin(world, weighting, rate, momentum=0.0, control='updates'):
  """Computes Algorithm 1 of Karimireddy et al. 2020: x, c and all c_i."""
  params = world.params
  weights = world.sizes
  if weighting == 'uniform':
    weights = dict.fromkeys(world.sizes, 1)
  zero = {n: np.zeros_like(w) for n, w in params.items()}
  c, c_i = zero, dict.fromkeys(world.sizes, zero)
  for t in range(1, ROUNDS + 1):
    delta, change = {}, {}
    for k in world.cohort(t):
      v, entered = dict(zero), []

      def update(w, g, k=k, c=c, c_i=c_i, v=v, entered=entered):
        for n in v:
          v[n] = momentum * v[n] + g[n] - c_i[k][n] + c[n]
        # A gradient enters this update, and later ones by momentum.
        entered.append(sum(momentum**j for j in range(len(entered) + 1)))
        return {n: w[n] - ETA * v[n] for n in w}

      delta[k] = minus(world.train(params, t, k, update), params)
      new = {
        n: c_i[k][n] - c[n] - delta[k][n] / (sum(entered) * ETA) for n in c
      }
      if control == 'gradient':
        rows = world.parts[k]
        _, new = twin.losses_and_gradient(params, world.x[rows], world.y[rows])
      change[k] = minus(new, c_i[k])
      c_i = c_i | {k: new}
    cohort, total = sum(weights[k] for k in delta), sum(weights.values())
    mean = combine(delta, {k: weights[k] / cohort for k in delta})
    params = {n: params[n] + rate * mean[n] for n in params}
    step = combine(change, {k: weights[k] / total for k in delta})
    c = {n: c[n] + step[n] for n in c}
  return params, c, c_i


CASES = [
  (2, 2, 'examples', 0.0, 'updates'),
  (8, 2, 'examples', 0.9, 'gradient'),
  (1, 1, 'uniform', 0.9, 'updates'),
  (1, 1, 'examples', 0.0, 'gradient'),
  (4, 2, 'uniform', 0.0, 'updates'),
  (2, 1, 'uniform', 0.5, 'gradient'),
]


@pytest.mark.parametrize(
  ('lanes', 'num_devices', 'weighting', 'momentum', 'control'),
  rest_slow(2, CASES, True),
)
def test_scaffold(world, lanes, num_devices, weighting, momentum, control):
  params, c, c_i = scaffold_twin(world, weighting, 0.7, momentum, control)
  algorithm = fa.scaffold(ETA, 0.7, momentum=momentum or None, control=control)
  state, clients, _ = world.engine(
    algorithm, lanes, num_devices, weighting=weighting
  )
  close(state.params, params, 2e-5)
  close(state.server.control, c, 2e-5)
  for k, own in c_i.items():
    close({n: leaf[k] for n, leaf in clients.items()}, own, 2e-5)
  drawn = {k for t in range(1, ROUNDS + 1) for k in world.cohort(t)}
  for never in set(range(5)) - drawn:
    assert not any(leaf[never].any() for leaf in clients.values())
  # The server's c is the mean of all clients' c_i.
  weights = np.array([world.sizes[k] for k in range(5)], float)
  if weighting == 'uniform':
    weights[:] = 1
  weights /= weights.sum()
  close(
    state.server.control,
    {n: np.tensordot(weights, leaf, 1) for n, leaf in clients.items()},
    1e-6,
  )


@pytest.mark.parametrize('control', rest_slow(1, ['updates', 'gradient']))
def test_on_everyone_and_one_step_it_is_gradient_descent(world, control):
  """With C = 1, B = inf, E = 1, each c_i is the client's own gradient.

  Then all corrections cancel.

  """
  state, _, _ = world.engine(
    fa.scaffold(ETA, control=control), cohort_size=5, epochs=1, batch_size=0
  )
  params = world.params
  for _ in range(ROUNDS):
    _, g = twin.losses_and_gradient(params, world.x, world.y)
    params = {n: params[n] - ETA * g[n] for n in params}
  close(state.params, params, 2e-5)


class Points:
  """Holds the clients of `quadratics`: n_k updates with gradients w - c_k."""

  params = {'w': np.float64(1)}  # noqa: RUF012 (never modified)
  sizes = dict(enumerate(quadratics.SIZES))

  def __init__(self, planner):
    self.planner = planner

  def cohort(self, number):
    return [int(k) for k in self.planner.cohort(number)]

  def train(self, params, number, k, update):
    del number
    w = dict(params)
    for _ in range(self.planner.epochs * self.sizes[k]):
      w = update(w, {'w': w['w'] - quadratics.CENTRES[k]})
    return w


def test_before_there_are_corrections_it_is_fedavg_to_the_bit():
  found, plain = (
    quadratics.models(algorithm, rounds=1)[-1]
    for algorithm in (
      fa.scaffold(ETA, momentum=0.5),
      fa.fedavg(optax.sgd(ETA, momentum=0.5), optax.sgd(1.0)),
    )
  )
  assert found == plain != 1.0


def test_known_faults_fail_the_twin():
  """The first run of a sweep is correct; each other one has one fault."""
  plain = fa.scaffold(ETA, 0.7)
  everyone = [plain, *(mutant(plain) for mutant in MUTANTS)]
  sweep = quadratics.build(
    one_of(everyone), sweep=range(len(everyone)), client_fraction=0.5, epochs=2
  )
  *_, record = fa.simulate(sweep, rounds=ROUNDS)
  params, c, c_i = scaffold_twin(Points(sweep.planner), 'examples', 0.7)
  expected = params['w'], c['w'], np.array([c_i[k]['w'] for k in range(4)])
  distances = []
  for i in range(len(everyone)):
    state, clients = jax.tree.map(
      lambda leaf, i=i: leaf[i], (record.state, record.client_states)
    )
    found = state.params['w'], state.server.control['w'], clients['w']
    distances.append(
      max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
    )
  assert distances[0] < 1e-5
  for mutant, distance in zip(MUTANTS, distances[1:], strict=True):
    assert distance > 0.05, mutant.__name__


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ({'momentum': 1.0}, 'momentum = 1.0: must be below 1'),
    ({'control': 'both'}, "control = 'both': must be one of updates, gradient"),
  ],
)
def test_bad_values(arguments, said):
  with pytest.raises(fa.InputError, match=said):
    fa.scaffold(0.1, **arguments)
