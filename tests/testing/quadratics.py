"""Builds federations with rounds in closed form: losses (w - c_k)^2 / 2."""

import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa
from tests.testing import simulations

SIZES, CENTRES = (2, 6, 3, 1), (0.0, 2.0, 4.0, 6.0)


def build(
  algorithm, *, client_fraction=1.0, sizes=SIZES, centres=CENTRES, **options
):
  """Builds a simulation of some clients with n_k updates per round.

  Args:
    algorithm: the algorithm.
    client_fraction: the fraction C of clients in a round.
    sizes: the clients' numbers of updates n_k.
    centres: the clients' optima c_k.
    **options: other options of a simulation or a sweep.

  """
  y = np.repeat(np.float32(centres), sizes)
  parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
  examples = fa.Examples(np.zeros((len(y), 1), np.float32), y)
  model = fa.Model(
    'point',
    lambda key: {'w': jnp.float32(1.0)},
    lambda params, x: jnp.broadcast_to(params['w'], (len(x),)),
  )
  return simulations.build_simulation(
    model,
    fa.build_clients(examples, parts),
    examples,
    algorithm=algorithm,
    loss=lambda outputs, batch: (outputs - batch.y) ** 2 / 2,
    client_fraction=client_fraction,
    **{'epochs': 1, 'batch_size': 1, 'seed': 1, **options},
  )


def models(algorithm, *, rounds, **options):
  """Returns w after each round, that before the first one included."""
  simulation = build(algorithm, **options)
  return np.array(
    [
      float(record.state.params['w'])
      for record in fa.simulate(
        simulation, rounds=rounds, needs_state=lambda number: True
      )
    ]
  )
