"""FedNova, FedDyn, FedExP and q-FedAvg follow their equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import twin
from tests.testing.world import ETA
from tests.testing.world import ROUNDS
from tests.testing.world import World
from tests.testing.world import close
from tests.testing.world import combine
from tests.testing.world import minus

LAYOUTS = [(2, 2), (1, 1), (8, 2)]


@pytest.fixture
def world(uneven_examples):
  x, y, parts = uneven_examples
  return World(x, y, [np.asarray(part) for part in parts])


def layouts(test):
  return pytest.mark.parametrize(
    ('lanes', 'num_devices'), rest_slow(1, LAYOUTS, True)
  )(test)


@layouts
@pytest.mark.parametrize(
  ('rho', 'mu'), rest_slow(1, [(0.9, 0.5), (0.0, 0.0)], True)
)
def test_fednova(world, rho, mu, lanes, num_devices):
  """The sums of a_j come from the recursion of momentum and proximal term."""
  params = world.params
  for t in range(1, ROUNDS + 1):
    directions, sums = {}, {}
    for k in world.cohort(t):
      v = {n: np.zeros_like(w) for n, w in params.items()}
      path = np.zeros(2)  # Momentum and position, for gradients of one.

      def update(w, g, v=v, path=path, x=params):
        for n in v:
          v[n][...] = rho * v[n] + g[n] + mu * (w[n] - x[n])
        path[0] = rho * path[0] + 1 + mu * path[1]
        path[1] -= ETA * path[0]
        return {n: w[n] - ETA * v[n] for n in w}

      delta = minus(world.train(params, t, k, update), params)
      sums[k] = path[1]
      directions[k] = {n: d / path[1] for n, d in delta.items()}
    total = sum(world.sizes[k] for k in sums)
    p = {k: world.sizes[k] / total for k in sums}
    tau = sum(p[k] * sums[k] for k in sums)
    step = combine(directions, p)
    params = {n: params[n] + tau * step[n] for n in params}
  client = optax.chain(fa.proximal(mu), optax.sgd(ETA, momentum=rho or None))
  nova = fa.experimental.fednova(client, optax.sgd(1.0))
  close(world.engine(nova, lanes, num_devices)[0].params, params)


def test_fednova_of_equal_work_is_fedavg(world):
  """Whole batches give every client as many steps, whatever its size."""
  client = optax.sgd(ETA, momentum=0.9)
  found, plain = (
    world.engine(make(client, optax.sgd(1.0)), batch_size=0)[0].params
    for make in (fa.experimental.fednova, fa.fedavg)
  )
  for name, value in plain.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('momentum', [0.0, 0.5])
def test_fednova_ends_at_the_optimum_of_small_rates(momentum):
  """FedAvg ends where clients with more updates have pulled the model."""
  client = optax.sgd(0.01, momentum=momentum or None)
  nova, plain = (
    quadratics.models(make(client, optax.sgd(1.0)), rounds=300)[-1]
    for make in (fa.experimental.fednova, fa.fedavg)
  )
  shares = np.array(quadratics.SIZES) / sum(quadratics.SIZES)
  optimum = shares @ quadratics.CENTRES
  assert abs(nova - optimum) < 0.1 * abs(plain - optimum)


@layouts
@pytest.mark.parametrize('weighting', rest_slow(1, ['uniform', 'examples']))
def test_feddyn(world, weighting, lanes, num_devices):
  alpha, params = 0.3, world.params
  weights = (
    world.sizes if weighting == 'examples' else dict.fromkeys(range(5), 1)
  )
  zero = {n: np.zeros_like(w) for n, w in params.items()}
  h, own = zero, {k: zero for k in range(5)}
  for t in range(1, ROUNDS + 1):
    delta = {}
    for k in world.cohort(t):

      def update(w, g, k=k, x=params):
        return {
          n: w[n] - ETA * (g[n] - own[k][n] + alpha * (w[n] - x[n])) for n in w
        }

      delta[k] = minus(world.train(params, t, k, update), params)
      own[k] = {n: own[k][n] - alpha * delta[k][n] for n in params}
    cohort = sum(weights[k] for k in delta)
    mean = combine(delta, {k: weights[k] / cohort for k in delta})
    share = cohort / sum(weights.values())
    h = {n: h[n] - alpha * share * mean[n] for n in h}
    params = {n: params[n] + mean[n] - h[n] / alpha for n in params}
  state, clients, _ = world.engine(
    fa.experimental.feddyn(alpha, optax.sgd(ETA)),
    lanes,
    num_devices,
    weighting=weighting,
  )
  close(state.params, params, 2e-5)
  close(state.server.h, h)
  for k, correction in own.items():
    close({n: leaf[k] for n, leaf in clients.items()}, correction)


def test_feddyn_reaches_the_optimum_where_fedavg_does_not():
  """Each round has two of four clients; the optimum is the centres' mean."""
  even = (3, 3, 3, 3)
  dyn, plain = (
    quadratics.models(own, client_fraction=0.5, rounds=400, sizes=even)[-50:]
    for own in (
      fa.experimental.feddyn(0.5, optax.sgd(0.1)),
      fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    )
  )
  np.testing.assert_allclose(dyn, 3.0, atol=1e-3)
  assert plain.std() > 0.1


@layouts
@pytest.mark.parametrize('epsilon', rest_slow(1, [1e-3, 10.0]))
def test_fedexp(world, epsilon, lanes, num_devices):
  params, rates = world.params, []
  for t in range(1, ROUNDS + 1):
    delta = twin.deltas(
      params, world.x, world.y, world.parts, world.planner, t, ETA
    )
    total = sum(world.sizes[k] for k in delta)
    p = {k: world.sizes[k] / total for k in delta}
    mean = combine(delta, p)
    square = sum(
      p[k] * sum((d**2).sum() for d in delta[k].values()) for k in delta
    )
    norm = sum((d**2).sum() for d in mean.values())
    rates.append(max(1.0, square / (2 * (norm + epsilon))))
    params = {n: params[n] + rates[-1] * mean[n] for n in params}
  exp = fa.experimental.fedexp(optax.sgd(ETA), epsilon)
  close(world.engine(exp, lanes, num_devices)[0].params, params)


def test_fedexp_extrapolates_opposed_deltas_and_leaves_equal_ones():
  exp = fa.experimental.fedexp(optax.sgd(ETA), 1e-6)
  params = {'w': jnp.zeros(2)}

  def moved(deltas):
    deltas = np.float32(deltas)
    mean = {'w': jnp.asarray(deltas.mean(axis=0))}
    square = jnp.float32((deltas**2).sum(axis=1).mean())
    new, _ = exp.server_update(params, (), (mean, square), None)
    return np.asarray(new['w'])

  np.testing.assert_array_equal(moved([[3, 1], [3, 1]]), [3, 1])
  # The mean of the squares is 6, that of the deltas (2, 0): 6 / 8 is below 1.
  np.testing.assert_array_equal(moved([[3, 1], [1, -1]]), [2, 0])
  # The mean of the squares is 5, that of the deltas (1, 0): a rate of 5 / 2.
  np.testing.assert_allclose(moved([[3, 0], [-1, 0]]), [2.5, 0], rtol=1e-5)


def test_fedexp_of_one_client_is_fedavg_to_the_bit(world):
  found, plain = (
    world.engine(own, cohort_size=1)[0].params
    for own in (
      fa.experimental.fedexp(optax.sgd(ETA)),
      fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
    )
  )
  jax.tree.map(np.testing.assert_array_equal, found, plain)


@layouts
@pytest.mark.parametrize('q', rest_slow(1, [2.0, 0.5, 0.0]))
def test_qfedavg(world, q, lanes, num_devices):
  params = world.params
  for t in range(1, ROUNDS + 1):
    delta = twin.deltas(
      params, world.x, world.y, world.parts, world.planner, t, ETA
    )
    scaled, h = {}, {}
    for k in delta:
      loss = world.loss(params, k)
      gradient = {n: -d / ETA for n, d in delta[k].items()}
      square = sum((g**2).sum() for g in gradient.values())
      scaled[k] = {n: loss**q * g for n, g in gradient.items()}
      h[k] = q * loss ** (q - 1) * square + loss**q / ETA
    step = combine(scaled, dict.fromkeys(delta, 1))
    params = {n: params[n] - step[n] / sum(h.values()) for n in params}
  fair = fa.experimental.qfedavg(q, ETA)
  state, _, metrics = world.engine(
    fair, lanes, num_devices, weighting='uniform'
  )
  close(state.params, params)
  cohort = world.cohort(1)
  total = sum(world.sizes[k] for k in cohort)
  at_global = sum(
    world.sizes[k] / total * world.loss(world.params, k) for k in cohort
  )
  assert metrics[0].train_loss == pytest.approx(at_global, rel=1e-5)


def test_qfedavg_pulls_towards_the_worst_client():
  """The fixed point is pulled to the middle of the extreme centres."""
  even = (3, 3, 3, 3)
  centres = np.array(quadratics.CENTRES)

  def worst(q):
    w = quadratics.models(
      fa.experimental.qfedavg(q, 0.1), rounds=200, sizes=even
    )[-1]
    return ((w - centres) ** 2 / 2).max(), w

  plain, fair = worst(0.0), worst(4.0)
  assert plain[1] == pytest.approx(3.0, abs=1e-4)
  assert fair[0] <= plain[0] + 1e-6


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda own: own.feddyn(0.0, optax.sgd(0.1)), 'alpha = 0.0: must be'),
    (lambda own: own.feddyn(float('nan'), optax.sgd(0.1)), 'alpha = nan: must'),
    (lambda own: own.fedexp(optax.sgd(0.1), -1.0), 'epsilon = -1.0: must'),
    (lambda own: own.qfedavg(-0.5, 0.1), 'q = -0.5: must'),
    (lambda own: own.qfedavg(1.0, 0.0), 'learning_rate = 0.0: must'),
  ],
)
def test_bad_values(make, said):
  with pytest.raises(fa.InputError, match=said):
    make(fa.experimental)
