"""IFCA finds the clusters from which the clients were made."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa

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


@pytest.mark.parametrize('seed', [8, 16])
def test_every_client_ends_in_its_cluster(page, seed):
  """Some are in another one first; each model becomes its cluster's weights."""
  simulation = fa.build_simulation(
    page.clustered(linear(), 4),
    federation(seed),
    page.ifca(0.1, 4, 8),
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


def test_one_cluster_is_fedavg(page):
  """IFCA needs one more epoch, in which it measures its only model."""
  one = federation(1)
  clusters = fa.build_simulation(
    page.clustered(linear(), 1),
    dataclasses.replace(one, shuffle='round'),
    page.ifca(0.1, 1, 8),
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
