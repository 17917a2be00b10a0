"""Sampling, partial work and their costs have their laws."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm_checks import traffic
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.availability import Trace
from fedavg_jax.schedule.clock import Clock
from fedavg_jax.schedule.clock import draw_clock
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import twin
from tests.testing.plans import shapes

SIZES = np.array([1, 7, 4, 9, 2])


def make(sizes=SIZES, participation=None, **kwargs):
  defaults = {
    'cohort_size': len(sizes),
    'epochs': 3,
    'batch_size': 2,
    'seed': 0,
    'participation': participation or Participation(),
  }
  return Planner(num_examples=np.asarray(sizes), **(defaults | kwargs))


def trace_of(*periods):
  client, first, last = np.array(periods).T
  return Trace(client=client, first=first, last=last)


# Sampling.


def test_weighted_sampling_draws_in_proportion_and_without_replacement():
  """All six orders of two of three clients have their probabilities."""
  weights = np.array([1.0, 2.0, 5.0])
  planner = make(
    [3, 3, 3],
    Participation(sampling_weights=weights),
    cohort_size=2,
  )
  number = 8000
  seen = np.zeros((3, 3))
  for t in range(number):
    first, second = planner.cohort(t)
    seen[first, second] += 1
  assert np.diag(seen).sum() == 0
  share = weights / weights.sum()
  expected = share[:, None] * share / (1 - share[:, None])
  np.fill_diagonal(expected, 0)
  np.testing.assert_allclose(expected.sum(), 1)
  # Four standard errors of a fraction.
  error = 4 * np.sqrt(expected.max() * (1 - expected.max()) / number)
  np.testing.assert_allclose(seen / number, expected, atol=error)


def test_a_weight_of_zero_is_never_drawn():
  planner = make(
    [3] * 6, Participation(sampling_weights=np.array([0, 1, 0, 1, 1, 0.0]))
  )
  for t in range(1, 20):
    assert sorted(planner.cohort(t)) == [1, 3, 4]


# Traces.


def test_a_trace_says_who_is_available_and_repeats():
  trace = trace_of((0, 1, 2), (1, 2, 3), (4, 4, 4), (0, 4, 4))
  planner = make(participation=Participation(trace=trace))
  reach = {1: {0}, 2: {0, 1}, 3: {1}, 4: {0, 4}}
  for t in range(1, 13):
    assert set(planner.cohort(t)) == reach[(t - 1) % 4 + 1]


def test_a_cohort_of_fewer_clients_has_a_plan_of_the_same_shapes():
  trace = trace_of((3, 1, 1), (2, 2, 2), (1, 2, 2))
  planner = make(
    participation=Participation(trace=trace), cohort_size=4, lanes=2
  )
  full = make(cohort_size=4, lanes=2)(1)
  for t, reports in ((1, {3}), (2, {1, 2})):
    plan = planner(t)
    assert len(set(plan.cohort)) == 4  # Distinct: some of them train nothing.
    ended = set(plan.cohort[plan.ends[plan.ends >= 0]])
    assert ended == reports
    np.testing.assert_allclose(plan.weight.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(
      plan.share, SIZES[list(reports)].sum() / SIZES.sum(), rtol=1e-6
    )
    assert shapes(plan) == shapes(full)


def test_a_round_without_available_clients_changes_nothing(uneven_examples):
  x, y, parts = uneven_examples
  population = fa.build_clients(fa.Examples(x, y), parts)
  trace = trace_of((0, 2, 2), (1, 2, 2), (2, 4, 4))
  options = {
    'participation': Participation(trace=trace),
    'algorithm': rounds.fedavg(server=optax.sgd(1.0, momentum=0.9)),
    'cohort_size': 2,
    'epochs': 1,
    'batch_size': 3,
  }
  round_fn, state, data, planner = rounds.make_engine(population, **options)
  states = []
  for number in (1, 2, 3, 4):
    *state, _ = round_fn(*state, data, planner(number))
    states.append(jax.device_get(state[0]))
  begin = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  rounds.assert_close(states[0].params, begin, 1e-6)
  assert rounds.distance(states[1].params, begin) > 1e-3
  for own, other in zip(
    jax.tree.leaves((states[1].params, states[1].server)),
    jax.tree.leaves((states[2].params, states[2].server)),
    strict=True,
  ):
    np.testing.assert_array_equal(own, other)  # Momentum is not applied.
  assert rounds.distance(states[3].params, states[2].params) > 1e-3
  assert [int(state.round) for state in states] == [1, 2, 3, 4]


# Stragglers.


@pytest.mark.parametrize('fraction', [0.0, 0.4, 1.0])
def test_stragglers_stop_before_their_end(fraction):
  sizes = [20] * 10
  planner = make(sizes, Participation(straggler_fraction=fraction))
  updates = 3 * 10
  seen = []
  for t in range(1, 200):
    cohort, completed = planner.work(t)
    late = completed < updates
    assert late.sum() == int(fraction * 10)  # An integer for ten clients.
    assert (completed[~late] == updates).all()
    seen += completed[late].tolist()
    assert len(set(cohort)) == 10
  if seen:  # Uniform over 1 ... 29, within four standard errors.
    assert (min(seen), max(seen)) == (1, 29)
    error = 4 * np.sqrt((29**2 - 1) / 12 / len(seen))
    assert abs(np.mean(seen) - 15) < error


@pytest.mark.parametrize(('cohort', 'fraction'), [(1, 0.9), (3, 0.25)])
def test_stragglers_of_small_cohorts_have_their_mean_number(cohort, fraction):
  planner = make(
    [20] * 5,
    Participation(straggler_fraction=fraction),
    cohort_size=cohort,
  )
  late = [(planner.work(t)[1] < 30).sum() for t in range(1, 1001)]
  assert abs(np.mean(late) - fraction * cohort) < 4 * np.std(late) / 1000**0.5
  assert set(late) <= {int(fraction * cohort), int(fraction * cohort) + 1}


def test_a_straggler_with_one_update_has_completed_none():
  planner = make(
    participation=Participation(straggler_fraction=1.0), epochs=1, batch_size=0
  )
  assert planner.work(1)[1].tolist() == [0] * 5
  assert (planner(1).ends == -1).all()


def test_partial_work_of_stragglers_is_used_or_dropped():
  keep = make(participation=Participation(straggler_fraction=0.6))
  drop = make(
    participation=Participation(straggler_fraction=0.6, stragglers='drop')
  )
  for t in range(1, 10):
    cohort, some = keep.work(t)
    same, none = drop.work(t)
    np.testing.assert_array_equal(cohort, same)
    everything = 3 * -(-SIZES[cohort] // 2)
    np.testing.assert_array_equal(
      none, np.where(some < everything, 0, everything)
    )
    assert (some < everything).sum() == 3
    plan = drop(t)
    np.testing.assert_allclose(
      sorted(plan.weight[plan.ends >= 0]),
      sorted(SIZES[cohort][none > 0] / SIZES[cohort][none > 0].sum()),
      rtol=1e-6,
    )


def test_lanes_do_not_change_who_is_late():
  options = {'participation': Participation(straggler_fraction=0.5)}
  one, four = make(**options), make(lanes=4, num_devices=2, **options)
  for t in range(1, 5):
    for own, other in zip(one.work(t), four.work(t), strict=True):
      np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize(
  ('stragglers', 'batch_size', 'micro_batch'),
  rest_slow(
    2,
    [
      *(('keep', 3, 2), ('drop', 0, 2), ('drop', 3, 0), ('keep', 0, 0)),
      *(('keep', 1, 2), ('drop', 1, 0)),
    ],
    several=True,
  ),
)
def test_numpy_twin_with_stragglers(
  uneven_examples, stragglers, batch_size, micro_batch
):
  """Every client of the twin stops where the plan says, for three rounds."""
  x, y, parts = uneven_examples
  population = fa.build_clients(fa.Examples(x, y), parts)
  participation = Participation(straggler_fraction=0.5, stragglers=stragglers)
  options = {
    **{'cohort_size': 4, 'epochs': 3, 'batch_size': batch_size},
    'participation': participation,
  }
  got, _ = rounds.run(
    population,
    rounds=3,
    lanes=2,
    num_devices=2,
    micro_batch=micro_batch,
    **options,
  )
  planner = Planner(num_examples=population.num_examples, seed=3, **options)
  partial = 0
  for t in (1, 2, 3):
    partial += sum(
      0 < done < len(twin.batches_of(planner, t, k))
      for k, done in zip(*planner.work(t), strict=True)
    )
  assert (partial > 0) == (stragglers == 'keep')
  params = twin.rounds_of_work(
    planner,
    twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES),
    *(x.reshape(len(x), -1) / 255.0, y, parts),
    rounds=3,
    learning_rate=rounds.LEARNING_RATE,
  )
  rounds.assert_close(got, params, 2e-6)


def test_scaffold_divides_by_the_completed_updates(uneven_examples):
  """Option II must divide by eta times the updates of the partial work."""
  x, y, parts = uneven_examples
  population = fa.build_clients(fa.Examples(x, y), parts)
  eta = rounds.LEARNING_RATE
  options = {
    **{'cohort_size': 5, 'epochs': 2, 'batch_size': 3},
    'participation': Participation(straggler_fraction=0.8),
  }
  _, kept, _ = rounds.run_states(
    population, algorithm=algorithms.scaffold(eta, 1.0), **options
  )
  planner = Planner(num_examples=population.num_examples, seed=3, **options)
  cohort, completed = planner.work(1)
  params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  flat = x.reshape(len(x), -1) / 255.0
  for k, done in zip(cohort, completed, strict=True):
    local, _ = twin.client_update(
      params,
      flat[parts[k]],
      y[parts[k]],
      twin.batches_of(planner, 1, k)[:done],
      eta,
    )
    for name in params:
      # c_i - c + (x - y_i) / (K eta), with c_i = c = 0; 0 without updates.
      control = (params[name] - local[name]) / (max(done, 1) * eta)
      np.testing.assert_allclose(kept[name][k], control, rtol=0, atol=2e-5)


# The clock.


def walk(planner, t):
  """Computes seconds and minibatches of every client, batch by batch."""
  clock = planner.participation.clock
  found = {}
  for k in planner.cohort(t):
    under_way = (
      planner.bytes_down / clock.bytes_down_per_second[k]
      + planner.bytes_up / clock.bytes_up_per_second[k]
    )
    seconds, done, late = under_way, 0, False
    batches = twin.batches_of(planner, t, k)
    for batch in batches:
      seconds += len(batch) / clock.examples_per_second[k]
      late |= bool(clock.deadline) and seconds > clock.deadline
      done += not late
    found[int(k)] = (done, len(batches), seconds)
  return found


@pytest.mark.parametrize('deadline', [0.0, 0.05, 0.4, 0.7, 50.0])
@pytest.mark.parametrize('stragglers', ['keep', 'drop'])
@pytest.mark.parametrize('batch_size', [2, 0])
def test_clock_minibatch_by_minibatch(deadline, stragglers, batch_size):
  clock = draw_clock(
    5,
    examples_per_second=20.0,
    speed_spread=1.0,
    megabits_down=0.08,
    megabits_up=0.016,
    bandwidth_spread=0.5,
    deadline=deadline,
    seed=1,
  )
  planner = make(
    participation=Participation(stragglers=stragglers, clock=clock),
    batch_size=batch_size,
    bytes_down=700,
    bytes_up=300,
  )
  late_ones = 0
  for t in (1, 2, 3):
    found = walk(planner, t)
    cohort, completed = planner.work(t)
    late = False
    for k, done in zip(cohort, completed, strict=True):
      expected, everything, _ = found[k]
      late |= expected < everything
      if stragglers == 'drop' and expected < everything:
        expected = 0
      assert done == expected
    late_ones += late
    account = planner.cost(t)
    reports = completed > 0
    assert account.drawn == 5 and account.reported == reports.sum()
    assert account.bytes_down == 5 * 700
    assert account.bytes_up == reports.sum() * 300
    # The server waits for all the slowest client's work, or until the deadline.
    slowest = max(work for *_, work in found.values())
    assert account.seconds == pytest.approx(
      min(slowest, deadline) if deadline else slowest
    )
    assert not late or account.seconds == deadline
  assert bool(late_ones) == (0 < deadline < 50)


def test_a_deadline_that_just_suffices_makes_no_client_late():
  rng = np.random.default_rng(0)
  for _ in range(300):
    size, speed = int(rng.integers(1, 500)), float(rng.uniform(0.1, 99))
    clock = Clock(
      examples_per_second=np.array([speed]),
      bytes_down_per_second=np.array([np.inf]),
      bytes_up_per_second=np.array([np.inf]),
      deadline=3 * size / speed,
    )
    planner = make([size], Participation(clock=clock), batch_size=7)
    assert planner.work(1)[1] == 3 * -(-size // 7)


@pytest.mark.parametrize('stragglers', ['keep', 'drop'])
def test_random_stragglers_make_no_round_shorter(stragglers):
  clock = draw_clock(5, examples_per_second=2.0, seed=0)
  alone = make(participation=Participation(clock=clock)).cost(1)
  late = make(
    participation=Participation(
      clock=clock, straggler_fraction=1.0, stragglers=stragglers
    )
  ).cost(1)
  assert alone.seconds == late.seconds == 3 * 9 / 2


def test_without_a_clock_there_are_no_seconds():
  account = make(bytes_down=10, bytes_up=4).cost(1)
  assert account == (5, 5, 50, 20, None)


# Bytes.


def test_traffic_of_the_algorithms():
  params = {
    'w': jax.ShapeDtypeStruct((3, 4), np.float32),
    'b': jax.ShapeDtypeStruct((4,), np.float32),
  }
  model = 4 * (12 + 4)
  sgd = optax.sgd(0.1)
  momentum = optax.sgd(1.0, momentum=0.9)
  for algorithm, down, up in (
    (fa.fedavg(sgd, optax.sgd(1.0)), model, model),
    (fa.fedavg(sgd, momentum), model, model),  # Server state is not sent.
    (fa.fedprox(0.1, sgd, momentum), model, model),
    (fa.scaffold(0.1, 1.0), 2 * model, 2 * model),
    (fa.clip_delta(fa.fedavg(sgd, momentum), 1.0), model, model),
  ):
    assert traffic(algorithm, params, 'everybody') == (down, up, False)
  plain = fa.fedavg(sgd, momentum)
  half = plain._replace(
    client_finish=lambda result: fa.ClientOutput(
      jax.tree.map(lambda d: d.astype('bfloat16'), result.delta)
    )
  )
  assert traffic(half, params, 'everybody') == (model, model // 2, False)
  coded = plain._replace(num_bytes=lambda message: 7)
  assert traffic(coded, params, 'everybody') == (model, 7, False)
  coded = plain._replace(num_bytes=lambda message: (message['b'] > 0).sum())
  assert traffic(coded, params, 'everybody') == (model, model, True)


# Refusals.


@pytest.mark.parametrize(
  ('participation', 'message'),
  [
    (Participation(unavailable_fraction=1.0), 'unavailable_fraction = 1.0'),
    (Participation(straggler_fraction=1.1), 'straggler_fraction = 1.1'),
    (Participation(stragglers='wait'), "stragglers = 'wait': must be one of"),
    (Participation(sampling_weights=np.ones(4)), 'must be 5 finite numbers'),
    (Participation(sampling_weights=np.zeros(5)), 'not all 0'),
    (
      Participation(sampling_weights=np.array([1, 1, 1, 1, np.nan])),
      'finite numbers',
    ),
    (
      Participation(trace=trace_of((5, 1, 1))),
      r'clients 5 to 5; must be in \[0, 4\]',
    ),
    (
      Participation(
        clock=Clock(
          examples_per_second=np.ones(4),
          bytes_down_per_second=np.ones(5),
          bytes_up_per_second=np.ones(5),
        )
      ),
      'clock.examples_per_second: must be 5 numbers above 0',
    ),
  ],
)
def test_refusals(participation, message):
  with pytest.raises(InputError, match=message):
    make(participation=participation)
