"""The driver knows where the next calls start, and when a run ends."""

import weakref

import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.task import make_task
from fedavg_jax.engine import call_queue
from fedavg_jax.engine import driver
from tests.testing import simulations


@pytest.fixture(scope='module')
def clients():
  rng = np.random.default_rng(3)
  x = rng.integers(0, 256, (23, 3, 3, 1)).astype(np.uint8)
  y = rng.integers(0, 4, 23).astype(np.int32)
  parts = np.split(rng.permutation(23), [1, 8, 12, 21])
  return fa.build_clients(fa.Examples(x, y), parts)


TASK = make_task(simulations.model())


def reached(going=True):
  return driver._Reached(3, 'old', 'kept', np.array(going))


def record(number, **changes):
  nothing = call_queue.Record(number, *[None] * 10, test={})
  return nothing._replace(**({'state': 'new', 'finite': True} | changes))


def test_a_record_without_a_state_moves_nothing():
  before = reached()
  assert before.after(record(4, state=None), TASK, 0.5) is before


def test_a_record_with_a_state_is_where_the_next_call_starts():
  after = reached().after(record(4), TASK, 0.0)
  assert (after.round, after.state, after.client_states) == (4, 'new', 'kept')
  assert after.going


def test_values_end_at_the_target_or_where_they_are_not_finite():
  after = reached([True, True, True, False]).after(
    record(
      4,
      finite=np.array([True, False, True, True]),
      test={'accuracy': np.array([0.4, 0.4, 0.5, 0.4])},
    ),
    TASK,
    0.5,
  )
  assert after.going.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
  ('accuracy', 'target'), [(None, 0.5), (0.9, 0.0), (0.4, 0.5)]
)
def test_no_test_or_no_target_ends_nothing(accuracy, target):
  test = {} if accuracy is None else {'accuracy': accuracy}
  assert reached().after(record(4, test=test), TASK, target).going


def test_a_run_resumes_after_the_round_of_its_state(clients):
  simulation = simulations.build(clients, simulations.model())
  *_, last = fa.simulate(simulation, rounds=2)
  start = (last.state, last.client_states)
  assert driver._begin(simulation, start, None).round == 2
  assert [r.round for r in fa.simulate(simulation, rounds=4, start=start)] == [
    3,
    4,
  ]


def test_fewer_lanes_move_a_run_and_change_no_weight(clients):
  simulation = simulations.build(
    clients, simulations.model(), client_fraction=1.0, lanes=4
  )
  before = driver._begin(simulation, None, None)
  fewer, after = driver._move(simulation, 2, before)
  assert fewer.planner.lanes == 2 and after.round == before.round == 0
  for here, there in zip(
    jax.tree.leaves(before.state), jax.tree.leaves(after.state), strict=True
  ):
    np.testing.assert_array_equal(here, there)


def test_client_states_are_lost_in_a_call_that_failed():
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
  with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
    driver._lanes_after(error, None, 4, reached())  # type: ignore[arg-type]


def test_models_of_earlier_rounds_are_freed(clients):
  """A device may have memory for only a few of them."""
  simulation = simulations.build(
    clients, simulations.model(), rounds_per_call=1
  )
  seen = []
  for current in fa.simulate(simulation, rounds=6):
    # The current record, and the one that it replaces.
    assert [ref() for ref in seen[:-1]] == [None] * len(seen[:-1])
    seen.append(weakref.ref(jax.tree.leaves(current.state.params)[0]))
  assert len(seen) == 7
