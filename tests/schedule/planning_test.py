"""Rules of sampling, order, batches and packing are tested without JAX."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedavg_jax.core.choices import SHUFFLES
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule import planning
from fedavg_jax.schedule.draws import num_unavailable
from fedavg_jax.schedule.packing import pack
from fedavg_jax.schedule.packing import steps_by_width
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.plan import Plan
from fedavg_jax.schedule.planning import Planner
from fedavg_jax.schedule.sampling import cohort_size
from tests.testing.plans import shapes


@pytest.mark.parametrize(
  ('clients', 'fraction', 'expected'),
  [
    (100, 0.0, 1),
    (100, 0.1, 10),
    (100, 0.29, 29),  # 0.29 * 100 < 29 in floating point.
    (100, 1.0, 100),
    (1146, 0.1, 114),  # 114.6 is rounded down.
    (3, 0.1, 1),
    (1, 1.0, 1),
  ],
)
def test_cohort_size(clients, fraction, expected):
  assert cohort_size(clients, fraction) == expected


def test_num_unavailable():
  assert num_unavailable(100, 0.29) == 29
  assert num_unavailable(10, 0.05) == 0


def make(sizes, **kwargs):
  defaults = {
    'cohort_size': len(sizes),
    'epochs': 1,
    'batch_size': 2,
    'seed': 0,
  }
  return Planner(num_examples=np.array(sizes), **(defaults | kwargs))


def test_cohorts_have_no_duplicates_and_differ():
  planner = make([3] * 50, cohort_size=20)
  cohorts = [planner.cohort(t) for t in range(1, 30)]
  for cohort in cohorts:
    assert len(set(cohort)) == 20
    assert set(cohort) <= set(range(50))
  assert len({tuple(cohort) for cohort in cohorts}) == len(cohorts)
  other = make([3] * 50, cohort_size=20, seed=1)
  assert any(tuple(other.cohort(t)) != tuple(cohorts[t - 1]) for t in (1, 2))


def test_cohorts_are_uniform():
  """All 45 pairs of clients are equally frequent, by a chi-square test.

  2,000 cohorts of 3 in 10 clients have 6,000 pairs, 133.3 of each; the
  statistic has about 44 degrees of freedom and exceeds 90 once in 20,000 seeds.

  """
  planner = make([1] * 10, cohort_size=3)
  met = np.zeros((10, 10))
  for t in range(2000):
    cohort = planner.cohort(t)
    met[np.ix_(cohort, cohort)] += 1
  pairs = met[np.triu_indices(10, 1)]
  expected = 2000 * 3 / 45
  assert ((pairs - expected) ** 2 / expected).sum() < 90
  assert np.diag(met).sum() == 6000


def test_unavailable_clients_are_not_drawn():
  """Without unavailable clients, the same round has other clients."""
  planner = make(
    [1] * 10,
    cohort_size=4,
    participation=Participation(unavailable_fraction=0.6),
  )
  everyone = make([1] * 10, cohort_size=10)
  for t in range(20):  # The first six of the round's order are unavailable.
    assert set(planner.cohort(t)).isdisjoint(everyone.cohort(t)[:6])
  seen = set()
  for t in range(100):
    cohort = planner.cohort(t)
    assert len(set(cohort)) == 4
    seen |= set(cohort)
  assert seen == set(range(10))  # Different ones in every round.


def test_shuffle():
  by_epoch = make([8], epochs=3).epoch_orders(1, 0)
  by_round = make([8], epochs=3, shuffle='round').epoch_orders(1, 0)
  assert (by_epoch[0] != by_epoch[1]).any()
  assert (by_round == by_round[0]).all()
  np.testing.assert_array_equal(by_epoch[0], by_round[0])
  for orders in (by_epoch, by_round):
    np.testing.assert_array_equal(np.sort(orders, axis=1)[1], np.arange(8))
  assert (make([8]).epoch_orders(1, 0) != make([8]).epoch_orders(2, 0)).any()


def read_back(planner, plan):
  """Reads from the arrays what each client trains on: {client: minibatches}."""
  read = {}
  per_device = planner.lanes // planner.num_devices
  for lane in range(planner.lanes):
    device = lane // per_device
    events = plan.until[device, -1]
    times = [0, *plan.event[device, :events]]
    assert (np.diff(times) > 0).all()
    now, t = plan.begins[lane, 0], 0
    for s in range(events):
      i = plan.ends[lane, s]
      if i < 0:
        assert plan.begins[lane, s + 1] < 0
        assert plan.weight[lane, s] == 0
        continue
      assert i == now  # The lane's previous event started client i.
      now = plan.begins[lane, s + 1]
      batches, parts = [], []
      for step in range(t, times[s + 1]):
        count, batch = plan.count[lane, step], plan.batch[lane, step]
        assert 0 < count <= planner.step_examples
        parts.append(plan.order[plan.start[lane, step] :][:count])
        if plan.completes[lane, step]:  # The last part of a minibatch.
          batches.append(np.concatenate(parts))
          assert len(batches[-1]) == batch
          parts = []
      assert not parts
      read[int(plan.cohort[i])] = batches
      t = times[s + 1]
    assert now < 0
    assert (plan.count[lane, t:] == 0).all()  # Idle to the end.
    assert (plan.ends[lane, events:] == -1).all()
    # No client is lost when the device continues with fewer lanes.
    for w, fewer in enumerate(planner.widths[1:]):
      if lane % per_device >= fewer:
        done = plan.until[device, w]
        assert t <= (plan.event[device, done - 1] if done else 0)
  return read


def stepped(plan):
  """Returns the steps of each device at each number of lanes, [D, W]."""
  ends = []
  for event, until in zip(plan.event, plan.until, strict=True):
    assert (np.diff(until, prepend=0) >= 0).all()
    ends.append(np.concatenate([[0], event])[until])
  return np.diff(ends, axis=1, prepend=0)


def layout(planner):
  return planner.num_devices, planner.widths


def weights(plan):
  """Returns {client: its weight in the mean}."""
  ended = plan.ends >= 0
  assert plan.weight[~ended].sum() == 0
  clients = plan.cohort[plan.ends[ended]]
  return dict(zip(clients.tolist(), plan.weight[ended].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=14),
  epochs=st.integers(1, 3),
  batch_size=st.integers(0, 9),
  micro_batch=st.integers(0, 5),
  widths=st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True),
  num_devices=st.integers(1, 3),
  shuffle=st.sampled_from(SHUFFLES),
  data=st.data(),
)
def test_a_plan_reads_the_right_examples(
  sizes,
  epochs,
  batch_size,
  micro_batch,
  widths,
  num_devices,
  shuffle,
  data,
):
  planner = make(
    sizes,
    cohort_size=data.draw(st.integers(1, len(sizes))),
    epochs=epochs,
    batch_size=batch_size,
    micro_batch=micro_batch,
    shuffle=shuffle,
    lanes=max(widths) * num_devices,
    num_devices=num_devices,
    widths=tuple(sorted(widths, reverse=True)),
  )
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  same = shapes(planner(1))
  for t in (1, 2):
    plan = planner(t)
    assert shapes(plan) == same
    read = read_back(planner, plan)
    cohort = planner.cohort(t)
    assert sorted(read) == sorted(cohort)
    padded = planner.padded_batches(t, cohort)
    for row, k in enumerate(cohort):
      wanted = [b[b >= 0] + offsets[k] for b in padded[row]]
      wanted = [b for b in wanted if len(b)]
      assert len(read[k]) == len(wanted)
      for got, expected in zip(read[k], wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
      # Every example exactly E times; only an epoch's last batch is short.
      times = np.bincount(np.concatenate(read[k]) - offsets[k])
      assert (times == epochs).all() and len(times) == sizes[k]
    total = sum(sizes[k] for k in cohort)
    assert weights(plan) == pytest.approx(
      {int(k): sizes[k] / total for k in cohort}, rel=1e-6
    )
    assert plan.share == pytest.approx(total / sum(sizes), rel=1e-6)
    # A minibatch has nearly equal parts, as few as possible.
    if planner.accumulates:
      assert planner.step_examples <= micro_batch
      assert -(-planner.batch_examples // planner.step_examples) == -(
        -planner.batch_examples // micro_batch
      )
    np.testing.assert_array_equal(
      steps_by_width(planner.steps(np.array(sizes)[cohort]), *layout(planner)),
      stepped(plan),
    )


@settings(max_examples=60, deadline=None)
@given(
  steps=st.lists(st.integers(0, 40), min_size=1, max_size=30),
  lanes=st.integers(1, 8),
)
def test_packing(steps, lanes):
  steps = np.array(steps)
  packed = pack(steps, lanes)
  assert sorted(sum(packed, [])) == sorted(np.flatnonzero(steps))
  work = [steps[mine].sum() for mine in packed]
  assert max(work) <= -(-(steps.sum() + (lanes - 1) * steps.max()) // lanes)
  assert max(work) <= max(longest_first(steps, lanes))
  for mine, load in zip(packed, work, strict=True):
    assert list(steps[mine]) == sorted(steps[mine], reverse=True)
    # No lane is idle while a client waits in another.
    if len(mine) > 1:
      assert load - steps[mine[-1]] <= min(work)


def longest_first(steps, lanes):
  """Returns the loads of Graham's rule, which packing must never exceed."""
  loads = [0] * lanes
  for n in sorted(steps, reverse=True):
    loads[loads.index(min(loads))] += n
  return loads


@pytest.mark.parametrize('lanes', [2, 4, 8])
@pytest.mark.parametrize('spread', [0.1, 0.5, 1.0])
def test_makespan_is_within_a_hundredth_of_its_bound(lanes, spread):
  """Sizes are realistic; five or more clients per lane, mean of 50 cohorts."""
  rng = np.random.default_rng(0)
  sizes = 10 + rng.lognormal(5, spread, 2000).astype(int)
  planner = make(sizes, cohort_size=6 * lanes, batch_size=1, lanes=lanes)
  ratios = []
  for t in range(1, 51):
    steps = planner.steps(planner.num_examples[planner.cohort(t)])
    bound = max(steps.max(), steps.sum() / lanes)
    makespan = max(steps[mine].sum() for mine in pack(steps, lanes))
    ratios.append(makespan / bound)
  assert 1 <= np.mean(ratios) < 1.01


def test_continuing_with_fewer_lanes_wastes_less():
  """A long client and short ones leave eight lanes idle until its end."""
  sizes = [100] + [10] * 16
  wide = make(sizes, batch_size=1, lanes=9)
  narrow = make(sizes, batch_size=1, lanes=9, widths=(9, 1))
  for planner, executed in ((wide, 9 * 100), (narrow, 9 * 20 + 80)):
    steps = steps_by_width(planner.steps(np.array(sizes)), *layout(planner))
    assert (steps * planner.widths).sum() == executed
  assert narrow(1).until.tolist() == [[2, 3]]


def test_uniform_weights_are_zero_without_examples():
  planner = make([4, 0, 1, 7], weighting='uniform')
  plan = planner(1)
  assert weights(plan) == pytest.approx({0: 1 / 3, 2: 1 / 3, 3: 1 / 3})
  assert plan.share == 1
  half = make([4, 2, 1, 7], weighting='uniform', cohort_size=2)(1)
  assert half.share == pytest.approx(0.5)


def test_a_plan_depends_on_seed_and_round_alone():
  sizes = [5, 1, 9, 4, 7]
  first, again = make(sizes)(3), make(sizes)(3)
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  wide = make(sizes, lanes=4, num_devices=2)
  narrow = make(sizes)
  np.testing.assert_array_equal(wide.cohort(3), narrow.cohort(3))
  for k, batches in read_back(wide, wide(3)).items():
    for a, b in zip(batches, read_back(narrow, first)[k], strict=True):
      np.testing.assert_array_equal(a, b)


def test_padding_is_bounded_by_the_longest_lane():
  planner = make([4, 4, 4, 4], lanes=2, num_devices=1)
  assert planner(1).start.shape == (2, 5)  # 4 steps each; the bound allows 5.


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'lanes': 3, 'num_devices': 2}, 'lanes = 3.*num_devices = 2'),
    ({'lanes': 0}, 'lanes = 0'),
    ({'shuffle': 'no'}, "shuffle = 'no'"),
    ({'cohort_size': 6}, r'cohort_size = 6: must be in \[1, 5\]'),
    ({'cohort_size': 0}, 'cohort_size = 0'),
    (
      {'participation': Participation(unavailable_fraction=0.6)},
      r'cohort_size = 5: must be in \[1, 2\]',
    ),
    (
      {'participation': Participation(unavailable_fraction=-0.1)},
      'unavailable_fraction = -0.1',
    ),
    ({'epochs': 0}, 'epochs = 0'),
    ({'epochs': 10**9}, 'epochs = 1000000000.*2'),
    ({'batch_size': -3}, 'batch_size = -3'),
    ({'lanes': 4, 'widths': (3, 1)}, r'widths = \(3, 1\)'),
    ({'lanes': 4, 'widths': (4, 4)}, r'widths = \(4, 4\)'),
    ({'micro_batch': -1}, 'micro_batch = -1'),
    ({'weighting': 'size'}, "weighting = 'size'"),
  ],
)
def test_bad_layouts_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    make([5, 1, 9, 4, 7], **changes)


def test_a_population_without_examples_is_refused():
  with pytest.raises(
    InputError, match='num_examples: are all 0; a client must'
  ):
    make([0, 0])


@pytest.mark.parametrize('fraction', [-0.1, 1.1, float('nan')])
def test_a_fraction_outside_its_range_is_refused(fraction):
  with pytest.raises(InputError, match='client_fraction'):
    cohort_size(10, fraction)


def test_batches_are_no_larger_than_the_largest_client():
  """A batch size of 10**6, which some use for infinity, costs the same."""
  huge, infinite = make([3, 7], batch_size=10**6), make([3, 7], batch_size=0)
  assert huge.step_examples == infinite.step_examples == 7
  for a, b in zip(huge(1), infinite(1), strict=True):
    np.testing.assert_array_equal(a, b)


def test_rounded_shapes_add_only_what_is_never_read(monkeypatch):
  """Steps and events, which the device follows, are those of exact shapes."""
  arguments = dict(
    num_examples=np.array([1, 9, 4, 0, 23, 7]),
    cohort_size=4,
    epochs=2,
    batch_size=3,
    lanes=2,
    num_devices=2,
    seed=5,
  )
  rounded = Planner(**arguments)
  assert rounded(1).start.shape == (2, 32)
  room = rounded.buffer_examples
  monkeypatch.setattr(planning, 'next_power', lambda number: number)
  exact = Planner(**arguments)
  for number in (1, 2, 3):
    for name, much, few in zip(
      Plan._fields, rounded(number), exact(number), strict=True
    ):
      if few is None:  # Only buffered plans have it.
        assert much is None
        continue
      inside = tuple(slice(size) for size in few.shape)
      np.testing.assert_array_equal(much[inside], few, err_msg=name)
      outside = much.copy()
      outside[inside] = 0
      assert not outside.any(), name
  assert exact(1).order.size < rounded(1).order.size
  assert exact.buffer_examples <= room == 1 << (room - 1).bit_length()


def test_clients_of_one_size_have_exact_shapes():
  planner = Planner(
    num_examples=np.full(6, 5), cohort_size=3, epochs=1, batch_size=5, seed=0
  )
  assert planner(1).start.shape == (1, 3)
