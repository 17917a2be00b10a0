"""Examples of several arrays have the same bits as one array with them all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.client_evaluation import build_client_tests
from tests.testing import simulations

SIZES = (1, 7, 4, 9, 2)
PARTS = np.split(np.arange(23), np.cumsum(SIZES)[:-1])
PLACES = {'device': {}, 'streamed': {'examples_on': 'host'}}


def examples():
  """Returns x [23, 5] and y [23] of real numbers."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(sum(SIZES), 5)).astype(np.float32)
  return x, (x.sum(axis=1) + rng.normal(size=len(x))).astype(np.float32)


def model(join):
  """Makes a linear model of the array that `join` makes of the inputs."""

  def init(key):
    return {'w': jax.random.normal(key, (5,)), 'b': jnp.zeros(())}

  def apply(params, x):
    x = join(x)
    return jnp.sum(x * params['w'][None], axis=1) + params['b'][None]

  return fa.Model('linear', init, apply)


def as_one():
  x, y = examples()
  return fa.Examples(x, y), model(lambda x: x), fa.losses.squared_error


def as_trees():
  """Returns the same examples as a dict in a tuple, and targets as a dict."""
  x, y = examples()
  own = fa.Examples(
    ({'image': x[:, :3], 'age': x[:, 3]}, x[:, 4:].astype(np.float64)),
    {'y': y, 'unused': np.arange(len(y), dtype=np.uint8)},
  )

  def join(x):
    return jnp.concatenate([x[0]['image'], x[0]['age'][:, None], x[1]], axis=1)

  def loss(outputs, batch):
    return (outputs - batch.y['y']) ** 2

  return own, model(join), loss


def build(own, a_model, loss, **changes):
  clients = fa.build_clients(own, PARTS)
  options = {'client_fraction': 0.6, 'epochs': 2, 'batch_size': 3, 'seed': 5}
  return simulations.build_simulation(
    a_model,
    clients,
    fa.Examples(*(trees.take(part, slice(9)) for part in own)),
    algorithm=fa.fedavg(optax.sgd(0.05), optax.sgd(1.0)),
    loss=loss,
    **options | changes,
  )


def states(simulation):
  result = fa.run(simulation, rounds=3)
  return result.params, result['test_loss'].tolist(), result


@pytest.mark.parametrize('place', PLACES)
def test_trees_train_to_the_bits_of_one_array(place):
  one, several = (
    states(build(*own, **PLACES[place])) for own in (as_one(), as_trees())
  )
  jax.tree.map(np.testing.assert_array_equal, one[:2], several[:2])
  (x, _), (own, _) = as_one()[0], as_trees()[0]
  np.testing.assert_array_equal(one[2].predict(x), several[2].predict(own))


def test_held_out_trees_are_tested_as_one_array():
  found = []
  for own, a_model, loss in (as_one(), as_trees()):
    simulation = build(own, a_model, loss)
    # Client 0 holds out nothing.
    offsets = np.array([0, 0, 3, 5, 6, 9])
    held = Clients(*(trees.take(part, slice(9)) for part in own), offsets)
    tests = build_client_tests(
      simulation, held, finetune=optax.sgd(0.1), epochs=1
    )(simulation.init()[0])
    found.append([tests.global_model, tests.personal])
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_reference_round_takes_trees():
  own, a_model, loss = as_trees()
  x, y, mask = fa.stack(fa.build_clients(own, PARTS), [1, 4])
  assert x[0]['image'].shape == (2, 7, 3) and y['y'].shape == mask.shape
  np.testing.assert_array_equal(x[0]['age'][1, :2], own.x[0]['age'][PARTS[4]])
  assert not x[1][1, 2:].any() and mask.sum() == 9


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (
      lambda own: own._replace(x={'a': own.x[0]['age'], 'b': own.x[1][:4]}),
      r'x: its arrays have \[4, 23\] rows, must have the same number',
    ),
    (lambda own: own._replace(x={}), 'x: its arrays have no rows'),
    (
      lambda own: own._replace(y={'y': own.y['y'][:4]}),
      'examples: 23 inputs, but 4 labels',
    ),
    (
      lambda own: own._replace(x={'a': np.full(23, 'b')}),
      r"x\['a'\]: is <U1, must be real numbers",
    ),
    (
      lambda own: own._replace(x={'a': np.full(23, 1e300)}),
      r"x\['a'\]: holds 1e\+300 at row 0, too large for float32",
    ),
  ],
)
def test_invalid_trees_of_rows_are_refused(change, said):
  with pytest.raises(InputError, match=said):
    fa.build_clients(change(as_trees()[0]), [range(23)])


def test_what_does_not_fit_is_refused_before_compiling():
  own, a_model, loss = as_trees()
  with pytest.raises(
    InputError, match='clients.y: expected class numbers .* got a tree'
  ):
    logits = a_model._replace(apply=lambda params, x: jnp.ones((1, 4)))
    build(own, logits, fa.losses.cross_entropy)
  with pytest.raises(InputError, match=r'cannot take examples float32\[5\] \('):
    build(as_one()[0], a_model, loss)
  holed = own._replace(x=({'image': own.x[0]['image'] * np.nan}, own.x[1]))
  with pytest.raises(InputError, match='23 examples are not finite'):
    build(holed, model(lambda x: jnp.zeros((1, 5))), loss)
  simulation = build(own, a_model, loss)
  result = fa.run(simulation, rounds=1)
  with pytest.raises(
    InputError, match=r'x: expected .* as in the test set, got float32\[5\]'
  ):
    result.predict(as_one()[0].x)
