"""The queue starts calls early, waits for their ends, and can stop."""

import math

import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.engine import call_queue
from fedavg_jax.engine import superstep
from tests.testing import simulations


@pytest.fixture(scope='module')
def simulation():
  rng = np.random.default_rng(3)
  x = rng.integers(0, 256, (23, 3, 3, 1)).astype(np.uint8)
  y = rng.integers(0, 4, 23).astype(np.int32)
  parts = np.split(rng.permutation(23), [1, 8, 12, 21])
  clients = fa.build_clients(fa.Examples(x, y), parts)
  return simulations.build(clients, simulations.model(), rounds_per_call=5)


def calls(simulation, rounds=20, **requests):
  state, client_states = simulation.init()
  nothing = call_queue.Callbacks(
    lambda number: False, lambda: False, lambda: False
  )
  return call_queue.Calls(
    simulation,
    state,
    client_states,
    range(1, rounds + 1),
    superstep.Ends(lambda number: number % 2 == 0),
    going=None,
    callbacks=nothing._replace(**requests),
  )


def numbers(queue):
  return [list(call.numbers) for call in queue.in_flight]


def test_two_calls_are_in_flight_and_the_first_are_short(simulation):
  """The duration of a round is unknown before the first call has ended."""
  queue = calls(simulation)
  assert queue.fill()
  assert numbers(queue) == [[1], [2]] and queue.numbers == range(3, 21)
  call = queue.wait()
  assert list(call.numbers) == [1] and int(call.result.num_rounds) == 1
  assert queue.fill() and len(queue.in_flight) == superstep.CALLS_IN_FLIGHT


def test_no_rounds_left_means_no_calls_in_flight(simulation):
  queue, done = calls(simulation, rounds=7), []
  while queue.fill():
    done += [record.round for record in queue.records(queue.wait())]
  assert done == list(range(1, 8)) and not queue.numbers and not queue.over


def test_a_wanted_round_ends_its_call_and_no_call_follows(simulation):
  queue = calls(simulation, needs_state=lambda number: number == 2)
  queue.fill()
  assert numbers(queue) == [[1], [2]]
  list(queue.records(queue.wait()))
  queue.fill()
  assert numbers(queue) == [[2]]  # The next call would take client states.
  (record,) = queue.records(queue.wait())
  assert record.round == 2 and record.client_states is not None
  assert queue.fill() and queue.in_flight[0].numbers[0] == 3


def test_looking_makes_the_next_call_short(simulation):
  look = []
  queue = calls(simulation, state_requested=lambda: bool(look))
  queue.fill()
  queue.wait()
  queue._seconds = 1e-9  # Then a call has as many rounds as possible.
  queue.fill()
  assert numbers(queue) == [[2], [3, 4, 5, 6, 7]]
  queue.wait()
  look.append(True)
  queue.fill()
  assert numbers(queue) == [[3, 4, 5, 6, 7], [8]]


def test_stopping_starts_no_further_call(simulation):
  stop = []
  queue = calls(simulation, should_stop=lambda: bool(stop))
  queue.fill()
  stop.append(True)
  while queue.in_flight:
    if queue.wait() is None:
      break
    queue.fill()
  assert queue.numbers == range(3, 21)


def test_a_record_has_a_state_where_its_call_ends(simulation):
  queue = calls(simulation)
  queue._seconds = 1e-9
  queue.fill()
  records = list(queue.records(queue.wait()))
  assert [record.round for record in records] == [1, 2, 3, 4, 5]
  assert [record.state is None for record in records] == [True] * 4 + [False]
  tested = [record.test_accuracy is not None for record in records]
  assert tested == [False, True, False, True, False]
  assert math.isfinite(records[0].seconds) and records[0].seconds > 0
