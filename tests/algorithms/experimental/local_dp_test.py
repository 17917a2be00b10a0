"""Deltas that clients clip and add noise to are those of the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import check_refused
from tests.testing import quadratics

own = fa.experimental
ETA, ROUNDS = 0.2, 3
SIZES = (2, 6, 3, 1, 4)
CENTRES = (0.0, 2.0, 4.0, 60.0, 1.0)
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))


def models(algorithm, **options):
  options = {'sizes': SIZES, 'centres': CENTRES} | options
  return quadratics.models(algorithm, rounds=ROUNDS, **options)


def test_without_noise_it_is_clipping():
  np.testing.assert_array_equal(
    models(own.local_dp(FEDAVG, 1e30, 0.0)), models(FEDAVG)
  )
  kept, w = (1 - ETA) ** np.array(SIZES), [1.0]
  for _ in range(ROUNDS):
    deltas = np.clip((1 - kept) * (np.array(CENTRES) - w[-1]), -0.5, 0.5)
    w.append(w[-1] + np.average(deltas, weights=SIZES))
  found = models(own.local_dp(FEDAVG, 0.5, 0.0), lanes=2)
  np.testing.assert_allclose(found, w, rtol=1e-5)


def test_each_client_and_round_has_its_own_noise():
  """A median of messages, whose noise a resumed run and lanes do not change."""
  sent = []

  def keep(messages, weights):
    jax.debug.callback(lambda m: sent.append(np.asarray(m)), messages['w'])
    return jax.tree.map(lambda m: jnp.median(m, axis=0), messages)

  noisy = own.local_dp(FEDAVG, 0.5, 4.0)._replace(aggregate=fa.gathered(keep))
  # Zero deltas: every client is at its optimum, and sends noise alone.
  still = own.local_dp(fa.fedavg(optax.sgd(0.0), optax.sgd(1.0)), 0.5, 4.0)
  whole = models(noisy, lanes=1)
  other = models(noisy, lanes=2, rounds_per_call=1)
  np.testing.assert_array_equal(whole, other)
  jax.effects_barrier()
  rows = np.stack(sent)  # [2 * ROUNDS, M], in any order.
  assert len(np.unique(rows)) == ROUNDS * len(SIZES)
  noise = deviations_of_mean(still)
  # The mean of the clients' noise, sigma S times the norm of the weights.
  share = np.linalg.norm(np.array(SIZES) / sum(SIZES))
  expected = 4.0 * 0.5 * share
  assert abs(noise.std() / expected - 1) < 5 / np.sqrt(2 * noise.size)
  assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)


def deviations_of_mean(algorithm):
  """Returns the change of the model in each of 200 rounds."""
  built = quadratics.build(algorithm, sizes=SIZES, centres=CENTRES)
  w = [
    float(record.state.params['w'])
    for record in fa.simulate(
      built, rounds=200, needs_state=lambda number: True
    )
  ]
  return np.diff(w)


def with_state(algorithm):
  """Builds a simulation of a model that has untrained state."""
  model = fa.Model(
    'counting',
    lambda key: fa.Variables({'w': jnp.float32(1.0)}, {'n': jnp.float32(0)}),
    lambda variables, x: jnp.broadcast_to(variables.params['w'], (len(x),)),
    train=lambda variables, batch, context: (
      jnp.broadcast_to(variables.params['w'], batch.mask.shape),
      {'n': variables.state['n'] + 1},
    ),
  )
  x, y = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
  examples = fa.Examples(x, y)
  clients = fa.build_clients(examples, [np.array([0]), np.array([1, 2])])
  federation = fa.Federation(
    clients, examples, client_fraction=1.0, epochs=1, batch_size=1
  )
  return fa.build_simulation(
    model,
    federation,
    algorithm,
    loss=lambda outputs, batch: (outputs - batch.y) ** 2,
  )


CASES = {
  'clip': (lambda: own.local_dp(FEDAVG, 0.0, 1.0), 'clip = 0.0'),
  'noise': (lambda: own.local_dp(FEDAVG, 1.0, -1.0), 'noise_multiplier = -1.0'),
  'encoded': (
    lambda: own.local_dp(own.compress(FEDAVG, own.qsgd(7)), 1.0, 1.0),
    'must be None for local_dp',
  ),
  'secure sums first': (
    lambda: own.local_dp(own.secure_aggregation(FEDAVG, 1.0), 1.0, 1.0),
    'must be None for local_dp',
  ),
  'more than a delta': (
    lambda: models(own.local_dp(own.qfedavg(1.0, ETA), 1.0, 1.0)),
    'local_dp: the message of a client has',
  ),
  'model state': (
    lambda: with_state(own.local_dp(FEDAVG, 1.0, 1.0)),
    'local_dp: the model has untrained state',
  ),
  'model state of examples': (
    lambda: with_state(own.example_dp(FEDAVG, 1.0, 1.0, 1)),
    'example_dp: the model has untrained state',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  check_refused(*CASES[name])


def test_secure_sums_of_private_messages():
  """The sum is that of noisy messages, up to the step."""
  local = own.local_dp(FEDAVG, 0.5, 1.0)
  secure = own.secure_aggregation(local, 8.0, value_bits=24, bits=32)
  found, plain = models(secure), models(local, weighting='uniform')
  np.testing.assert_allclose(found, plain, atol=1e-5)
