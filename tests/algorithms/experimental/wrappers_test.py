"""Wrappers compose, or refuse each other before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts import algorithm_checks
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import results

fx = fa.experimental
FEDAVG = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
PARAMS = {'body': jnp.ones(3), 'head': jnp.full(2, 4.0)}


def check(algorithm):
  algorithm_checks.check_algorithm(algorithm, PARAMS, 3)


@pytest.mark.parametrize(
  'wrap',
  [
    lambda inner: fx.compress(inner, fx.top_k(0.5), error_feedback=True),
    lambda inner: fx.robust(inner, fx.coordinate_median()),
  ],
)
def test_a_wrapped_algorithm_finds_its_own_models(wrap):
  """Wrappers with a state of their own hide it from `own_model`."""
  algorithm = wrap(fx.personal(FEDAVG, ['head']))
  check(algorithm)
  context = results.of_client(PARAMS).context._replace(
    client_state=algorithm.client_init(PARAMS, jnp.int32(0)),
    server_state=algorithm.server_init(PARAMS),
  )
  shared = {'body': jnp.zeros(3), 'head': jnp.zeros(2)}
  own = algorithm.own_model(context._replace(global_params=shared))
  np.testing.assert_array_equal(own['head'], PARAMS['head'])
  np.testing.assert_array_equal(own['body'], shared['body'])


def test_fedrep_of_a_client_that_never_trains_the_body():
  """Its message is zeros where quotients would be 0 / 0."""
  nova = fx.fednova(optax.sgd(0.1), optax.sgd(1.0))
  algorithm = fx.personal(nova, ['head'], first=4)
  result = results.of_client(PARAMS)
  result = result._replace(
    num_updates=jnp.int32(3),
    delta=jax.tree.map(jnp.zeros_like, PARAMS),
    optimizer_state=algorithm.client_optimizer.init(PARAMS),
    context=result.context._replace(
      client_state=algorithm.client_init(PARAMS, jnp.int32(0))
    ),
  )
  output = algorithm.client_finish(result)
  for leaf in jax.tree.leaves(output.message):
    np.testing.assert_array_equal(leaf, 0 * leaf)


STRATEGY = fx.banded_strategy(rounds=3, bands=1)
UNIFORM = {'weighting': 'uniform', 'on_nan': 'skip_client'}
PRIVATE = {  # value -> algorithm, and two values.
  'correlated noise': (
    lambda sigma: fx.correlated_noise(
      FEDAVG,
      STRATEGY,
      clip=0.5,
      noise_multiplier=sigma,
      denominator=4,
      num_clients=4,
    ),
    [0.0, 2.0],
  ),
  'ranges': (lambda r: fx.secure_aggregation(FEDAVG, r), [8.0, 0.25]),
  'local clips': (
    lambda clip: fx.local_dp(FEDAVG, clip, noise_multiplier=1.0),
    [9.0, 0.5],
  ),
  'noise of examples': (
    lambda sigma: fx.example_dp(FEDAVG, 1.0, sigma, denominator=1),
    [0.0, 2.0],
  ),
}


@pytest.mark.parametrize('name', rest_slow(1, PRIVATE))
def test_a_sweep_of_private_algorithms_has_the_model_of_each(name):
  build, values = PRIVATE[name]
  models = [
    record.state.params['w']
    for built in (
      quadratics.build(build, sweep=values, **UNIFORM),
      quadratics.build(build(values[1]), **UNIFORM),
    )
    for *_, record in [fa.simulate(built, rounds=3)]
  ]
  np.testing.assert_allclose(models[0][1], models[1], rtol=1e-5)
  assert abs(float(models[0][0] - models[0][1])) > 1e-3


REFUSED = {
  'personal leaves and full gradients': (
    lambda: fx.personal(fx.mimelite(optax.sgd(0.1), optax.sgd(1.0)), ['head']),
    'full_gradient: must be False with personal models',
  ),
  'bounds on two parts': (
    lambda: check(fx.bound_norms(fa.scaffold(0.1), 1.0)),
    'bound_norms: the message of a client has .* beside the delta',
  ),
  'staleness of a quotient': (
    lambda: check(fx.fedbuff(fx.fednova(optax.sgd(0.1), optax.sgd(1.0)))),
    'fedbuff: the message of a client has .* beside the delta',
  ),
  'a trimmed fraction per run': (
    lambda: jax.eval_shape(
      lambda b: fx.trimmed_mean(b).combine(jnp.ones(3), jnp.ones(3), ()), 0.1
    ),
    'fraction: must be the same for all values of a sweep',
  ),
  'a misspelt shared leaf': (
    lambda: check(fx.personal(FEDAVG, fx.Shared(['head', 'hed']))),
    "the pattern 'hed' names no leaf",
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_unsound_mixes(name):
  build, said = REFUSED[name]
  with pytest.raises(fa.InputError, match=said):
    build()


def asynchronous():
  free = np.full(4, np.inf)
  clock = fa.schedule.Clock(
    examples_per_second=np.ones(4),
    bytes_down_per_second=free,
    bytes_up_per_second=free,
  )
  return fa.Participation(clock=clock, buffer=2)


@pytest.mark.parametrize(
  'algorithm',
  [fa.scaffold(0.1), fx.mimelite(optax.sgd(0.1), optax.sgd(1.0))],
)
def test_asynchronous_clients_need_no_earlier_server_state(algorithm):
  with pytest.raises(fa.InputError, match='buffer: must be 0 with an algor'):
    quadratics.build(
      algorithm, client_fraction=0.75, participation=asynchronous()
    )
