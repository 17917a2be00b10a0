"""Every algorithm is compared with its equations in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm_checks import check_algorithm
from fedavg_jax.core import client_data
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import results
from tests.testing import rounds
from tests.testing import twin

ETA = 0.3
ROUNDS = 4
SETTING = {'cohort_size': 3, 'epochs': 2, 'batch_size': 3, 'seed': 3}


@pytest.fixture
def world(uneven_examples):
  """Returns examples in [0, 1], labels, parts, planner, initial model."""
  x, y, parts = uneven_examples
  planner = Planner(
    num_examples=np.array([len(part) for part in parts]), **SETTING
  )
  begin = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  return x.reshape(len(x), -1) / 255.0, y, parts, planner, begin


def engine(uneven_examples, algorithm, lanes=2, num_devices=2, **changes):
  """Returns server and client states after ROUNDS rounds of the engine."""
  x, y, parts = uneven_examples
  population = client_data.build_clients(client_data.Examples(x, y), parts)
  state, clients, _ = rounds.run_states(
    population,
    rounds=ROUNDS,
    algorithm=algorithm,
    lanes=lanes,
    num_devices=num_devices,
    **(SETTING | changes),
  )
  return state, clients


def close(got, expected, tolerance=2e-5):
  for name, value in expected.items():
    np.testing.assert_allclose(
      got[name], value, rtol=0, atol=tolerance, err_msg=name
    )


def sizes(parts):
  return {k: len(part) for k, part in enumerate(parts)}


@pytest.mark.parametrize('mu', rest_slow(1, [0.5, 0.0, 2.0]))
def test_fedprox(uneven_examples, world, mu):
  """The update is y <- y - eta (g + mu (y - x))."""
  x, y, parts, planner, params = world
  for t in range(1, ROUNDS + 1):
    locals_ = {}
    for k in planner.cohort(t):
      locals_[int(k)], _ = twin.client_update(
        params,
        x[parts[k]],
        y[parts[k]],
        twin.batches_of(planner, t, k),
        ETA,
        lambda g, w, x=params: {n: g[n] + mu * (w[n] - x[n]) for n in g},
      )
    params = twin.mean(locals_, sizes(parts))
  algorithm = algorithms.fedprox(mu, optax.sgd(ETA), optax.sgd(1.0))
  close(engine(uneven_examples, algorithm)[0].params, params)


def test_fedprox_has_its_closed_form():
  """A constant gradient g has y - x = -(1 - (1 - eta mu)^n) g / mu."""
  mu, steps = 0.7, 9
  optimizer = optax.chain(algorithms.proximal(mu), optax.sgd(ETA))
  begin = {'w': jnp.array([1.0, -2.0])}
  gradient = {'w': jnp.array([0.5, 3.0])}
  now, state = begin, optimizer.init(begin)
  for _ in range(steps):
    updates, state = optimizer.update(
      gradient, state, now, context=results.context(begin)
    )
    now = optax.apply_updates(now, updates)
  expected = -(1 - (1 - ETA * mu) ** steps) / mu * gradient['w']
  np.testing.assert_allclose(now['w'] - begin['w'], expected, rtol=1e-5)


@pytest.mark.parametrize('name', rest_slow(1, ['yogi', 'adagrad', 'adam']))
def test_adaptive_server(uneven_examples, world, name):
  """The twin is Algorithm 2 of Reddi et al. 2021, without bias correction."""
  x, y, parts, planner, params = world
  rate, b1, b2, tau = 0.05, 0.9, 0.95, 0.01
  m = {n: np.zeros_like(w) for n, w in params.items()}
  v = {n: np.full_like(w, tau**2) for n, w in params.items()}
  for t in range(1, ROUNDS + 1):
    found = twin.deltas(params, x, y, parts, planner, t, ETA)
    delta = twin.mean(found, sizes(parts))
    for n in params:
      m[n] = b1 * m[n] + (1 - b1) * delta[n]
      square = delta[n] ** 2
      if name == 'adagrad':
        v[n] = v[n] + square
      elif name == 'yogi':
        v[n] = v[n] - (1 - b2) * square * np.sign(v[n] - square)
      else:
        v[n] = b2 * v[n] + (1 - b2) * square
    params = {
      n: w + rate * m[n] / (np.sqrt(v[n]) + tau) for n, w in params.items()
    }
  server = algorithms.adaptive(name, rate, b1=b1, b2=b2, tau=tau)
  state, _ = engine(uneven_examples, algorithms.fedavg(optax.sgd(ETA), server))
  close(state.params, params, 1e-4)  # sqrt(v) + tau divides by small numbers.
  close(state.server.v, v)


def test_adaptive_first_step_has_no_bias_correction():
  """The first step is x_1 - x_0 = rate (1 - b1) delta / (sqrt(v_0) + tau)."""
  optimizer = algorithms.adaptive('adam', 0.1, b1=0.9, b2=0.99, tau=0.001)
  delta = np.array([0.3, -2.0, 0.0], np.float32)
  updates, _ = optimizer.update(-delta, optimizer.init(delta))
  v = 0.99 * 0.001**2 + 0.01 * delta**2
  np.testing.assert_allclose(
    updates, 0.1 * 0.1 * delta / (np.sqrt(v) + 0.001), rtol=1e-5
  )


def test_fedavgm(uneven_examples, world):
  """The update is v <- b v + delta, x <- x + rate v."""
  x, y, parts, planner, params = world
  v = {n: np.zeros_like(w) for n, w in params.items()}
  for t in range(1, ROUNDS + 1):
    found = twin.deltas(params, x, y, parts, planner, t, ETA)
    delta = twin.mean(found, sizes(parts))
    v = {n: 0.9 * v[n] + delta[n] for n in v}
    params = {n: params[n] + 0.5 * v[n] for n in v}
  server = optax.sgd(0.5, momentum=0.9)
  state, _ = engine(uneven_examples, algorithms.fedavg(optax.sgd(ETA), server))
  close(state.params, params, 5e-5)


@pytest.mark.parametrize('max_norm', rest_slow(1, [0.4, 0.05, 1e6]))
def test_clipped_delta(uneven_examples, world, max_norm):
  x, y, parts, planner, params = world
  clipped = 0
  for t in range(1, ROUNDS + 1):
    found = twin.deltas(params, x, y, parts, planner, t, ETA)
    for k, delta in found.items():
      norm = np.sqrt(sum((d**2).sum() for d in delta.values()))
      clipped += norm > max_norm
      scale = min(1, max_norm / norm)
      found[k] = {n: scale * d for n, d in delta.items()}
    mean = twin.mean(found, sizes(parts))
    params = {n: params[n] + mean[n] for n in params}
  assert (clipped > 0) == (max_norm < 1e6)
  plain = algorithms.fedavg(optax.sgd(ETA), optax.sgd(1.0))
  state, _ = engine(uneven_examples, algorithms.clip_delta(plain, max_norm))
  close(state.params, params)


def plain():
  return algorithms.fedavg(optax.sgd(ETA), optax.sgd(1.0))


PARAMS = {'w': np.ones((2, 3), np.float32), 'b': np.ones(3, np.float32)}


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'client_finish': lambda result: result.delta},
      'algorithm.client_finish: returns dict, must return a ClientOutput',
    ),
    (
      {'client_finish': lambda r: fa.ClientOutput(r.delta, r.delta)},
      r"algorithm.client_finish: returns state\['b'\] = float32\[3\], must be"
      ' nothing',
    ),
    (
      {'client_finish': lambda result: fa.ClientOutput(result.delta, None)},
      'algorithm.client_finish: returns state as .*None.*, must be',
    ),
    (
      {'client_init': lambda params, client_id: jax.random.key(client_id)},
      r'algorithm.client_init: returns key<.*>, must return numbers',
    ),
    (
      {'client_finish': lambda result: fa.ClientOutput(result.num_updates)},
      'algorithm.client_finish: returns a message of int32',
    ),
    (
      {'client_finish': lambda r: fa.ClientOutput(r.delta, info=r.mean_loss)},
      'algorithm.client_finish: info is .*, must be a dictionary',
    ),
    (
      {
        'client_finish': lambda r: fa.ClientOutput(
          r.delta, info={'bias': r.delta['b']}
        )
      },
      r"algorithm.client_finish: info\['bias'\] is float32\(3,\), must be one",
    ),
    (
      {'client_start': lambda context: context.global_params['w']},
      'algorithm.client_start: returns params',
    ),
    (
      {'num_bytes': lambda message: message['b']},
      'algorithm.num_bytes: returns .*, must be one number',
    ),
    (
      {'server_update': lambda params, server, mean, _: (mean['w'], server)},
      'algorithm.server_update: returns params',
    ),
    (
      {
        'server_update': lambda params, server, mean, _: (
          jax.tree.map(lambda p: p.astype(jnp.bfloat16), params),
          server,
        )
      },
      r"params\['b'\] = bfloat16\[3\], must be float32\[3\]",
    ),
    (
      {'client_init': lambda params, client_id: params},
      None,
    ),
    (
      {
        'client_optimizer': optax.GradientTransformation(
          lambda params: (), lambda updates, state, params: ((), state)
        )
      },
      'algorithm.client_optimizer.update: returns updates',
    ),
  ],
)
def test_a_hook_that_returns_another_tree_is_refused(changes, said):
  algorithm = plain()._replace(**changes)
  if said is None:  # `send_delta` passes the client state on unchanged.
    check_algorithm(algorithm, PARAMS, 2)
    return
  with pytest.raises(InputError, match=said):
    check_algorithm(algorithm, PARAMS, 2)


def test_bad_numbers_and_names_are_refused():
  with pytest.raises(InputError, match='max_norm = -1.0: must be in'):
    algorithms.clip_delta(plain(), -1.0)
  with pytest.raises(InputError, match="name = 'adamw': must be one of"):
    algorithms.adaptive('adamw', 0.1, b1=0.9, b2=0.9, tau=0.1)


@pytest.mark.parametrize(
  'algorithm',
  [
    plain(),
    algorithms.fedprox(0.1, optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)),
    algorithms.scaffold(0.1),
    algorithms.clip_delta(algorithms.scaffold(0.1), 1.0),
    algorithms.fedavg(
      optax.sgd(0.1), algorithms.adaptive('yogi', 1.0, b1=0.9, b2=0.9, tau=1.0)
    ),
  ],
)
def test_every_algorithm_of_the_package_passes_the_check(algorithm):
  check_algorithm(algorithm, PARAMS, 2)


def test_a_rate_that_decays_by_rounds():
  """The rate is eta * factor^(rounds done // every), exact at each step."""
  optimizer = algorithms.decayed_sgd(0.5, 0.1, 3)
  grads = {'w': jnp.array([2.0, -1.0])}
  for number in range(1, 10):
    updates, _ = optimizer.update(
      grads,
      optimizer.init(grads),
      grads,
      context=results.context(grads, number=number),
    )
    rate = 0.5 * 0.1 ** ((number - 1) // 3)
    np.testing.assert_allclose(updates['w'], [-2 * rate, rate], rtol=1e-6)
  plain = optax.sgd(0.3).update(grads, optax.sgd(0.3).init(grads), grads)[0]
  same, _ = algorithms.decayed_sgd(0.3, 1.0, 1).update(
    grads, (), grads, context=results.context(grads, number=7)
  )
  np.testing.assert_array_equal(same['w'], plain['w'])
