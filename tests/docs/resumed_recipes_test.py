"""Resumed runs of recipes have the bits of uninterrupted ones."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import normalised
from tests.testing import rest_slow

SGD, SERVER = optax.sgd(0.1), optax.sgd(1.0, momentum=0.5)
ROUNDS, SAVED = 6, 3  # Mime's rounds are pairs; it is saved within one.


def built_of(page, recipe):
  """Builds a federation that trains with a recipe."""
  model, options = normalised.model('everybody'), {}
  if recipe == 'fedbn':
    model = normalised.model('client')
  if recipe == 'ifca':
    linear = fa.Model(
      'linear',
      lambda key: {
        'w': jax.random.normal(key, (normalised.FEATURES, normalised.CLASSES))
      },
      lambda params, x: x @ params['w'],
    )
    model = fa.experimental.clustered(linear, 2)
  if recipe == 'mime':
    options = {'participation': page.in_pairs(5)}
  algorithms = {
    'fednova': lambda: page.fednova(optax.sgd(0.1, momentum=0.5), 0.5),
    'feddyn': lambda: page.feddyn(0.1, 0.1),
    'fedbn': lambda: fa.experimental.personal(
      fa.fedavg(SGD, optax.sgd(1.0)), ['norm']
    ),
    'mime': lambda: page.mime(optax.sgd(0.1, momentum=0.5), 0.5),
    'ifca': lambda: fa.experimental.ifca(SGD, 2, 2),
    'qsgd': lambda: page.qsgd(fa.fedavg(SGD, SERVER), 4),
    'local_noise': lambda: fa.fedavg(
      optax.chain(page.local_noise(0.1), SGD), SERVER
    ),
  }
  return fa.build_simulation(
    model,
    normalised.federation(**options),
    algorithms[recipe](),
    # One lane on one device compiles soonest.
    execution=fa.Execution(lanes=1, devices=jax.devices()[:1]),
  )


def save(path, record):
  """Writes the states of server and clients as a file of arrays."""
  leaves = jax.tree.leaves((record.state, record.client_states))
  np.savez(path, *map(np.asarray, leaves))


def load(path, simulation):
  """Reads the states, in the form that a simulation starts from."""
  with np.load(path) as file:
    leaves = [file[name] for name in file.files]
  return jax.tree.unflatten(jax.tree.structure(simulation.init()), leaves)


def row_of(record):
  """Returns all that a record has of its round, except its duration."""
  return (
    *(record.round, record.train_loss, record.examples, record.test),
    *(record.info, record.coded, record.skipped),
  )


@pytest.mark.parametrize(
  'recipe',
  rest_slow(
    3, ['mime', 'fedbn', 'qsgd', 'fednova', 'feddyn', 'ifca', 'local_noise']
  ),
)
def test_resumed_and_uninterrupted_runs_have_equal_bits(page, recipe, tmp_path):
  simulation = built_of(page, recipe)
  uninterrupted = list(fa.simulate(simulation, rounds=ROUNDS))
  path = tmp_path / 'saved.npz'
  *_, record = fa.simulate(simulation, rounds=SAVED)
  save(path, record)
  rebuilt = built_of(page, recipe)
  rest = list(fa.simulate(rebuilt, rounds=ROUNDS, start=load(path, rebuilt)))
  assert [row_of(record) for record in rest] == [
    row_of(record) for record in uninterrupted[SAVED + 1 :]
  ]
  jax.tree.map(
    np.testing.assert_array_equal,
    (rest[-1].state, rest[-1].client_states),
    (uninterrupted[-1].state, uninterrupted[-1].client_states),
  )
  # The run has trained, so that equality is no accident.
  assert rest[-1].train_loss != uninterrupted[1].train_loss
