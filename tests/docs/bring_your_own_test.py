"""The recipes of docs/bring_your_own.md have their right values."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import results
from tests.testing.pages import python_of

PAGE = 'docs/bring_your_own.md'
ETA = 0.1


@pytest.mark.slow
def test_the_page_runs(repository):
  """All of the page is run; what it prints are accuracies after training."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    with (
      jax.numpy_dtype_promotion('standard'),
      jax.numpy_rank_promotion('allow'),
    ):
      exec(python_of(repository / PAGE), {'__name__': 'page'})  # noqa: S102
  values = [float(line) for line in printed.getvalue().splitlines()]
  assert len(values) == 12
  assert min(values) > 0.3, values  # Krum picks one client of two labels.


def test_fednova_has_no_bias_of_updates(page):
  """Both end where their weighted deltas vanish, in closed form."""
  n, c = np.array(quadratics.SIZES, float), np.array(quadratics.CENTRES)
  moved = 1 - (1 - ETA) ** n  # Fraction of the way to c_k, after n_k updates.
  for algorithm, pull in (
    (fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)), n * moved),
    (page.fednova(optax.sgd(ETA)), moved),
  ):
    w = quadratics.models(algorithm, rounds=150)[-1]
    assert w == pytest.approx((pull * c).sum() / pull.sum(), rel=1e-5)


@pytest.mark.parametrize('momentum', rest_slow(1, [0.8, 0.5, 0.0]))
def test_fednova_with_momentum_of_clients(page, momentum):
  """Clients of 4 to 24 updates end at the optimum, on a known path.

  A client's distance to its centre and its momentum are multiplied by a matrix
  in each update; the recipe's |a|_1 is that of gradients which are all 1.

  """
  sizes, eta = (24, 4, 9, 15), 0.05
  centres = np.array(quadratics.CENTRES)
  moves, ones = [], []
  for n in sizes:
    update = np.array([[1 - eta, -eta * momentum], [1.0, momentum]])
    left = np.linalg.matrix_power(update, n) @ [1.0, 0.0]
    moves.append(1 - left[0])
    ones.append(
      sum((1 - momentum**j) / (1 - momentum) for j in range(1, n + 1))
    )
  shares = np.array(sizes) / sum(sizes)
  pull = shares * moves / ones
  w, path = 1.0, [1.0]
  for _ in range(60):
    w += (shares @ ones) * (pull * (centres - w)).sum()
    path.append(w)
  found = quadratics.models(
    page.fednova(optax.sgd(eta, momentum=momentum), momentum),
    rounds=60,
    sizes=sizes,
  )
  np.testing.assert_allclose(found, path, rtol=1e-5)
  end = (pull * centres).sum() / pull.sum()
  assert found[-1] == pytest.approx(end, rel=1e-5)
  # FedAvg ends elsewhere: clients with more updates have more weight.
  assert abs(end - (shares * moves) @ centres / (shares @ moves)) > 0.1


def test_feddyn_reaches_the_optimum(page):
  """Each round has two of four clients; FedAvg moves with its cohorts."""
  even = (3, 3, 3, 3)
  own, plain = (
    quadratics.models(algorithm, client_fraction=0.5, rounds=400, sizes=even)
    for algorithm in (
      page.feddyn(0.5, ETA),
      fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
    )
  )
  assert own[-50:] == pytest.approx(3.0, abs=1e-3)
  assert plain[-50:].std() > 0.1


def messages(number=20, attackers=6, seed=0):
  """Makes similar honest messages, and some with the opposite sign."""
  rng = np.random.default_rng(seed)
  honest = rng.normal(size=40) + 0.1 * rng.normal(size=(number, 40))
  honest[:attackers] *= -5
  return {'a': jnp.float32(honest[:, :30]), 'b': jnp.float32(honest[:, 30:])}


@pytest.mark.parametrize('seed', rest_slow(1, range(5)))
def test_robust_rules(page, seed):
  sent = messages(seed=seed)
  flat = np.concatenate([sent['a'], sent['b']], axis=1)
  weights = jnp.full(20, 1 / 20)
  picked = np.concatenate(list(page.krum(6)(sent, weights).values()))
  (who,) = np.flatnonzero((flat == picked).all(axis=1))
  assert who >= 6
  scores = [
    np.sort(((flat - own) ** 2).sum(axis=1))[1 : 20 - 6 - 1].sum()
    for own in flat
  ]
  assert who == np.argmin(scores)
  np.testing.assert_array_equal(
    page.median(sent, weights)['a'], np.median(sent['a'], axis=0)
  )
  np.testing.assert_allclose(
    page.trimmed(0)(sent, weights)['b'], np.mean(sent['b'], axis=0), rtol=1e-5
  )
  cut = np.sort(flat, axis=0)[6:-6].mean(axis=0)
  trimmed = page.trimmed(0.3)(sent, weights)
  np.testing.assert_allclose(
    np.concatenate([trimmed['a'], trimmed['b']]), cut, rtol=1e-5
  )


def test_qsgd_is_unbiased_and_has_its_bytes(page):
  algorithm = page.qsgd(fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)), 16)
  delta = {'w': jnp.array([0.3, -0.1, 0.0, 0.02])}
  result = results.of_client(delta)

  def one(key):
    context = result.context._replace(key=key)
    return algorithm.client_finish(result._replace(context=context)).message

  sent = jax.vmap(one)(jax.random.split(jax.random.key(1), 4000))['w']
  norm = np.linalg.norm(delta['w'])
  # The deviation of a level is at most half of norm / 16.
  np.testing.assert_allclose(
    sent.mean(axis=0), delta['w'], atol=4 * 0.5 * norm / 16 / 4000**0.5
  )
  assert len(np.unique(np.round(np.abs(sent) / norm * 16))) <= 17
  # A sign and 17 levels are six bits; four numbers and the norm.
  assert algorithm.num_bytes(delta) == 4 + 3


def test_gradients_of_examples_are_clipped(page):
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.normal(size=(4, 3)))
  y = jnp.float32(rng.normal(size=4))
  batch = fa.Batch(x, y, jnp.array([True, True, True, False]), jnp.int32(3))
  params = {'w': jnp.float32(rng.normal(size=3))}

  def loss_fn(params, batch):
    return (batch.x @ params['w'] - batch.y) ** 2

  losses, grads = page.clipped(0.5)(loss_fn, params, batch, None)
  single = jax.vmap(
    jax.grad(lambda params, x, y: (x @ params['w'] - y) ** 2),
    in_axes=(None, 0, 0),
  )(params, x, y)['w'][:3]
  norms = np.linalg.norm(single, axis=1, keepdims=True)
  expected = (single * np.minimum(1, 0.5 / norms)).sum(axis=0) / 3
  np.testing.assert_allclose(grads['w'], expected, rtol=1e-5)
  np.testing.assert_allclose(losses[:3], loss_fn(params, batch)[:3], rtol=1e-6)


def test_two_tasks_of_two_inputs(page):
  """The test's loss is the sum of both losses, in NumPy."""
  examples = page.of_two_tasks(fa.load_dataset('digits').test)

  def init(key):
    return {'w': jax.random.normal(key, (64, 10)), 'odd': jnp.float32(2.0)}

  def apply(params, x):
    pixels = x['pixels'].astype(jnp.float32).reshape(len(x['dark']), -1) / 16
    return {'digit': pixels @ params['w'], 'odd': params['odd'] * x['dark']}

  simulation = fa.build_simulation(
    fa.Model('two', init, apply),
    fa.Federation(
      fa.build_clients(examples, [range(9), range(9, 30)]),
      examples,
      client_fraction=1.0,
      epochs=1,
      batch_size=5,
    ),
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    loss=page.both_losses,
  )
  result = fa.run(simulation, rounds=1)
  for params, found in zip(
    (simulation.init()[0].params, result.params),
    result['test_loss'],
    strict=True,
  ):
    w, odd = (np.asarray(params[name], np.float64) for name in ('w', 'odd'))
    logits = examples.x['pixels'].reshape(-1, 64) / 16 @ w
    label = logits[np.arange(len(logits)), examples.y['digit']]
    digit = np.log(np.exp(logits).sum(axis=1)) - label
    signs = 1 - 2 * examples.y['odd']
    parity = np.log1p(np.exp(signs * odd * examples.x['dark']))
    assert found == pytest.approx((digit + parity).mean(), rel=1e-5)
