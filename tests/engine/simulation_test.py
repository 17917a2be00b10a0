"""Simulations have the same rounds, whatever the number of rounds per call."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts import metrics
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import layout
from tests.testing import PROGRAMS
from tests.testing import convolutions
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import simulations


def sgd(learning_rate):
  return fa.fedavg(optax.sgd(learning_rate), optax.sgd(1.0))


SGD = sgd(0.1)


@functools.cache
def make_simulation(**changes):
  """Builds the digits in 7 clients; tests share what has the same changes."""
  data = fa.load_dataset('digits')
  parts = fa.partition.iid(1500, num_clients=7, seed=0)
  clients = fa.build_clients(data.train, parts)
  model = fa.build_model('2nn', data)
  kwargs = {
    'client_fraction': 0.5,
    'epochs': 1,
    'batch_size': 32,
    'algorithm': SGD,
  }
  return simulations.build_simulation(
    model, clients, data.test, **(kwargs | changes)
  )


@pytest.mark.slow
def test_run_reports_divergence():
  with pytest.raises(DivergedError, match='round 1'):
    fa.run(
      make_simulation(algorithm=fa.fedavg(optax.sgd(1e30), optax.sgd(1.0))),
      rounds=5,
    )


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'rounds_per_call': -1}, 'rounds_per_call = -1'),
    ({'micro_batch': -1}, 'micro_batch = -1'),
    ({'lanes': 3}, 'lanes = 3'),
    ({'weighting': 'none'}, 'weighting'),
    (
      {'algorithm': sgd(0.1)._replace(client_finish=lambda r: r.delta)},
      'algorithm.client_finish',
    ),
    ({'client_fraction': 2.0}, 'client_fraction'),
    (
      {'participation': fa.Participation(unavailable_fraction=0.9)},
      'cohort_size = 3',
    ),
    ({'lanes': -5}, 'lanes = -5'),
  ],
)
def test_bad_options_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    make_simulation(**changes)


def test_rounds_between_evaluations_are_at_least_one():
  with pytest.raises(InputError, match='eval_every = 0'):
    list(fa.simulate(make_simulation(), rounds=2, eval_every=0))


def test_history_as_arrays():
  history = fa.run(make_simulation(), rounds=3, eval_every=3)
  np.testing.assert_array_equal(history['round'], [0, 1, 2, 3])
  np.testing.assert_array_equal(
    np.isnan(history['test_accuracy']), [False, True, True, False]
  )
  assert np.isnan(history['train_loss'][0])


def test_evaluation_changes_nothing():
  simulation = make_simulation()
  often = fa.run(simulation, rounds=4)
  rarely = fa.run(simulation, rounds=4, eval_every=4)
  assert often['test_accuracy'][-1] == rarely['test_accuracy'][-1]
  np.testing.assert_array_equal(often['train_loss'], rarely['train_loss'])


def test_other_seed_other_cohorts_and_weights():
  one, other = make_simulation(seed=0), make_simulation(seed=1)
  assert any(
    set(one.planner.cohort(t)) != set(other.planner.cohort(t))
    for t in range(1, 6)
  )
  kernels = [
    np.asarray(s.init()[0].params['Dense_0']['kernel']) for s in (one, other)
  ]
  assert (kernels[0] != kernels[1]).any()


def test_unavailable_clients():
  simulation = make_simulation(
    client_fraction=0.3,
    participation=fa.Participation(unavailable_fraction=0.6),
  )
  assert simulation.planner.participation.unavailable_fraction == 0.6
  assert simulation.planner.cohort_size == 2


ALGORITHMS = {
  'fedavg': fa.fedavg(optax.sgd(0.1), optax.sgd(1.0, momentum=0.5)),
  'scaffold': fa.scaffold(0.1),
}


@pytest.mark.parametrize(
  ('name', 'per_call'),
  rest_slow(1, covering(reversed(ALGORITHMS), [3, 64]), several=True),
)
def test_rounds_per_call_change_no_bit(name, per_call):
  """Ten rounds are run one by one, by three, or in one call."""
  runs = []
  for number in (1, per_call):
    simulation = make_simulation(
      algorithm=ALGORITHMS[name], rounds_per_call=number
    )
    records = list(fa.simulate(simulation, rounds=10, eval_every=2))
    assert [r.round for r in records] == list(range(11))
    assert [r.test_accuracy is None for r in records[:4]] == [
      False,
      True,
      False,
      True,
    ]
    found = [(r.train_loss, r.test_loss, r.examples) for r in records]
    runs.append((found, jax.device_get(records[-1].state)))
  for found, state in runs[1:]:
    assert found == runs[0][0]
    for a, b in zip(
      jax.tree.leaves(state), jax.tree.leaves(runs[0][1]), strict=True
    ):
      np.testing.assert_array_equal(a, b)


def test_the_last_record_of_a_call_has_the_model():
  records = list(fa.simulate(make_simulation(), rounds=40))
  assert [r.state is None for r in records].count(False) < 20
  for record in records:
    if record.state is not None:
      assert int(record.state.round) == record.round
  assert records[-1].state is not None


def test_the_compiled_call_is_the_reference():
  """It has the compiler options of a real run, on two devices."""
  simulation = make_simulation(batch_size=20, epochs=2, client_fraction=1.0)
  assert simulation.planner.num_devices == 2
  data = fa.load_dataset('digits')
  parts = fa.partition.iid(1500, num_clients=7, seed=0)
  clients = fa.build_clients(data.train, parts)
  model = fa.build_model('2nn', data)
  reference = fa.engine.build_reference_round(
    fa.losses.of_examples(model.apply), 0.1
  )
  *_, record = fa.simulate(simulation, rounds=3)
  params = simulation.init()[0].params
  for number in (1, 2, 3):
    ids = simulation.planner.cohort(number)
    batches = simulation.planner.padded_batches(number, ids)
    params = reference(params, *fa.stack(clients, ids), batches)
  for got, expected in zip(
    jax.tree.leaves(record.state.params), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('lanes', rest_slow(1, [4, 2]))
def test_convolutions_of_a_model_are_the_reference(lanes):
  """The reference takes the model as written, the engine rewrites it."""
  examples, parts = convolutions.examples()
  clients = fa.build_clients(examples, parts)
  model = convolutions.model()
  simulation = simulations.build_simulation(
    model,
    clients,
    examples,
    algorithm=sgd(0.1),
    client_fraction=1.0,
    epochs=2,
    batch_size=3,
    lanes=lanes,
  )
  *_, record = fa.simulate(simulation, rounds=2)
  params = simulation.init()[0].params
  reference = fa.engine.build_reference_round(
    fa.losses.of_examples(model.apply), 0.1
  )
  for number in (1, 2):
    ids = simulation.planner.cohort(number)
    batches = simulation.planner.padded_batches(number, ids)
    params = reference(params, *fa.stack(clients, ids), batches)
  for got, expected in zip(
    jax.tree.leaves(record.state.params), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
  logits = model.apply(params, examples.x)
  right = np.argmax(logits, axis=1) == examples.y
  assert record.test_accuracy == pytest.approx(right.mean())


@pytest.mark.slow
def test_memory_of_a_call_depends_on_its_lanes():
  """Cohorts of 10 and 1,000 need as much; more lanes need more."""
  data = fa.load_dataset('digits')
  parts = fa.partition.iid(1500, num_clients=1000, seed=0)
  clients = fa.build_clients(data.train, parts)

  def temporary_bytes(cohort, lanes):
    simulation = simulations.build_simulation(
      fa.build_model('2nn', data),
      clients,
      data.test,
      algorithm=sgd(0.1),
      client_fraction=cohort / 1000,
      epochs=1,
      batch_size=1,
      lanes=lanes,
      rounds_per_call=1,
    )
    return simulation.call.memory_analysis().temp_size_in_bytes

  few, many = (temporary_bytes(m, 2) for m in (10, 1000))
  assert many < 1.1 * few
  assert temporary_bytes(10, 8) > 2 * few


def test_states_stay_valid_and_are_those_of_their_rounds():
  """Calls are queued, yet each record has its own model."""
  simulation = make_simulation(
    algorithm=ALGORITHMS['scaffold'], rounds_per_call=1
  )
  records = list(fa.simulate(simulation, rounds=5))
  for record in records:
    assert int(record.state.round) == record.round
    assert simulation.evaluate(record.state.params) == record.test


@pytest.mark.parametrize('per_call', rest_slow(1, [4, 1, 64]))
def test_the_target_ends_a_run_in_the_middle_of_a_call(per_call):
  """No later round, done or queued, changes the result."""
  simulation = make_simulation(rounds_per_call=per_call)
  accuracies = fa.run(simulation, rounds=12)['test_accuracy']
  target = accuracies[7]
  first = int(np.flatnonzero(accuracies >= target)[0])
  assert 3 < first < 12
  records = list(fa.simulate(simulation, rounds=50, target=target))
  assert records[-1].round == first
  assert records[-1].test_accuracy >= target
  assert simulation.evaluate(records[-1].state.params) == records[-1].test
  assert int(records[-1].state.round) == first


def test_a_target_is_met_exactly_or_not():
  """9,900 of 10,000 are 99 %; 3 of 10 are at least 0.3, but not 0.30001."""
  enough = metrics.enough_correct
  assert enough(0.99, 10_000) == 9900
  assert enough(0.3, 10) == 3 and enough(0.30001, 10) == 4
  assert enough(1.0, 7) == 7
  for count in (7, 297, 10_000):
    for correct in range(1, count + 1, 5):
      assert enough(correct / count, count) == correct


def test_the_initial_model_may_reach_the_target():
  records = list(fa.simulate(make_simulation(), rounds=5, target=1e-9))
  assert len(records) == 1 or records[0].test_accuracy == 0


@pytest.mark.parametrize('per_call', rest_slow(1, [64, 1]))
def test_divergence_in_the_middle_of_a_call(per_call):
  """The server's third update is infinite, so that two rounds are applied."""

  def update(updates, count, params=None):
    del params
    scale = jnp.where(count < 2, -1.0, jnp.inf)
    return jax.tree.map(lambda g: scale * g, updates), count + 1

  server = optax.GradientTransformation(
    lambda params: jnp.zeros((), jnp.int32), update
  )
  simulation = make_simulation(
    algorithm=fa.fedavg(optax.sgd(0.1), server), rounds_per_call=per_call
  )
  records = list(fa.simulate(simulation, rounds=9))
  assert [r.finite for r in records] == [True, True, True, False]
  assert int(records[-1].state.round) == 2
  assert simulation.evaluate(records[-1].state.params) == records[2].test


@pytest.mark.parametrize('micro_batch', rest_slow(1, [7, 1000, 1, 50]))
def test_micro_batches_equal_the_full_batch(micro_batch):
  """B = inf is computed in parts; the last part and the clients are uneven."""
  setting = {'batch_size': 0, 'epochs': 3, 'client_fraction': 1.0}
  full = fa.run(make_simulation(micro_batch=1000, **setting), rounds=3)
  simulation = make_simulation(micro_batch=micro_batch, **setting)
  assert simulation.planner.step_examples <= micro_batch
  parts = fa.run(simulation, rounds=3)
  np.testing.assert_allclose(
    parts['train_loss'][1:], full['train_loss'][1:], rtol=1e-5
  )
  np.testing.assert_allclose(parts['test_loss'], full['test_loss'], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='address space is limited')
def test_out_of_memory_halves_the_lanes_and_changes_no_result():
  """The process has a limited address space, so that allocations do fail."""
  process = subprocess.run(
    [sys.executable, PROGRAMS / 'out_of_memory.py'],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  assert 'out of memory with 512 lanes: continuing with 256' in process.stderr
  limited, free = [
    [float(x) for x in line.split()[1:]] for line in process.stdout.splitlines()
  ]
  np.testing.assert_allclose(limited, free, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('failing', [1, 3])
@pytest.mark.parametrize('name', ALGORITHMS)
def test_out_of_memory_after_some_rounds(name, failing):
  """After a failed call, a run continues from the last model."""
  plain = make_simulation(
    algorithm=ALGORITHMS[name], rounds_per_call=1, client_fraction=1.0, lanes=6
  )
  calls = []

  def refusing(*args):
    calls.append(1)
    if len(calls) == failing:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return plain.call(*args)

  runs = fa.simulate(plain._replace(call=refusing), rounds=6)
  if name == 'scaffold' and failing > 1:
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
      list(runs)
    return
  records, expected = list(runs), list(fa.simulate(plain, rounds=6))
  assert [r.round for r in records] == list(range(7))
  assert [r.lanes for r in records][-1] == 2 and expected[-1].lanes == 6
  np.testing.assert_allclose(
    [r.test_loss for r in records],
    [r.test_loss for r in expected],
    rtol=1e-5,
  )


def test_lanes_that_do_not_fit_as_compiled_are_fewer(monkeypatch):
  """Two devices share 1 GiB: a lane of each fits, three of each do not."""
  monkeypatch.setattr(layout, 'free_bytes', lambda device: 2**30)
  monkeypatch.setattr(layout, 'lane_bytes_compiled', lambda *args: 2**28)
  x = np.zeros((6, 2), np.float32)
  federation = fa.Federation(
    fa.build_clients(fa.Examples(x, x[:, 0]), np.arange(6)[:, None]),
    fa.Examples(x, x[:, 0]),
    client_fraction=1.0,
    epochs=1,
    batch_size=0,
  )
  simulation = fa.build_simulation(
    fa.Model('linear', lambda key: np.zeros(2, np.float32), lambda w, x: x @ w),
    federation,
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    loss=fa.losses.squared_error,
    execution=fa.Execution(lanes=6),
  )
  assert simulation.planner.lanes == 2
  reason = 'limited by device memory; 256 MiB as compiled'
  assert simulation.layout_reason == reason


def test_not_even_one_lane_fits():
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
  planner = make_simulation().planner
  with pytest.raises(
    InputError, match='lanes = 1: does not fit into device memory'
  ):
    layout.fewer_lanes(1, planner, error)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    layout.fewer_lanes(4, planner, jax.errors.JaxRuntimeError('INTERNAL'))


def float_simulation(spoil=lambda train, test: None, **changes):
  """Builds the digits as float32, in 7 clients; `spoil` may change them."""
  data = fa.load_dataset('digits')
  train = fa.Examples(data.train.x.astype(np.float32), data.train.y.copy())
  test = fa.Examples(data.test.x.astype(np.float32), data.test.y.copy())
  parts = fa.partition.iid(1500, num_clients=7, seed=0)
  clients = fa.build_clients(train, parts)
  clients, test = spoil(clients, test) or (clients, test)
  kwargs = {
    'client_fraction': 0.5,
    'epochs': 1,
    'batch_size': 32,
    'algorithm': sgd(0.1),
  }
  model = fa.build_model('2nn', data)
  return simulations.build_simulation(
    model, clients, test, **(kwargs | changes)
  )


def nan_in_client_2(clients, test):
  clients.x[clients.offsets[2] + 5] = np.nan


SPOILT = {
  'nan': (nan_in_client_2, r'clients.x: 1 examples .*client 2; on_nan'),
  'inf in the test set': (
    lambda clients, test: test.x.__setitem__(3, np.inf),
    'test.x: 1 examples are not finite, the first is row 3',
  ),
  'label 10': (
    lambda clients, test: clients.y.__setitem__(3, 10),
    r'clients.y: holds 0 to 10, must be in \[0, 9\]',
  ),
  'label -1': (
    lambda clients, test: test.y.__setitem__(3, -1),
    r'test.y: holds -1 to 9, must be in \[0, 9\]',
  ),
  'empty test set': (
    lambda clients, test: (clients, fa.Examples(test.x[:0], test.y[:0])),
    'test: holds no example',
  ),
  'a label too few': (
    lambda clients, test: (clients, fa.Examples(test.x, test.y[1:])),
    'test: 297 inputs, but 296 labels',
  ),
}


@pytest.mark.parametrize('how', SPOILT)
def test_values_that_would_spoil_a_run_are_refused(how):
  spoil, said = SPOILT[how]
  with pytest.raises(InputError, match=said):
    float_simulation(spoil)


def test_a_client_with_nan_is_skipped_and_counted():
  simulation = float_simulation(
    nan_in_client_2, on_nan='skip_client', client_fraction=1.0
  )
  records = list(fa.simulate(simulation, rounds=8))
  assert [r.skipped for r in records] == [0] + [1] * 8
  assert all(r.finite and np.isfinite(r.test_loss) for r in records)
  assert records[-1].test_loss < records[0].test_loss


@pytest.mark.slow
def test_wanted_states_have_their_client_states():
  simulation = make_simulation(
    algorithm=fa.scaffold(0.1), rounds_per_call=4, client_fraction=0.3
  )
  uninterrupted = list(fa.simulate(simulation, rounds=9))
  records = []
  for record in fa.simulate(simulation, rounds=9, needs_state=lambda n: n == 5):
    records.append(record)
    if record.round == 5:  # The next call takes the client states.
      start = jax.device_get((record.state, record.client_states))
  rest = list(fa.simulate(simulation, rounds=9, start=start))
  assert [r.round for r in rest] == [6, 7, 8, 9]
  for a, b in ((uninterrupted[-1], rest[-1]), (uninterrupted[-1], records[-1])):
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.device_get((a.state, a.client_states)),
      jax.device_get((b.state, b.client_states)),
    )


@pytest.mark.parametrize('name', rest_slow(1, reversed(ALGORITHMS)))
def test_stopping_between_calls(name):
  """A run can resume from the last record, whatever was queued."""
  simulation = make_simulation(algorithm=ALGORITHMS[name], rounds_per_call=1)
  uninterrupted = list(fa.simulate(simulation, rounds=9))
  records = []
  for record in fa.simulate(
    simulation, rounds=9, should_stop=lambda: len(records) > 4
  ):
    records.append(record)
  last = [r for r in records if r.client_states is not None][-1]
  assert 4 <= last.round < 9
  start = jax.device_get((last.state, last.client_states))
  rest = list(fa.simulate(simulation, rounds=9, start=start))
  assert [r.train_loss for r in rest] == [
    r.train_loss for r in uninterrupted[last.round + 1 :]
  ]


@pytest.mark.slow
@pytest.mark.parametrize('name', ALGORITHMS)
@pytest.mark.parametrize('layout', [{'lanes': 6}, {'lanes': 1}])
def test_other_layouts_within_the_stated_tolerance(name, layout):
  """The README says: after a round no weight differs by more than 1e-6."""
  states = []
  for kwargs in ({}, layout):
    simulation = make_simulation(
      algorithm=ALGORITHMS[name], client_fraction=1.0, epochs=3, **kwargs
    )
    records = list(fa.simulate(simulation, rounds=1))
    states.append(jax.device_get(records[-1].state.params))
  lanes = simulation.planner.lanes
  assert lanes == layout['lanes']
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *states
  )
