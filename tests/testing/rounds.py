"""Trains the twin's network in rounds of the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts import losses
from fedavg_jax.contracts.model import Model
from fedavg_jax.engine import compiled_round
from fedavg_jax.schedule.planning import Planner
from tests.testing import twin

LEARNING_RATE = 0.3
CLASSES = 4


def apply(params, x):
  """Computes the twin's network in JAX, on raw pixels."""
  x = x.astype(jnp.float32).reshape(x.shape[0], -1) / 255
  h = jax.nn.relu(x @ params['w1'] + params['b1'][None])
  return h @ params['w2'] + params['b2'][None]


loss_fn = losses.of_examples(apply)


def of_loss(loss_fn):
  """Makes a model and a loss of (params, x, y) -> losses [B]."""
  model = Model('loss', None, lambda params, x: (params, x))
  return model, lambda outputs, batch: loss_fn(*outputs, batch.y)


def make_engine(
  population, *, loss=loss_fn, algorithm=None, on_nan='stop', **planner_kwargs
):
  """Makes everything to run rounds.

  Returns:
    The function of a round, the states, the data and the planner.

  """
  kwargs = {'lanes': 1, 'num_devices': 1, 'seed': 3} | planner_kwargs
  planner = Planner(num_examples=population.num_examples, **kwargs)
  mesh = compiled_round.lane_mesh(jax.devices()[: planner.num_devices])
  algorithm = algorithm or fedavg()
  model, loss = of_loss(loss)
  round_fn = compiled_round.build_round(
    model, algorithm, planner, mesh, loss=loss, on_nan=on_nan
  )
  data = compiled_round.place_examples(population.x, population.y, mesh)
  params = jax.tree.map(
    lambda p: jnp.asarray(p, jnp.float32),
    twin.init(np.random.default_rng(0), 9, 6, CLASSES),
  )
  states = (
    compiled_round.init_state(params, algorithm, mesh),
    compiled_round.init_client_states(
      params, algorithm, population.num_clients, mesh
    ),
  )
  return round_fn, states, data, planner


def fedavg(client=None, server=None):
  return algorithms.fedavg(
    client or optax.sgd(LEARNING_RATE), server or optax.sgd(1.0)
  )


def run_states(population, rounds=1, **kwargs):
  """Returns server state, client states and metrics after some rounds."""
  round_fn, states, data, planner = make_engine(population, **kwargs)
  all_metrics = []
  for number in range(1, rounds + 1):
    *states, metrics = round_fn(*states, data, planner(number))
    all_metrics.append(jax.device_get(metrics))
  return (*jax.device_get(states), all_metrics)


def run(population, **kwargs):
  state, _, all_metrics = run_states(population, **kwargs)
  return state.params, all_metrics


def assert_close(a, b, tolerance):
  for name in a:
    np.testing.assert_allclose(
      a[name], b[name], rtol=0, atol=tolerance, err_msg=name
    )


def distance(a, b):
  return max(np.abs(a[name] - b[name]).max() for name in a)
