"""Secure sums are exact whole numbers; rounds follow the equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts import algorithm_checks
from tests.testing import check_refused
from tests.testing import quadratics
from tests.testing import rest_slow

own = fa.experimental
ETA, ROUNDS = 0.2, 3
SIZES = (2, 6, 3, 1, 4)
CENTRES = (0.0, 2.0, 4.0, 60.0, 1.0)
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))


def simulation(algorithm, **options):
  options = {'sizes': SIZES, 'centres': CENTRES} | options
  return quadratics.build(algorithm, **options)


def models(algorithm, **options):
  options = {'sizes': SIZES, 'centres': CENTRES} | options
  return quadratics.models(algorithm, rounds=ROUNDS, **options)


def twin(max_abs, levels, weights):
  """Returns w after each round with whole numbers of Python."""
  w, step = [1.0], max_abs / levels
  kept = (1 - ETA) ** np.array(SIZES)
  for _ in range(ROUNDS):
    deltas = (1 - kept) * (np.array(CENTRES) - w[-1])
    q = np.rint(np.clip(deltas, -max_abs, max_abs) / step).astype(int)
    w.append(w[-1] + step * int(weights @ q) / int(weights.sum()))
  return w


@pytest.mark.parametrize('most', rest_slow(1, [4, 1]))
def test_rounds_of_uneven_clients(most):
  """Client 3 is clipped; weights beyond `max_weight` are cut."""
  secure = own.secure_aggregation(
    FEDAVG, 8.0, value_bits=10, bits=16, max_weight=most, rounding='nearest'
  )
  weights = np.minimum(SIZES, most)
  np.testing.assert_allclose(
    models(secure, lanes=2), twin(8.0, 511, weights), rtol=1e-5
  )


def test_a_fine_step_is_the_mean_of_equal_weights():
  """The limit of many bits; the weights of the federation count nothing."""
  secure = own.secure_aggregation(FEDAVG, 64.0, value_bits=25)
  for options in ({}, {'client_fraction': 0.0}):  # All clients, and one.
    plain = models(FEDAVG, weighting='uniform', **options)
    found = models(secure, weighting='examples', **options)
    np.testing.assert_allclose(found, plain, atol=ROUNDS * 64 / 2**24 * 1.1)


def last(built):
  *_, record = fa.simulate(built, rounds=ROUNDS)
  return record.state


def test_lanes_devices_and_order_change_no_bit():
  """Whole numbers add exactly, and stochastic rounding has clients' keys."""
  secure = own.secure_aggregation(FEDAVG, 64.0, max_weight=6)
  whole = last(simulation(secure, lanes=1))
  for options in (
    {'lanes': 2, 'devices': jax.devices()[:2]},
    {'lanes': 4, 'rounds_per_call': 1},
  ):
    other = last(simulation(secure, **options))
    jax.tree.map(np.testing.assert_array_equal, whole, other)


def encoded(secure, deltas, sizes):
  """Returns the messages of clients, stacked."""

  def one(delta, size, client):
    key = jax.random.fold_in(jax.random.key(3), client)
    context = fa.ClientContext(delta, (), (), client, size, 1, key)
    result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
    return secure.client_finish(result).message

  return jax.vmap(one)(deltas, jnp.array(sizes), jnp.arange(len(sizes)))


def ring(messages):
  """Returns what clients send, whole numbers modulo 2^32, [M, d + 1]."""
  levels = np.asarray(messages.levels).astype(np.int64)
  weight = np.asarray(messages.weight).astype(np.int64)[:, None]
  sent = np.concatenate([levels * weight, weight], axis=1)
  return (sent % 2**32).astype(np.uint32)


def decoded(secure, messages):
  one = jax.tree.map(
    lambda m: jax.ShapeDtypeStruct(m.shape[1:], m.dtype), messages
  )
  rule, cohort = secure.aggregate, len(messages.weight)
  sums = rule.add(
    rule.init(one, cohort), messages, jnp.ones(cohort), jnp.arange(cohort)
  )
  return sums, rule.result(sums, jnp.ones(()))


def test_masked_sums_are_the_sums():
  """Every masked message is uniform; masks of pairs cancel exactly."""
  deltas = jax.random.normal(jax.random.key(0), (5, 300))
  secure = own.secure_aggregation(FEDAVG, 2.0, max_weight=3)
  messages = encoded(secure, deltas, SIZES)
  sums, _ = decoded(secure, messages)
  masks = np.asarray(own.pairwise_masks(jax.random.key(1), 5, 301))
  masked = ring(messages) + masks
  server = masked.sum(axis=0, dtype=np.uint32)
  np.testing.assert_array_equal(server[:-1], sums.levels)
  assert server[-1] == int(sums.weight) == np.minimum(SIZES, 3).sum()
  backwards = jax.tree.map(lambda m: m[::-1], messages)
  again, _ = decoded(secure, backwards)
  jax.tree.map(np.testing.assert_array_equal, again, sums)
  # The bits of 1,505 uniform numbers are fair coins, 48,160 of them.
  ones = np.unpackbits(masked.view(np.uint8)).mean()
  assert abs(ones - 0.5) < 4 * 0.5 / np.sqrt(8 * masked.nbytes)
  assert not (masked == ring(messages)).any()


def test_any_ring_decodes_the_same_mean():
  """2^16 divides 2^32, so that negative sums are the same in both."""
  deltas = -jnp.abs(jax.random.normal(jax.random.key(0), (5, 40)))
  rings = [
    own.secure_aggregation(FEDAVG, 2.0, value_bits=13, bits=bits)
    for bits in (16, 32)
  ]
  means = [
    decoded(secure, encoded(secure, deltas, SIZES))[1] for secure in rings
  ]
  np.testing.assert_array_equal(*means)
  assert (np.asarray(means[0]) < 0).all()
  exact = np.clip(deltas, -2, 2).mean(axis=0)
  np.testing.assert_allclose(means[0], exact, atol=1.001 * 2 / 4095)


def test_stochastic_rounding_is_unbiased_and_its_range_is_never_left():
  """The step is 1 / 3; the mean of 40,000 numbers is within 4 deviations."""
  secure = own.secure_aggregation(FEDAVG, 1.0, value_bits=3)
  for x in (0.1, -0.45, 1.0, -1.0, 7.0):
    levels = np.asarray(
      encoded(secure, jnp.full((1, 40_000), x), [1]).levels, np.float64
    )
    share = 3 * np.clip(x, -1, 1) % 1
    bound = 4 * np.sqrt(share * (1 - share) / levels.size) + 1e-6
    assert abs(levels.mean() - 3 * np.clip(x, -1, 1)) <= bound
    assert np.abs(levels).max() <= 3
  # Near 2^24, float32 has no fractions: the largest level stays the largest.
  fine = own.secure_aggregation(FEDAVG, 1.0, value_bits=25)
  sent = encoded(fine, jnp.array([[1.0, -1.0, 0.0]]), [1])
  assert sent.levels.tolist() == [[2.0**24 - 1, 1.0 - 2.0**24, 0.0]]


def test_bytes_and_clipped_share_are_counted():
  secure = own.secure_aggregation(FEDAVG, 8.0, value_bits=10, bits=20)
  built = simulation(secure)
  *_, record = fa.simulate(built, rounds=1)
  assert float(record.info['clipped']) == pytest.approx(1 / 5)
  bytes_ = algorithm_checks.traffic(secure, {'w': jnp.zeros(7)}, 'everybody')
  assert (bytes_.down, bytes_.up) == (28, 20)  # 8 numbers of 20 bits.


def test_a_message_that_is_not_finite_is_not_decoded():
  def broken(result):
    bad = result.context.client_id == 2
    delta = jax.tree.map(lambda d: jnp.where(bad, jnp.inf, d), result.delta)
    return fa.ClientOutput(delta)

  secure = own.secure_aggregation(
    FEDAVG._replace(client_finish=broken), 8.0, value_bits=20
  )
  *_, record = fa.simulate(simulation(secure), rounds=1)
  assert not record.finite
  dropped = models(secure, on_nan='skip_client')
  without = {
    'sizes': SIZES[:2] + SIZES[3:],
    'centres': CENTRES[:2] + CENTRES[3:],
  }
  alone = own.secure_aggregation(FEDAVG, 8.0, value_bits=20)
  expected = models(alone, **without)
  np.testing.assert_allclose(dropped, expected, atol=ROUNDS * 8 / 2**18)


SECURE = own.secure_aggregation(FEDAVG, 1.0)
CASES = {
  'overflow': (
    lambda: simulation(
      own.secure_aggregation(FEDAVG, 1.0, value_bits=8, bits=10)
    ),
    'a sum over 5 clients of at most 1 * 127 needs 11 bits; must have at most'
    ' bits = 10',
  ),
  'overflow by weights': (
    lambda: simulation(own.secure_aggregation(FEDAVG, 1.0, max_weight=2**20)),
    'needs 39 bits',
  ),
  'more bits than the device adds': (
    lambda: own.secure_aggregation(FEDAVG, 1.0, bits=33),
    'bits = 33: must be in [16, 32]',
  ),
  'no range': (lambda: own.secure_aggregation(FEDAVG, 0.0), 'must be above 0'),
  'rounding': (
    lambda: own.secure_aggregation(FEDAVG, 1.0, rounding='up'),
    "must be 'stochastic' or 'nearest'",
  ),
  'median over sums': (
    lambda: own.robust(SECURE, own.coordinate_median()),
    'must take their weighted mean',
  ),
  'sums of a median': (
    lambda: own.secure_aggregation(
      own.robust(FEDAVG, own.coordinate_median()), 1.0
    ),
    'secure_aggregation: the algorithm aggregates its messages in its own way',
  ),
  'sums with noise of the server': (
    lambda: own.secure_aggregation(
      own.privatize(FEDAVG, clip=1.0, noise_multiplier=1.0, denominator=5), 1.0
    ),
    'secure_aggregation: the algorithm aggregates its messages in its own way',
  ),
  'norms bounded by the server': (
    lambda: own.bound_norms(SECURE, 1.0),
    'bound_norms: the algorithm aggregates its messages in its own way',
  ),
  'attack that changes messages': (
    lambda: own.attack(SECURE, [0], own.sign_flip(4.0)),
    'attack: needs the single messages of clients',
  ),
  'attack that sees messages': (
    lambda: own.attack(SECURE, [0], own.little_is_enough()),
    'attack: needs the single messages of clients',
  ),
  'staleness of sums': (
    lambda: simulation(own.fedbuff(SECURE)),
    'fedbuff: the message of a client has',
  ),
  'codes twice': (lambda: own.compress(SECURE, own.qsgd(7)), 'num_bytes'),
  'encoded before': (
    lambda: own.secure_aggregation(own.compress(FEDAVG, own.qsgd(7)), 1.0),
    'messages are encoded already',
  ),
  'more than a delta': (
    lambda: simulation(own.secure_aggregation(fa.scaffold(0.1, 1.0), 1.0)),
    'beside the delta of the model',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(name):
  check_refused(*CASES[name])
