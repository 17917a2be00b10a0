"""Who is drawn, who comes how far, and what that costs: by law and by hand."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import traffic
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.availability import Trace
from fedavg_jax.schedule.availability import read_trace
from fedavg_jax.schedule.clock import Clock
from fedavg_jax.schedule.clock import draw_clock
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import twin

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
  """Two of three clients with weights 1, 2, 5: all six orders by hand."""
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
  # Four standard errors of a share.
  error = 4 * np.sqrt(expected.max() * (1 - expected.max()) / number)
  np.testing.assert_allclose(seen / number, expected, atol=error)


def test_a_weight_of_zero_is_never_drawn():
  planner = make(
    [3] * 6, Participation(sampling_weights=np.array([0, 1, 0, 1, 1, 0.0]))
  )
  for t in range(1, 20):
    assert sorted(planner.cohort(t)) == [1, 3, 4]


# Traces.


def test_a_trace_says_who_is_in_reach_and_begins_again():
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
  whole = make(cohort_size=4, lanes=2)(1)
  for t, reports in ((1, {3}), (2, {1, 2})):
    plan = planner(t)
    assert len(set(plan.cohort)) == 4  # Distinct: some train nothing.
    ended = set(plan.cohort[plan.ends[plan.ends >= 0]])
    assert ended == reports
    np.testing.assert_allclose(plan.weight.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(
      plan.share, SIZES[list(reports)].sum() / SIZES.sum(), rtol=1e-6
    )
    for own, other in zip(plan, whole, strict=True):
      assert (own.shape, own.dtype) == (other.shape, other.dtype)


def test_a_round_with_nobody_in_reach_changes_nothing(uneven_examples):
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
  states = [
    rounds.run_states(population, rounds=n, **options)[0] for n in (1, 2, 3, 4)
  ]
  begin = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  rounds.assert_close(states[0].params, begin, 1e-6)
  assert rounds.distance(states[1].params, begin) > 1e-3
  for own, other in zip(
    jax.tree.leaves((states[1].params, states[1].server)),
    jax.tree.leaves((states[2].params, states[2].server)),
    strict=True,
  ):
    np.testing.assert_array_equal(own, other)  # Momentum does not roll on.
  assert rounds.distance(states[3].params, states[2].params) > 1e-3
  assert [int(state.round) for state in states] == [1, 2, 3, 4]


def test_trace_file(tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text('client,first,last\n0,1,10\n 4 ,3,3\n')
  trace = read_trace(path, 5)
  assert trace.client.tolist() == [0, 4]
  assert trace.available(3, 5).tolist() == [True, False, False, False, True]
  assert trace.available(13, 5).tolist() == trace.available(3, 5).tolist()


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('0,1,2\n', 'line 1 must be client,first,last'),
    ('', 'line 1 must be client,first,last'),
    ('client,first,last\n', 'holds no period'),
    ('client,first,last\n5,1,2\n', 'line 2 names client 5; there are 0 to 4'),
    ('client,first,last\n0,1,2\n-1,1,2\n', 'line 3 names client -1'),
    ('client,first,last\n0,1\n', 'line 2 must hold three whole numbers'),
    ('client,first,last\n0,1,x\n', 'line 2 must hold three whole numbers'),
    ('client,first,last\n0,0,2\n', 'line 2 has rounds 0 to 2'),
    ('client,first,last\n0,3,2\n', 'line 2 has rounds 3 to 2'),
    ('client,first,last\n0,1,2\0\xff', 'line 2'),
    ('client,first,last\n0,1,2,3\n', 'line 2 must hold three whole numbers'),
    ('client,first,last\n0,1,2,\n', 'line 2 must hold three whole numbers'),
    ('client,first,last\n0,1_0,20\n', "whole numbers, holds '0,1_0,20'"),
    ('client,first,last\n0,1.0,2\n', "whole numbers, holds '0,1.0,2'"),
    ('client,first,last\n0,1,' + '9' * 5000, 'line 2 must hold three whole'),
    ('client,first,last\n"0,1,2\n0,1,2\n', 'must hold three whole numbers'),
    ('client;first;last\n0;1;2\n', 'line 1 must be client,first,last'),
    ('client,first,last,more\n0,1,2,3\n', 'line 1 must be client,first,last'),
  ],
)
def test_traces_that_are_refused(tmp_path, content, words):
  path = tmp_path / 'trace.csv'
  path.write_bytes(content.encode('latin-1'))
  with pytest.raises(InputError, match='trace.csv') as told:
    read_trace(path, 5)
  assert words in str(told.value) or 'cannot be read' in str(told.value)
  with pytest.raises(InputError, match='cannot be read .No such file'):
    read_trace(tmp_path / 'nowhere.csv', 5)


@pytest.mark.parametrize(
  'content',
  [
    b'client,first,last\r0,1,2\r4,1,3\r',
    b'\xef\xbb\xbfclient,first,last\r\n0,1,2\r\n\r\n4,1,3',
    ' client , first,last\n 0 , 1,\t2 \n,,\n4,1,3\n'.encode('utf-16'),
    b'"client","first","last"\n"0", "1","2" \n+4,1,3\n',
  ],
)
def test_traces_as_spreadsheets_write_them(tmp_path, content):
  (tmp_path / 'trace.csv').write_bytes(content)
  trace = read_trace(tmp_path / 'trace.csv', 5)
  assert trace.client.tolist() == [0, 4]
  assert trace.first.tolist() == [1, 1] and trace.last.tolist() == [2, 3]


def test_digits_of_other_scripts_are_no_numbers_of_a_trace(tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text('client,first,last\n\u0663,1,2\n', encoding='utf-8')
  with pytest.raises(InputError, match='line 2 must hold three whole numbers'):
    read_trace(path, 5)


def test_a_trace_in_the_home_of_nobody():
  with pytest.raises(InputError, match='~nobody-at-all/t.csv: cannot be read'):
    read_trace('~nobody-at-all/t.csv', 5)


# Stragglers.


@pytest.mark.parametrize('fraction', [0.0, 0.4, 1.0])
def test_so_many_stragglers_stop_before_their_end(fraction):
  sizes = [20] * 10
  planner = make(sizes, Participation(straggler_fraction=fraction))
  updates = 3 * 10
  seen = []
  for t in range(1, 200):
    cohort, completed = planner.work(t)
    late = completed < updates
    assert late.sum() == int(fraction * 10)  # Of ten, a whole number.
    assert (completed[~late] == updates).all()
    seen += completed[late].tolist()
    assert len(set(cohort)) == 10
  if seen:  # Uniform over 1 ... 29, within four standard errors.
    assert (min(seen), max(seen)) == (1, 29)
    error = 4 * np.sqrt((29**2 - 1) / 12 / len(seen))
    assert abs(np.mean(seen) - 15) < error


@pytest.mark.parametrize(('cohort', 'fraction'), [(1, 0.9), (3, 0.25)])
def test_so_many_stragglers_on_average_of_small_cohorts(cohort, fraction):
  planner = make(
    [20] * 5,
    Participation(straggler_fraction=fraction),
    cohort_size=cohort,
  )
  late = [(planner.work(t)[1] < 30).sum() for t in range(1, 1001)]
  assert abs(np.mean(late) - fraction * cohort) < 4 * np.std(late) / 1000**0.5
  assert set(late) <= {int(fraction * cohort), int(fraction * cohort) + 1}


def test_a_straggler_with_one_update_has_done_none():
  planner = make(
    participation=Participation(straggler_fraction=1.0), epochs=1, batch_size=0
  )
  assert planner.work(1)[1].tolist() == [0] * 5
  assert (planner(1).ends == -1).all()


def test_stragglers_are_kept_or_dropped_as_asked():
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


@pytest.mark.parametrize('stragglers', ['keep', 'drop'])
@pytest.mark.parametrize('batch_size', rest_slow(2, [3, 0, 1]))
@pytest.mark.parametrize('micro_batch', rest_slow(1, [2, 0]))
def test_numpy_twin_with_stragglers(
  uneven_examples, stragglers, batch_size, micro_batch
):
  """Three rounds; every client of the twin stops where the plan says."""
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


def test_scaffold_counts_the_updates_that_were_done(uneven_examples):
  """Option II divides by eta times the updates: those of the partial work."""
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
      # c_i - c + (x - y_i) / (K eta), with c_i = c = 0; nothing of nobody.
      control = (params[name] - local[name]) / (max(done, 1) * eta)
      np.testing.assert_allclose(kept[name][k], control, rtol=0, atol=2e-5)


# The clock.


def walk(planner, t):
  """Seconds and minibatches of every client, one minibatch after another."""
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
    account = planner.account(t)
    reports = completed > 0
    assert account.drawn == 5 and account.reported == reports.sum()
    assert account.bytes_down == 5 * 700
    assert account.bytes_up == reports.sum() * 300
    # The server waits for all the work of the slowest, or until the deadline.
    slowest = max(whole for *_, whole in found.values())
    assert account.seconds == pytest.approx(
      min(slowest, deadline) if deadline else slowest
    )
    assert not late or account.seconds == deadline
  assert bool(late_ones) == (0 < deadline < 50)


def test_a_deadline_that_just_suffices_makes_nobody_late():
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
def test_stragglers_by_chance_make_no_round_shorter(stragglers):
  clock = draw_clock(5, examples_per_second=2.0, seed=0)
  alone = make(participation=Participation(clock=clock)).account(1)
  late = make(
    participation=Participation(
      clock=clock, straggler_fraction=1.0, stragglers=stragglers
    )
  ).account(1)
  assert alone.seconds == late.seconds == 3 * 9 / 2


def test_speeds_have_the_median_and_the_spread_that_are_told():
  clock = draw_clock(
    4001,
    examples_per_second=100.0,
    speed_spread=0.7,
    megabits_down=8.0,
    megabits_up=2.0,
    bandwidth_spread=0.3,
    seed=0,
  )
  for speeds, median, spread in (
    (clock.examples_per_second, 100.0, 0.7),
    (clock.bytes_down_per_second, 1e6, 0.3),
    (clock.bytes_up_per_second, 2.5e5, 0.3),
  ):
    logs = np.log(speeds)
    error = 4 * 1.25 * spread / np.sqrt(4001)
    np.testing.assert_allclose(np.median(logs), np.log(median), atol=error)
    np.testing.assert_allclose(logs.std(), spread, rtol=0.05)
  np.testing.assert_allclose(
    clock.bytes_down_per_second, 4 * clock.bytes_up_per_second
  )
  alike = draw_clock(9, examples_per_second=5.0, seed=0)
  assert set(alike.examples_per_second) == {5.0}
  assert np.isinf(alike.bytes_up_per_second).all()


def test_without_a_clock_there_is_no_time():
  account = make(bytes_down=10, bytes_up=4).account(1)
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
    (fa.fedavg(sgd, momentum), model, model),  # The server's own business.
    (fa.fedprox(0.1, sgd, momentum), model, model),
    (fa.scaffold(0.1, 1.0), 2 * model, 2 * model),
    (fa.clip_delta(fa.fedavg(sgd, momentum), 1.0), model, model),
  ):
    assert traffic(algorithm, params) == (down, up)
  plain = fa.fedavg(sgd, momentum)
  half = plain._replace(
    message=lambda ended: (
      jax.tree.map(lambda d: d.astype('bfloat16'), ended.delta),
      ended.client,
    )
  )
  assert traffic(half, params) == (model, model // 2)


# What is refused.


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
      'clients 5 to 5; there are 0 to 4',
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
