"""IFCA finds the clusters from which the clients were made."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import rest_slow
from tests.testing import twin

# Client k is in cluster k % 4, whose weights are turned by k % 4 right angles.
SIZES = (30, 9, 1, 17, 2, 44, 12, 5, 21, 1, 8, 13)
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
WEIGHTS = np.stack(
  [np.linalg.matrix_power(TURN, j) @ [3.0, 0.0] for j in range(4)]
)


def linear():
  return fa.Model(
    'linear',
    lambda key: {'w': jax.random.normal(key, (2,))},
    lambda params, x: x @ params['w'],
  )


def federation(seed):
  """Makes twelve clients with y = w_j x of their cluster j, without noise."""
  rng = np.random.default_rng(seed)
  parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
  x = rng.normal(size=(sum(SIZES), 2)).astype(np.float32)
  y = np.zeros(len(x), np.float32)
  for k, part in enumerate(parts):
    y[part] = x[part] @ WEIGHTS[k % 4]
  examples = fa.Examples(x, y)
  return fa.Federation(
    fa.build_clients(examples, parts),
    examples,
    client_fraction=0.75,
    epochs=4,
    batch_size=8,
    seed=seed,
  )


def plain_rounds(simulation, clients, models, rounds):
  """Returns the models [k, 2] and each client's choice, in NumPy."""
  models, choices = np.float64(models), np.full(len(SIZES), -1)
  planner = simulation.planner
  for number in range(1, rounds + 1):
    sums, weights = np.zeros_like(models), np.zeros(len(models))
    for k in planner.cohort(number):
      own = slice(clients.offsets[k], clients.offsets[k + 1])
      x, y = clients.x[own], clients.y[own]
      j = np.argmin(((x @ models.T - y[:, None]) ** 2).mean(axis=0))
      w, batches = models[j].copy(), twin.batches_of(planner, number, k)
      for rows in batches[len(batches) // planner.epochs :]:
        error = x[rows] @ w - y[rows]
        w -= 0.1 * 2 * error @ x[rows] / len(rows)
      sums[j] += len(x) * (w - models[j])
      weights[j] += len(x)
      choices[k] = j
    models = models + sums / np.maximum(weights, 1)[:, None]
  return models, choices


@pytest.mark.parametrize('batch_size', rest_slow(1, [8, 0]))
def test_numpy_twin(batch_size):
  own = dataclasses.replace(federation(3), batch_size=batch_size)
  simulation = fa.build_simulation(
    fa.experimental.clustered(linear(), 3),
    own,
    fa.experimental.ifca(optax.sgd(0.1), 3, batch_size),
    loss=fa.losses.squared_error,
    execution=fa.Execution(lanes=2),
  )
  first = simulation.init()[0].params['models']['w']
  result = fa.run(simulation, rounds=3)
  models, choices = plain_rounds(simulation, own.clients, first, 3)
  np.testing.assert_allclose(
    result.params['models']['w'], models, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(result.client_states, choices)
  one, every = 4 * 2 + 4, 3 * 4 * 2
  planner = simulation.planner
  assert (planner.bytes_up, planner.bytes_down) == (one, every)


def test_the_own_model_is_that_of_the_choice():
  model = fa.experimental.clustered(linear(), 3)
  ifca = fa.experimental.ifca(optax.sgd(0.1), 3, 8)
  params = model.init(jax.random.key(0))
  x = np.ones((1, 2), np.float32)
  for state, j in ((-1, 0), (0, 0), (2, 2)):
    context = fa.ClientContext(params, (), np.int32(state), 0, 9, 1, None)
    found = model.apply(ifca.own_model(context), x)
    np.testing.assert_allclose(found, x @ params['models']['w'][j], rtol=1e-6)


@pytest.mark.parametrize('seed', rest_slow(1, [8, 16]))
def test_every_client_ends_in_its_cluster(seed):
  """Some are in another one first; each model becomes its cluster's weights."""
  simulation = fa.build_simulation(
    fa.experimental.clustered(linear(), 4),
    federation(seed),
    fa.experimental.ifca(optax.sgd(0.1), 4, 8),
    loss=fa.losses.squared_error,
  )
  choices = []
  result = fa.run(
    simulation,
    rounds=50,
    on_round=lambda record: choices.append(np.asarray(record.client_states)),
  )
  np.testing.assert_array_equal(choices[0], -1)
  of_clusters = choices[-1][:4]  # One client of each cluster.
  assert sorted(of_clusters) == [0, 1, 2, 3]
  np.testing.assert_array_equal(choices[-1], np.tile(of_clusters, 3))
  assert ((choices[3] != choices[-1]) & (choices[3] >= 0)).any()
  models = np.asarray(result.params['models']['w'])
  np.testing.assert_allclose(models[of_clusters], WEIGHTS, atol=1e-3)


def test_one_cluster_is_fedavg():
  """IFCA needs one more epoch, in which it measures its only model."""
  one = federation(1)
  clusters = fa.build_simulation(
    fa.experimental.clustered(linear(), 1),
    dataclasses.replace(one, shuffle='round'),
    fa.experimental.ifca(optax.sgd(0.1), 1, 8),
    loss=fa.losses.squared_error,
  )
  first = clusters.init()[0].params['models']['w'][0]
  plain = fa.build_simulation(
    linear()._replace(init=lambda key: {'w': first}),
    dataclasses.replace(one, shuffle='round', epochs=3),
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    loss=fa.losses.squared_error,
  )
  ends = [fa.run(simulation, rounds=5) for simulation in (clusters, plain)]
  np.testing.assert_allclose(
    ends[0].params['models']['w'][0], ends[1].params['w'], rtol=1e-5
  )
  np.testing.assert_allclose(
    ends[0]['test_loss'], ends[1]['test_loss'], rtol=1e-5
  )
