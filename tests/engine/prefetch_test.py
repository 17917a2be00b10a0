"""Streamed examples have the bits of resident ones; only cohorts are read."""

import dataclasses
import time

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import prefetch
from fedavg_jax.schedule import planning
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing.simulations import Watched
from tests.testing.simulations import build
from tests.testing.simulations import mapped
from tests.testing.simulations import model
from tests.testing.simulations import noise


@pytest.fixture
def clients(uneven_examples):
  x, y, parts = uneven_examples
  return fa.build_clients(fa.Examples(x, y), parts)


@pytest.mark.parametrize(
  ('augment', 'changes'),
  rest_slow(
    1,
    covering(
      [None, noise],
      [
        {'algorithm': fa.scaffold(0.1, 1.0)},
        {'client_fraction': 1.0, 'batch_size': 0, 'micro_batch': 2},
        {'on_nan': 'skip_client', 'weighting': 'uniform'},
        {
          'sweep': [0.1, 0.3],
          'algorithm': lambda e: rounds.fedavg(optax.sgd(e)),
        },
        {},
        {'lanes': 1},
        {'client_fraction': 0.0},
        {'participation': fa.Participation(straggler_fraction=0.5)},
      ],
    ),
    several=True,
  ),
)
def test_same_bits_as_resident(clients, tmp_path, changes, augment):
  own = model(augment)
  resident = build(clients, own, **changes)
  streamed = build(
    mapped(clients, tmp_path), own, examples_on='host', **changes
  )
  assert streamed.rounds_per_call == 1
  runs = [
    list(fa.simulate(simulation, rounds=6))
    for simulation in (resident, streamed)
  ]
  for one, other in zip(*runs, strict=True):
    for name in ('train_loss', 'examples', 'test_accuracy', 'test_loss'):
      np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  for one, other in zip(
    *(
      jax.tree.leaves((records[-1].state, records[-1].client_states))
      for records in runs
    ),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_cohort_smaller_than_the_buffer(clients, tmp_path):
  """A trace has one, two and no clients; the buffer has room for three."""
  trace = fa.schedule.Trace(
    client=np.array([3, 0, 4]),
    first=np.array([1, 2, 2]),
    last=np.array([1, 2, 3]),
  )
  options = {'participation': fa.Participation(trace=trace)}
  for number in (1, 2, 3, 4):
    states = [
      list(fa.simulate(simulation, rounds=number))[-1].state.params
      for simulation in (
        build(clients, model(), **options),
        build(
          mapped(clients, tmp_path), model(), examples_on='host', **options
        ),
      )
    ]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
      np.testing.assert_array_equal(one, other)


def planner_of(clients, cohort_size):
  return fa.engine.Planner(
    num_examples=clients.num_examples,
    cohort_size=cohort_size,
    epochs=1,
    batch_size=2,
    seed=0,
    streamed=True,
  )


def test_only_cohorts_are_read_two_rounds_ahead(clients):
  watched = clients._replace(x=Watched(clients.x))
  planner = planner_of(clients, 1)
  own = prefetch.Stream(
    watched, planner, fa.engine.lane_mesh(jax.devices()[:1])
  )
  buffer = own([1])
  for _ in range(200):
    if not own._loading or all(f.done() for f in own._loading.values()):
      break
    time.sleep(0.01)
  (k,) = planner.cohort(1)
  mine = range(*clients.offsets[k : k + 2])
  np.testing.assert_array_equal(buffer.x[: len(mine)], clients.x[mine])
  np.testing.assert_array_equal(buffer.row[: len(mine)], mine)
  expected = {
    row
    for t in (1, 2, 3)
    for k in planner.cohort(t)
    for row in range(*clients.offsets[k : k + 2])
  }
  assert watched.x.read == expected


@pytest.mark.parametrize('num_devices', (1, 2))
def test_buffers_in_use_are_not_overwritten(clients, num_devices):
  """Host memory is reused, but buffers in use are not changed."""
  planner = dataclasses.replace(
    planner_of(clients, 4), lanes=num_devices, num_devices=num_devices
  )
  mesh = fa.engine.lane_mesh(jax.devices()[:num_devices])
  own = prefetch.Stream(clients, planner, mesh)
  given = {t: own([t]) for t in range(1, 9)}
  for t, buffer in given.items():
    loads = planner.loads(t)
    assert sorted(np.concatenate(loads)) == sorted(planner.cohort(t))
    for part, load in zip(
      zip(*(np.split(own, num_devices) for own in buffer), strict=True),
      loads,
      strict=True,
    ):
      rows = np.concatenate(
        [np.arange(*clients.offsets[k : k + 2]) for k in load]
      )
      np.testing.assert_array_equal(part[0][: len(rows)], clients.x[rows])
      np.testing.assert_array_equal(part[1][: len(rows)], clients.y[rows])
      np.testing.assert_array_equal(part[2][: len(rows)], rows)


def test_the_next_rounds_are_read_while_one_is_used(clients):
  """A round that takes longer than reading has no need to wait for it."""
  watched = clients._replace(x=Watched(clients.x, seconds=0.02))
  own = prefetch.Stream(
    watched, planner_of(clients, 3), fa.engine.lane_mesh(jax.devices()[:1])
  )
  own([1])
  first = own.waited
  assert first >= 0.05
  for t in range(2, 7):
    time.sleep(0.3)  # The device is working.
    own([t])
  assert own.waited - first < 0.06


def test_rounds_in_another_order(clients):
  """Another run of the same simulation starts at round 1 again."""
  own = prefetch.Stream(
    clients, planner_of(clients, 2), fa.engine.lane_mesh(jax.devices()[:1])
  )
  first = own([1])
  own([2])
  for t in (7, 1, 2, 1):
    buffer = own([t])
  for a, b in zip(first, buffer, strict=True):
    np.testing.assert_array_equal(a, b)


def test_refusals(clients):
  with pytest.raises(InputError, match='rounds_per_call = 2: must be 1'):
    build(clients, model(), examples_on='host', rounds_per_call=2)
  planner = dataclasses.replace(planner_of(clients, 2), cohort_size=2)
  most = np.sort(clients.num_examples)[-2:].sum()
  assert planner.buffer_examples == planning.next_power(int(most))
