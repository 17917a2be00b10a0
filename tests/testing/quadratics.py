"""Builds federations with rounds in closed form: losses (w - c_k)^2 / 2."""

import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa

SIZES, CENTRES = (2, 6, 3, 1), (0.0, 2.0, 4.0, 6.0)


def build(
  algorithm,
  *,
  client_fraction=1.0,
  sizes=SIZES,
  sweep=None,
  execution=fa.Execution(),  # noqa: B008 (they are frozen)
  placement=fa.Placement(),  # noqa: B008
  **options,
):
  """Builds a simulation of four clients with n_k updates per round.

  Args:
    algorithm: the algorithm; of a sweep the function of a value.
    client_fraction: the fraction C of clients in a round.
    sizes: the clients' numbers of updates n_k.
    sweep: the values of a sweep, or None.
    execution: the lanes, devices and calls.
    placement: the places of examples and client states.
    **options: other options of `fa.Federation`.

  """
  y = np.repeat(np.float32(CENTRES), sizes)
  parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
  examples = fa.Examples(np.zeros((len(y), 1), np.float32), y)
  model = fa.Model(
    'point',
    lambda key: {'w': jnp.float32(1.0)},
    lambda params, x: jnp.broadcast_to(params['w'], (len(x),)),
  )
  federation = fa.Federation(
    fa.build_clients(examples, parts),
    examples,
    client_fraction=client_fraction,
    **{'epochs': 1, 'batch_size': 1, 'seed': 1, **options},
  )

  rest = {
    'loss': lambda outputs, batch: (outputs - batch.y) ** 2 / 2,
    'execution': execution,
    'placement': placement,
  }
  if sweep is None:
    return fa.build_simulation(model, federation, algorithm, **rest)
  return fa.build_sweep(model, federation, algorithm, sweep, **rest)


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
