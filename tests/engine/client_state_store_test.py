"""Client states on the host have the bits of those on the devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import client_state_store
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import simulations


@pytest.fixture
def clients(uneven_examples):
  x, y, parts = uneven_examples
  return fa.build_clients(fa.Examples(x, y), parts)


def states(own):
  """Returns the states of all clients, on the host."""
  if isinstance(own, client_state_store.ClientStates):
    return own.gather(np.arange(5))
  return jax.device_get(own)


@pytest.mark.parametrize(
  ('on_disk', 'changes'),
  rest_slow(
    1,
    covering(
      [True, False],
      [
        {'examples_on': 'host', 'on_nan': 'skip_client'},
        {},
        {'client_fraction': 1.0, 'batch_size': 0},
        {'lanes': 1},
        {'client_fraction': 0.0},
        {'participation': fa.Participation(straggler_fraction=0.5)},
      ],
    ),
    several=True,
  ),
)
def test_on_the_host_as_on_the_devices(clients, changes, on_disk, tmp_path):
  """Rounds overlap, and a client in two of them has its newest state."""
  results = []
  for on_host in (False, True):
    simulation = simulations.build(
      clients,
      simulations.model(),
      algorithm=fa.scaffold(0.1, 1.0),
      client_states_on='host' if on_host else 'device',
      **changes,
    )
    options = {}
    if on_host:
      folder = tmp_path if on_disk else None
      options['host_states'] = simulation.host_states(folder)
    results.append(
      [
        (record.state, states(record.client_states), record.train_loss)
        for record in fa.simulate(
          simulation,
          rounds=7,
          needs_state=lambda number: number == 3,
          **options,
        )
        if record.client_states is not None
      ][-1]
    )
    assert not list(tmp_path.iterdir())  # The file is unnamed.
  for here, there in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_array_equal(here, there)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(results[1][1]))


@pytest.mark.slow
def test_it_resumes_from_what_was_saved(clients, tmp_path):
  def build():
    return simulations.build(
      clients,
      simulations.model(),
      algorithm=fa.scaffold(0.1, 1.0),
      client_fraction=0.2,
      client_states_on='host',
    )

  *_, uninterrupted = fa.simulate(build(), rounds=6)
  *_, half = fa.simulate(build(), rounds=3)
  saved = half.client_states.saved()
  took_part = {k for t in (1, 2, 3) for k in build().planner.cohort(t)}
  assert set(saved['clients']) == took_part
  shapes = half.client_states.shapes(len(took_part))
  assert jax.tree.map(lambda leaf: leaf.shape, saved) == jax.tree.map(
    lambda leaf: leaf.shape, shapes
  )
  simulation = build()
  again = simulation.host_states(tmp_path)
  again.scatter(saved['clients'], saved['states'])
  *_, end = fa.simulate(simulation, rounds=6, start=(half.state, again))
  for here, there in zip(
    jax.tree.leaves((uninterrupted.state, states(uninterrupted.client_states))),
    jax.tree.leaves((end.state, states(end.client_states))),
    strict=True,
  ):
    np.testing.assert_array_equal(here, there)


def everybody(one):
  """Makes the same initial state for each client."""
  return jax.vmap(lambda client: jax.tree.map(jnp.asarray, one))


def test_clients_that_never_took_part_use_no_space(tmp_path):
  """A million clients have a mebibyte each, in a sparse file."""
  with open(tmp_path / 'probe', 'wb') as file:
    try:
      os.truncate(file.fileno(), 2**41)
    except OSError:
      pytest.skip('a file system without such files')
  one = {'a': np.full((2**9, 2**9), 3, np.float32), 'b': np.float32(2)}
  own = client_state_store.ClientStates(everybody(one), 1_000_000, tmp_path)
  who = np.array([0, 999_999, 5])
  new = {
    'a': np.ones((2, 2**9, 2**9), np.float32),
    'b': np.zeros(2, np.float32),
  }
  own.scatter(who[:2], new)
  got = own.gather(who)
  assert (got['a'][:2] == 1).all() and (got['a'][2] == 3).all()
  assert got['b'].tolist() == [0, 0, 2]
  assert own.saved()['clients'].tolist() == [0, 999_999]
  on_disk = [os.fstat(rows._file.fileno()).st_blocks for rows in own._rows]
  assert sum(on_disk) * 512 < 2**23


@pytest.mark.parametrize('on_disk', [True, False])
def test_before_any_client_took_part(tmp_path, on_disk):
  """A run that is stopped after round 0 saves this state, and resumes."""
  one = {'a': np.ones((2, 3), np.float32), 'b': np.float32(2)}
  states = client_state_store.ClientStates(
    everybody(one), 4, tmp_path if on_disk else None
  )
  saved = states.saved()
  assert len(saved['clients']) == 0 and saved['states']['a'].shape == (0, 2, 3)
  states.scatter(saved['clients'], saved['states'])
  assert states.gather(np.array([1]))['a'].tolist() == [[[1] * 3] * 2]
  assert len(states.clients) == 0


def test_refusals(clients):
  with pytest.raises(InputError, match='rounds_per_call = 2: must be 1 with'):
    simulations.build(
      clients,
      simulations.model(),
      algorithm=fa.scaffold(0.1, 1.0),
      client_states_on='host',
      rounds_per_call=2,
    )
  with pytest.raises(InputError, match='is not supported with sweeps'):
    simulations.build(
      clients,
      simulations.model(),
      algorithm=lambda eta: fa.scaffold(eta, 1.0),
      sweep=[0.1],
      client_states_on='host',
    )
  # Clients without states need none on the host.
  simulation = simulations.build(
    clients, simulations.model(), client_states_on='host'
  )
  assert simulation.host_states is None
  assert jnp.size(fa.run(simulation, rounds=2)['round']) == 3
