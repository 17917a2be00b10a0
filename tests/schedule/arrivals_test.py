"""The arrivals of asynchronous clients follow from the durations alone."""

import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.schedule import arrivals

NUMBER, CONCURRENCY, BUFFER, MOST, ROUNDS = 9, 5, 3, 2, 40


def durations(rng):
  return np.round(rng.lognormal(sigma=1.5, size=NUMBER), 2)


def make(seconds, **changes):
  kwargs = {
    'concurrency': CONCURRENCY,
    'buffer': BUFFER,
    'most_staleness': MOST,
    'seed': 0,
  }
  return arrivals.Arrivals(seconds, **(kwargs | changes))


def test_each_update_took_its_clients_time():
  """From the arrivals alone: every start was in the round that is stated."""
  seconds = durations(np.random.default_rng(1))
  simulated = make(seconds)
  rounds = [simulated.of_round(t) for t in range(1, ROUNDS + 1)]
  times = np.array([0.0] + [r.time for r in rounds])
  assert (np.diff(times) >= 0).all()
  for t, now in enumerate(rounds, 1):
    assert len(set(now.clients.tolist())) == BUFFER
    assert now.staleness.min() >= 0 and now.staleness.max() <= MOST
    for client, stale in zip(now.clients, now.staleness, strict=True):
      version = t - 1 - stale
      # It arrived after the round before, so it started at most this early.
      latest = times[t] - seconds[client]
      earliest = times[t - 1] - seconds[client]
      begins = times[version]
      ends = times[version + 1] if version + 1 < len(times) else np.inf
      assert begins <= latest + 1e-9 and earliest <= ends + 1e-9
  # Some updates were stale, and some too stale.
  assert max(r.staleness.max() for r in rounds) == MOST
  finished = sum(r.finished for r in rounds)
  assert finished > BUFFER * ROUNDS
  started = sum(r.started for r in rounds)
  assert finished <= started <= finished + CONCURRENCY + BUFFER


def test_a_slow_client_never_trains_twice_at_the_same_time():
  seconds = np.array([100.0] + [1.0] * 8)
  simulated = make(seconds, most_staleness=1000)
  times = [
    simulated.of_round(t).time
    for t in range(1, 900)
    if 0 in simulated.of_round(t).clients
  ]
  assert times and (np.diff(times) >= 100).all()


def test_rounds_do_not_depend_on_the_order_of_requests():
  seconds = durations(np.random.default_rng(2))
  forward, backward = make(seconds), make(seconds)
  late = backward.of_round(20)
  assert backward.of_round(3).time == forward.of_round(3).time
  np.testing.assert_array_equal(forward.of_round(20).clients, late.clients)
  other = make(seconds, seed=1).of_round(20)
  assert other.clients.tolist() != late.clients.tolist()


def test_equal_durations_and_a_full_buffer_are_synchronous():
  simulated = make(np.full(NUMBER, 2.0), buffer=CONCURRENCY)
  for t in range(1, 10):
    now = simulated.of_round(t)
    assert now.time == 2.0 * t
    assert not now.staleness.any()
    # The next cohort starts when the last one arrives.
    assert now.started == (CONCURRENCY if t > 1 else CONCURRENCY)


def test_all_clients_may_train():
  """With C = 1, a client in the buffer starts again when the round ends."""
  simulated = make(durations(np.random.default_rng(3)), concurrency=NUMBER)
  for t in range(1, ROUNDS):
    assert len(set(simulated.of_round(t).clients.tolist())) == BUFFER


def test_clients_without_examples_are_never_drawn():
  seconds = np.array([1.0, np.inf, 2.0, 3.0])
  simulated = make(seconds, concurrency=3, buffer=2)
  drawn = {int(k) for t in range(1, 30) for k in simulated.of_round(t).clients}
  assert drawn == {0, 2, 3}


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'buffer': 6}, r'buffer = 6: must be in \[1, 5\]'),
    ({'concurrency': 10}, 'lets 10 clients .* only 9 have examples'),
  ],
)
def test_bad_sizes(changes, words):
  with pytest.raises(fa.InputError, match=words):
    make(np.ones(NUMBER), **changes)
