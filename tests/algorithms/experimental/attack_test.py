"""Attacks are those of NumPy; each breaks the mean, and a rule survives it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import robust_twin
from tests.testing import rounds
from tests.testing import simulations

own = fa.experimental
ETA = 0.2
# The honest optima are near 1; the rounds start there.
SIZES = (2, 6, 3, 1, 4, 2, 5, 3, 4)
CENTRES = (0.8, 1.2, 0.9, 1.1, 1.0, 1.0, 0.7, 1.3, 1.1)
ATTACKERS = [1, 6]
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))
FEDERATION = {'sizes': SIZES, 'centres': CENTRES, 'seed': 2}


def deltas(w):
  """Returns the delta of each client, by the closed form of its n_k steps."""
  kept = (1 - ETA) ** np.array(SIZES)
  return (1 - kept) * (np.array(CENTRES) - w)


def forged(kind, scale, d):
  """Returns all messages [K] after an attack, in NumPy."""
  d, honest = np.array(d), np.delete(d, ATTACKERS)
  d[ATTACKERS] = {
    'sign_flip': -scale * d[ATTACKERS],
    'scaling': scale * d[ATTACKERS],
    'little_is_enough': robust_twin.little_is_enough(honest, scale),
    'inner_product': robust_twin.inner_product(honest, scale),
  }[kind]
  return d


def median(d):
  return np.median(d)


def mean(d):
  return np.average(d, weights=SIZES)


@pytest.mark.parametrize(
  ('kind', 'scale', 'aggregate'),
  rest_slow(
    2,
    [
      ('little_is_enough', 1.5, median),
      ('sign_flip', 3.0, mean),
      ('inner_product', 2.0, mean),
      ('scaling', 10.0, median),
    ],
    several=True,
  ),
)
def test_rounds_under_attack(kind, scale, aggregate):
  """The algorithm's own aggregation receives the forged messages."""
  algorithm = FEDAVG
  if aggregate is median:
    algorithm = own.robust(FEDAVG, own.coordinate_median())
  algorithm = own.attack(algorithm, ATTACKERS, getattr(own, kind)(scale))
  w = [1.0]
  for _ in range(3):
    w.append(w[-1] + aggregate(forged(kind, scale, deltas(w[-1]))))
  found = quadratics.models(algorithm, rounds=3, lanes=2, **FEDERATION)
  np.testing.assert_allclose(found, w, rtol=1e-5)


BREAKS = {
  'sign_flip': (own.sign_flip(20.0), own.coordinate_median()),
  'inner_product': (own.inner_product(20.0), own.krum(2)),
  'scaling': (own.scaling(200.0), own.geometric_median()),
  'little_is_enough': (
    own.little_is_enough(50.0),
    own.centred_clipping(0.1, iterations=2),
  ),
  'gaussian_noise': (own.gaussian_noise(200.0), own.trimmed_mean(0.25)),
}


@pytest.mark.parametrize('name', rest_slow(1, BREAKS))
def test_a_rule_survives_what_breaks_the_mean(name):
  """Distances are to the mean of the honest optima, 1."""
  kind, rule = BREAKS[name]

  def distance(algorithm):
    attacked = own.attack(algorithm, ATTACKERS, kind)
    found = quadratics.models(attacked, rounds=10, **FEDERATION)
    return abs(found[-1] - 1)

  assert distance(FEDAVG) > 1
  assert distance(own.robust(FEDAVG, rule)) < 0.2


@pytest.mark.slow
def test_the_median_survives_flipped_labels_of_large_clients():
  """Attackers hold 5/6 of the examples; the median ignores sizes."""
  sizes, attackers = (20, 4, 4, 20, 4), [0, 3]
  x = np.random.default_rng(0).normal(size=(sum(sizes), 1)).astype(np.float32)
  y = (x[:, 0] > 0).astype(np.int32)
  parts = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
  model = fa.Model(
    'line',
    lambda key: {'w': jnp.zeros((1, 2))},
    lambda params, x: x @ params['w'],
  )

  def accuracy(algorithm):
    simulation = simulations.build_simulation(
      model,
      fa.build_clients(fa.Examples(x, y), parts),
      fa.Examples(x, y),
      algorithm=own.attack(algorithm, attackers, own.label_flip(2)),
      **{'client_fraction': 1.0, 'epochs': 1, 'batch_size': 0, 'seed': 0},
    )
    return fa.run(simulation, rounds=10)['test_accuracy'][-1]

  assert accuracy(FEDAVG) < 0.1
  assert accuracy(own.robust(FEDAVG, own.coordinate_median())) > 0.9


@pytest.fixture
def clients(uneven_examples):
  """Makes five clients of 1, 7, 4, 9 and 2 examples."""
  x, y, parts = uneven_examples
  return fa.build_clients(fa.Examples(x, y), parts)


def last(clients, algorithm, **options):
  simulation = simulations.build(
    clients, simulations.model(), algorithm=algorithm, **options
  )
  *_, record = fa.simulate(simulation, rounds=3)
  return record.state.params


@pytest.mark.parametrize('options', rest_slow(1, [{}, {'micro_batch': 2}]))
def test_label_flips_are_training_on_flipped_labels(clients, options):
  """Minibatches in parts, too; the labels of two clients are flipped."""
  kind = own.label_flip(rounds.CLASSES)
  found = last(clients, own.attack(rounds.fedavg(), [1, 4], kind), **options)
  y = np.array(clients.y)
  for k in (1, 4):
    rows = slice(clients.offsets[k], clients.offsets[k + 1])
    y[rows] = rounds.CLASSES - 1 - y[rows]
  flipped = last(clients._replace(y=y), rounds.fedavg(), **options)
  rounds.assert_close(found, flipped, 1e-6)


def test_noise_differs_between_clients_rounds_and_leaves():
  kind = own.gaussian_noise(3.0)
  algorithm = own.attack(FEDAVG, [0, 2], kind)
  delta = {'a': jnp.ones(4), 'b': jnp.ones(4)}

  def sent(client, key):
    context = fa.ClientContext(
      delta, (), (), jnp.int32(client), 9, 1, jax.random.key(key)
    )
    result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
    return algorithm.client_finish(result).message

  noise = sent(0, 1)
  assert not np.allclose(noise['a'], noise['b'])
  assert not np.allclose(noise['a'], sent(0, 2)['a'])
  np.testing.assert_array_equal(sent(1, 1)['a'], 1.0)


def test_layout_stream_and_calls_change_no_bit():
  """Colluding attackers and the defence see the same messages."""
  algorithm = own.attack(
    own.robust(FEDAVG, own.krum(1)), ATTACKERS, own.little_is_enough()
  )

  def last(**options):
    simulation = quadratics.build(
      algorithm, client_fraction=0.7, **FEDERATION, **options
    )
    *_, record = fa.simulate(simulation, rounds=3)
    return record.state

  whole = last(lanes=1)
  for options in (
    {'lanes': 2, 'devices': jax.devices()[:2], 'examples_on': 'host'},
    {'rounds_per_call': 1},
  ):
    jax.tree.map(np.testing.assert_array_equal, whole, last(**options))


def test_attackers_are_a_fixed_draw():
  drawn = own.draw_attackers(20, 0.3, seed=4)
  assert len(set(drawn)) == 6 and set(drawn) <= set(range(20))
  assert drawn == own.draw_attackers(20, 0.3, seed=4)
  assert drawn != own.draw_attackers(20, 0.3, seed=5)
  assert len(own.draw_attackers(10, 0.3, seed=0)) == 3


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: own.draw_attackers(5, 1.0, 0), 'fraction = 1.0: must be below 1'),
    (lambda: own.draw_attackers(5, 0.1, 0), 'fraction = 0.1: is less than one'),
    (lambda: own.attack(FEDAVG, [], own.sign_flip()), 'at least one'),
    (lambda: own.attack(FEDAVG, [2, 2], own.sign_flip()), 'distinct'),
    (lambda: own.attack(FEDAVG, [-1], own.sign_flip()), 'attackers = -1'),
    (lambda: own.label_flip(1), 'num_classes = 1: must be at least 2'),
    (lambda: own.sign_flip(0.0), 'scale = 0.0: must be above 0'),
    (lambda: own.little_is_enough(-1.0), 'scale = -1.0: must be in'),
    (
      lambda: own.robust(
        own.attack(FEDAVG, [1], own.inner_product()), own.coordinate_median()
      ),
      'robust: the algorithm aggregates its messages in its own way',
    ),
    (
      lambda: quadratics.build(own.attack(FEDAVG, [1], own.label_flip(2))),
      'the targets are not class numbers',
    ),
  ],
)
def test_unsound_attacks_are_refused(make, said):
  with pytest.raises(fa.InputError, match=said):
    make()
