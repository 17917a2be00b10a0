"""Robust rounds follow their equations in NumPy, on losses in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import robust_twin

own = fa.experimental
ETA, ROUNDS = 0.2, 3
SIZES = (2, 6, 3, 1, 4)
CENTRES = (0.0, 2.0, 4.0, 60.0, 1.0)
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))


def deltas(w, sizes=SIZES, centres=CENTRES):
  """Returns the delta of each client, by the closed form of its n_k steps."""
  kept = (1 - ETA) ** np.array(sizes)
  return (1 - kept) * (np.array(centres) - w)


def simulation(algorithm, **options):
  options = {'sizes': SIZES, 'centres': CENTRES} | options
  return quadratics.build(algorithm, **options)


def models(algorithm, **options):
  options = {'sizes': SIZES, 'centres': CENTRES} | options
  return quadratics.models(algorithm, rounds=ROUNDS, **options)


def twin_models(aggregate):
  """Returns w after each round; aggregate(deltas [K], round, last) -> step."""
  w, last = [1.0], 0.0
  for number in range(1, ROUNDS + 1):
    last = float(np.squeeze(aggregate(deltas(w[-1]), number, last)))
    w.append(w[-1] + last)
  return w


def vectors(numbers):
  return [np.array([number]) for number in numbers]


RULES = {
  'clipping': (
    own.centred_clipping(0.8, iterations=2),
    lambda z, weights, last: robust_twin.centred_clipping(
      z, centre=[last], max_norm=0.8, iterations=2
    ),
  ),
  'geometric': (
    own.geometric_median(4),
    lambda z, weights, last: robust_twin.geometric_median(
      z, weights, iterations=4
    ),
  ),
  'median': (
    own.coordinate_median(),
    lambda z, weights, last: robust_twin.median(z),
  ),
  'krum': (
    own.krum(1),
    lambda z, weights, last: robust_twin.krum(z, attackers=1),
  ),
}


@pytest.mark.parametrize('name', rest_slow(2, RULES))
def test_rounds_of_uneven_clients(name):
  rule, combine = RULES[name]
  expected = twin_models(
    lambda d, number, last: combine(vectors(d), np.array(SIZES) / 16, last)
  )
  found = models(own.robust(FEDAVG, rule), lanes=2)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bounded_norms_of_uneven_clients():
  expected = twin_models(
    lambda d, number, last: robust_twin.bounded_mean(
      vectors(d), SIZES, max_norm=0.5
    )
  )
  found = models(own.bound_norms(FEDAVG, 0.5))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  huge, plain = models(own.bound_norms(FEDAVG, 1e30)), models(FEDAVG)
  np.testing.assert_array_equal(huge, plain)


def skipping(algorithm, client):
  """Returns the algorithm in which one client always sends NaN."""

  def client_finish(result):
    output = algorithm.client_finish(result)
    bad = result.context.client_id == client
    return output._replace(
      message=jax.tree.map(lambda m: jnp.where(bad, jnp.nan, m), output.message)
    )

  return algorithm._replace(client_finish=client_finish)


def test_buckets_are_means_of_the_clients_that_reported():
  """The order of the cohort decides the buckets; client 3 is dropped."""
  built = simulation(
    skipping(own.robust(FEDAVG, own.coordinate_median(), 2), client=3),
    on_nan='skip_client',
    lanes=2,
    devices=jax.devices()[:2],
  )

  def step(d, number, last):
    order = built.planner.cohort(number)
    sent = [None if k == 3 else np.array([d[k]]) for k in order]
    means, _ = robust_twin.bucket_means(sent, np.array(SIZES)[order], 2)
    return robust_twin.median(means)

  found = [
    float(record.state.params['w'])
    for record in fa.simulate(
      built, rounds=ROUNDS, needs_state=lambda number: True
    )
  ]
  np.testing.assert_allclose(found, twin_models(step), rtol=1e-5)


def last(built, start=None, number=ROUNDS):
  """Returns the states after some rounds."""
  *_, record = fa.simulate(built, rounds=number, start=start)
  return record.state, record.client_states


def test_layout_stream_calls_and_resume_change_no_bit():
  """The centre is the state that a resumed run needs."""
  algorithm = own.robust(FEDAVG, own.centred_clipping(0.5))
  shapes = jax.ShapeDtypeStruct((7,), jnp.float32)
  assert algorithm.aggregate.num_bytes(shapes, 5) == 5 * 7 * 4
  one = simulation(algorithm, client_fraction=0.8, lanes=1)
  whole = last(one)
  assert float(whole[0].server.centre['w']) != 0
  resumed = last(one, start=last(one, number=1))
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  for options in (
    {'lanes': 2, 'devices': jax.devices()[:2], 'examples_on': 'host'},
    {'lanes': 4, 'rounds_per_call': 1},
  ):
    other = last(simulation(algorithm, client_fraction=0.8, **options))
    jax.tree.map(np.testing.assert_array_equal, whole, other)


def test_a_sweep_of_radii_has_the_model_of_each():
  def algorithm(radius):
    return own.robust(FEDAVG, own.centred_clipping(radius))

  state, _ = last(simulation(algorithm, sweep=[1e6, 0.3]))
  alone, _ = last(simulation(algorithm(0.3)))
  np.testing.assert_allclose(state.params['w'][1], alone.params['w'], rtol=1e-6)


def test_hooks_find_their_own_server_state():
  """Clients take a number that the server halves in every round."""

  def client_finish(result):
    scale = result.context.server_state['scale']
    return fa.ClientOutput(jax.tree.map(lambda d: scale * d, result.delta), ())

  counting = FEDAVG._replace(
    server_init=lambda params: {'scale': jnp.float32(1.0)},
    client_finish=client_finish,
    server_update=lambda params, server, mean, context: (
      jax.tree.map(jnp.add, params, mean),
      {'scale': server['scale'] / 2},
    ),
  )
  found = models(own.robust(counting, own.coordinate_median()))
  expected = twin_models(
    lambda d, number, last: np.median(d) / 2 ** (number - 1)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


MEDIAN = own.coordinate_median()
CASES = {
  'too few': (
    lambda: simulation(own.robust(FEDAVG, own.krum(2))),
    'a cohort of 5 in buckets of 1 has 5 messages; must have at least 7',
  ),
  'too few buckets': (
    lambda: simulation(own.robust(FEDAVG, own.krum(1), 2)),
    'a cohort of 5 in buckets of 2 has 3 messages; must have at least 5',
  ),
  'too few for several': (
    lambda: simulation(own.robust(FEDAVG, own.krum(0, selected=6))),
    'must have at least 6 for this krum',
  ),
  'scaffold': (
    lambda: simulation(own.robust(fa.scaffold(ETA), MEDIAN)),
    'must be the delta alone',
  ),
  'fednova': (
    lambda: simulation(
      own.robust(own.fednova(optax.sgd(ETA), optax.sgd(1.0)), MEDIAN)
    ),
    'must be the delta alone',
  ),
  'fedexp': (
    lambda: simulation(own.robust(own.fedexp(optax.sgd(ETA)), MEDIAN)),
    'must be the delta alone',
  ),
  'a part of the model': (
    lambda: simulation(
      own.robust(
        FEDAVG._replace(client_finish=lambda result: fa.ClientOutput({})),
        own.centred_clipping(1.0),
      )
    ),
    'must have all of them',
  ),
  'twice': (
    lambda: own.robust(own.robust(FEDAVG, MEDIAN), MEDIAN),
    'robust: the algorithm aggregates its messages in its own way',
  ),
  'a sum of its own': (
    lambda: own.bound_norms(own.robust(FEDAVG, MEDIAN), 1.0),
    'bound_norms: the algorithm aggregates',
  ),
  'bucket of nobody': (
    lambda: own.robust(FEDAVG, MEDIAN, 0),
    'bucket_size = 0: must be at least 1',
  ),
  'no bound': (lambda: own.bound_norms(FEDAVG, 0.0), 'max_norm = 0.0: must'),
}


@pytest.mark.parametrize('name', CASES)
def test_unsound_mixes_are_refused_before_anything_compiles(name):
  make, said = CASES[name]
  with pytest.raises(fa.InputError, match=said) as info:
    make()
  assert '\n' not in str(info.value)
