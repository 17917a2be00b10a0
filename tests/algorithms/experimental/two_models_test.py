"""Ditto and APFL follow their equations in NumPy, and their limits."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.algorithm_checks import traffic
from fedavg_jax.schedule.planning import Planner
from tests.testing import normalised
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

ETA, ROUNDS = 0.2, 3
SETTING = {'client_fraction': 0.6, 'epochs': 2, 'batch_size': 3, 'seed': 3}
SGD, SERVER = optax.sgd(ETA), optax.sgd(1.0)
FEDAVG = fa.fedavg(SGD, SERVER)


def engine(examples, algorithm, own=None, **changes):
  """Returns global params, client states and metrics of the engine."""
  x, y, parts = examples
  simulation = simulations.build(
    fa.build_clients(fa.Examples(x, y), parts),
    own or fa.experimental.two_models(simulations.model()),
    algorithm=algorithm,
    **{'lanes': 2} | SETTING | changes,
  )
  *_, record = fa.simulate(simulation, rounds=ROUNDS)
  return jax.device_get(
    (record.state.params, record.client_states, record.info)
  )


def plain_rounds(examples, step, alpha=1.0, **setting):
  """Returns x, and v and alpha of each client, in NumPy.

  `step(gradient, v, alpha, w, x)` returns the new v and alpha of a minibatch.

  """
  x, y, parts = examples
  setting = SETTING | setting
  sizes = np.array([len(part) for part in parts])
  cohort = max(int(setting.pop('client_fraction') * len(parts)), 1)
  planner = Planner(num_examples=sizes, cohort_size=cohort, **setting)
  pixels = x.reshape(len(x), -1) / 255.0
  params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  own = {k: (dict(params), alpha) for k in range(len(parts))}
  for number in range(1, ROUNDS + 1):
    sent = {}
    for k in map(int, planner.cohort(number)):
      w = dict(params)
      for batch in twin.batches_of(planner, number, k):
        rows = parts[k][batch]

        def gradient(w, rows=rows):
          return twin.losses_and_gradient(w, pixels[rows], y[rows])[1]

        here = gradient(w)
        own[k] = step(gradient, *own[k], w, params)
        w = {n: w[n] - ETA * here[n] for n in w}
      sent[k] = w
    params = twin.mean(sent, sizes)
  return params, own


def of_ditto(weight):
  def step(gradient, v, alpha, w, x):
    g = gradient(v)
    return {n: v[n] - ETA * (g[n] + weight * (v[n] - x[n])) for n in v}, alpha

  return step


def of_apfl(rate):
  def step(gradient, v, alpha, w, x):
    g = gradient({n: alpha * v[n] + (1 - alpha) * w[n] for n in v})
    slope = sum(((v[n] - w[n]) * g[n]).sum() for n in v)
    return (
      {n: v[n] - ETA * alpha * g[n] for n in v},
      min(max(alpha - rate * slope, 0.0), 1.0),
    )

  return step


def close(got, expected):
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)


def check_twin(found, params, own):
  close(found[0]['global'], params)
  states = found[1].own
  for k, (v, alpha) in own.items():
    close({n: leaf[k] for n, leaf in states['own'].items()}, v)
    if states['alpha'] is not None:
      assert states['alpha'][k] == pytest.approx(alpha, abs=1e-5)


@pytest.mark.parametrize(
  ('weight', 'setting'),
  rest_slow(
    1,
    [
      (0.5, {}),
      (0.0, {'batch_size': 0}),
      (2.0, {'client_fraction': 0.0}),
      (0.5, {'batch_size': 0, 'micro_batch': 4}),  # Parts of a minibatch.
      (1.0, {'client_fraction': 1.0}),
    ],
    True,
  ),
)
def test_ditto(uneven_examples, weight, setting):
  algorithm = fa.experimental.ditto(FEDAVG, weight)
  found = engine(uneven_examples, algorithm, **setting)
  plain = {n: v for n, v in setting.items() if n != 'micro_batch'}
  check_twin(found, *plain_rounds(uneven_examples, of_ditto(weight), **plain))


@pytest.mark.parametrize(
  ('alpha', 'rate', 'setting'),
  rest_slow(
    1,
    [
      (0.4, 0.3, {}),
      (0.7, 0.0, {'batch_size': 0}),
      (0.9, 5.0, {'client_fraction': 0.0}),  # It is clipped.
      (0.5, 0.3, {'batch_size': 0, 'client_fraction': 1.0}),
    ],
    True,
  ),
)
def test_apfl(uneven_examples, alpha, rate, setting):
  algorithm = fa.experimental.apfl(FEDAVG, alpha, rate)
  found = engine(uneven_examples, algorithm, **setting)
  params, own = plain_rounds(uneven_examples, of_apfl(rate), alpha, **setting)
  check_twin(found, params, own)
  assert 0 <= found[2]['alpha'] <= 1


def equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_global_model_is_that_of_fedavg_to_the_bit(uneven_examples):
  """So it is for every weight, and with every alpha, 0 and 1 included."""
  plain, _, _ = engine(uneven_examples, FEDAVG, simulations.model())
  for algorithm in (
    fa.experimental.ditto(FEDAVG, 0.7),
    fa.experimental.apfl(FEDAVG, 0.0),
    fa.experimental.apfl(FEDAVG, 1.0, 0.1),
  ):
    equal(engine(uneven_examples, algorithm)[0]['global'], plain)


@pytest.mark.parametrize(
  'make',
  rest_slow(
    1,
    [
      lambda base: fa.experimental.ditto(base, 0.0),
      lambda base: fa.experimental.apfl(base, 1.0),
    ],
  ),
)
def test_the_limits_are_local_training(uneven_examples, make):
  """The server's step changes no bit of v, which has plain SGD's values."""
  first, other = (
    engine(uneven_examples, make(fa.fedavg(SGD, optax.sgd(rate))))
    for rate in (1.0, 0.1)
  )
  equal(first[1], other[1])
  assert np.abs(first[0]['global']['w1'] - other[0]['global']['w1']).max() > 0
  _, own = plain_rounds(uneven_examples, of_ditto(0.0))
  for k, (v, _) in own.items():
    close({n: leaf[k] for n, leaf in first[1].own['own'].items()}, v)


def test_alpha_of_zero_is_the_global_model(uneven_examples):
  """The own model is x to the bit, and v stays as it was."""
  algorithm = fa.experimental.apfl(FEDAVG, 0.0)
  params, states, _ = engine(uneven_examples, algorithm)
  state = jax.tree.map(lambda leaf: leaf[0], states)
  context = fa.ClientContext(params, (), state, 0, 1, 4, key=None)
  equal(algorithm.own_model(context)['global'], params['global'])
  equal(state.own['own'], params['own'])


@pytest.mark.slow
def test_scaffold_and_fedadam_are_the_global_algorithms_to_the_bit(
  uneven_examples,
):
  adam = fa.adaptive('adam', 0.1, b1=0.9, b2=0.99, tau=1e-3)
  for base in (fa.scaffold(ETA), fa.fedavg(SGD, adam)):
    plain, _, _ = engine(uneven_examples, base, simulations.model())
    beside = fa.experimental.ditto(base, 0.5, SGD)
    equal(engine(uneven_examples, beside)[0]['global'], plain)


def test_one_model_is_sent():
  model = fa.experimental.two_models(simulations.model())
  params = jax.eval_shape(model.init, jax.random.key(0))
  one = 4 * (9 * 6 + 6 + 6 * 4 + 4)
  for algorithm in (
    fa.experimental.ditto(FEDAVG, 1.0),
    fa.experimental.apfl(FEDAVG, 0.5, 0.1),
  ):
    assert traffic(algorithm, params, 'everybody') == (one, one, False)


def test_refusals(uneven_examples):
  new = fa.experimental
  for bad, said in (
    (lambda: new.ditto(FEDAVG, float('nan')), 'weight = nan: must be finite'),
    (lambda: new.apfl(FEDAVG, 1.5), 'alpha = 1.5: must be in'),
    (lambda: new.apfl(FEDAVG, 0.5, -1.0), 'alpha_rate = -1.0: must be in'),
    (lambda: new.apfl(fa.scaffold(ETA), 0.5), 'optimizer: must be given'),
    (lambda: new.ditto(fa.scaffold(ETA), 0.5), 'optimizer: must be given'),
    (lambda: new.ditto(new.qfedavg(1.0, ETA), 1.0), 'has a client_gradient'),
  ):
    with pytest.raises(fa.InputError, match=said):
      bad()
  with pytest.raises(fa.InputError, match="'b1', must be a model from fa"):
    engine(uneven_examples, new.ditto(FEDAVG, 1.0), simulations.model())
  two = new.two_models(normalised.model('client'))
  with pytest.raises(fa.InputError, match="'normalised': has untrained state"):
    two.init(jax.random.key(0))
