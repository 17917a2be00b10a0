"""Every client's own test is compared with the NumPy twin, or by hand."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import client_evaluation
from tests.testing import convolutions
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

ETA = rounds.LEARNING_RATE


def model(scale=1.0):
  def init(key):
    del key
    return jax.tree.map(
      lambda leaf: jnp.asarray(scale * leaf, jnp.float32),
      twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES),
    )

  return fa.Model('twin', init, rounds.apply)


@pytest.fixture
def divided(uneven_examples):
  """Returns x, y, and the training and held-out parts of five clients."""
  x, y, parts = uneven_examples
  kept, held = fa.partition.hold_out(parts, fraction=0.4, seed=0)
  assert {len(part) for part in held} >= {0, 1}  # Some hold out nothing.
  return x, y, kept, held


def build(divided, **changes):
  x, y, kept, held = divided
  examples = fa.Examples(x, y)
  options = {
    **{'client_fraction': 0.4, 'epochs': 1, 'batch_size': 3, 'seed': 5},
    'algorithm': rounds.fedavg(),
  }
  simulation = simulations.build_simulation(
    model(),
    fa.build_clients(examples, kept),
    fa.Examples(x[kept[1]], y[kept[1]]),
    **(options | changes),
  )
  return simulation, fa.build_clients(examples, held)


def of_classifier(correct, loss_sum, count):
  """Makes a classifier's tests from its sums, [K]."""
  with np.errstate(invalid='ignore', divide='ignore'):
    values = {'accuracy': correct / count, 'loss': loss_sum / count}
  return client_evaluation.Tested(values, count)


def stacked(tests):
  return np.stack([*tests.values.values(), tests.count])


def expected(params, x, y, held):
  """Returns accuracy, loss and count of every client, from the twin."""
  rows = []
  for part in held:
    if not len(part):
      rows.append((np.nan, np.nan, 0))
      continue
    h = np.maximum(x[part] @ params['w1'] + params['b1'], 0)
    logits = h @ params['w2'] + params['b2']
    losses, _ = twin.losses_and_gradient(params, x[part], y[part])
    correct = (logits.argmax(axis=1) == y[part]).mean()
    rows.append((correct, losses.mean(), len(part)))
  return np.array(rows, float).T


@pytest.mark.parametrize(
  ('epochs', 'lanes', 'batch_size'),
  rest_slow(1, covering([1, 0, 3, 1], [2, 1], [3, 3, 0, 0]), several=True),
)
def test_numpy_twin(divided, epochs, lanes, batch_size):
  x, y, kept, held = divided
  simulation, own = build(divided, lanes=lanes, batch_size=batch_size)
  client_tests = client_evaluation.build_client_tests(
    simulation, own, finetune=optax.sgd(ETA), epochs=epochs
  )
  state, _ = simulation.init()
  before = jax.device_get(state)
  tests = client_tests(state)
  flat = x.reshape(len(x), -1) / 255.0
  params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  np.testing.assert_allclose(
    stacked(tests.global_model), expected(params, flat, y, held), rtol=1e-5
  )
  for own_leaf, other in zip(
    jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state)), strict=True
  ):
    np.testing.assert_array_equal(own_leaf, other)  # A test changes nothing.
  if not epochs:
    assert tests.personal is None
    return
  planner = fa.engine.Planner(
    num_examples=np.array([len(part) for part in kept]),
    cohort_size=5,
    epochs=epochs,
    batch_size=batch_size,
    seed=5,
  )
  after = []
  for k, part in enumerate(kept):
    local, _ = twin.client_update(
      params, flat[part], y[part], twin.batches_of(planner, 1, k), ETA
    )
    after.append(expected(local, flat, y, [held[k]])[:, 0])
  np.testing.assert_allclose(
    stacked(tests.personal), np.array(after).T, rtol=2e-5
  )
  again = client_tests(state)  # The state was not donated.
  np.testing.assert_array_equal(
    stacked(again.personal), stacked(tests.personal)
  )


@pytest.mark.parametrize('on', ['device', 'host'])
def test_own_models(divided, on):
  """Each client has the server's body and its own head."""
  x, y, _, held = divided
  fedper = fa.experimental.personal(rounds.fedavg(), ['?2'])
  simulation, own = build(
    divided, algorithm=fedper, lanes=2, client_states_on=on
  )
  client_tests = client_evaluation.build_client_tests(simulation, own)
  *_, record = fa.simulate(simulation, rounds=3)
  states = record.client_states
  tests = client_tests(record.state, states)
  flat = x.reshape(len(x), -1) / 255.0
  states = states.gather(np.arange(5)) if on == 'host' else states
  params, heads = jax.device_get((record.state.params, states.own))
  models = [params | {n: heads[n][k] for n in ('w2', 'b2')} for k in range(5)]
  by_hand = np.array(
    [expected(models[k], flat, y, [held[k]])[:, 0] for k in range(5)]
  )
  np.testing.assert_allclose(stacked(tests.personal), by_hand.T, rtol=1e-5)
  np.testing.assert_allclose(
    stacked(tests.global_model),
    expected(params, flat, y, held),
    rtol=1e-5,
  )
  loss = 'loss_weighted'
  line = client_evaluation.line(tests)
  assert line[f'client_{loss}'] != line[f'personal_{loss}']


def test_convolutions_of_a_model_are_rewritten_here_too():
  """Results are equal up to rounding, and no kernels are in groups."""
  examples, parts = convolutions.examples()
  clients = fa.build_clients(examples, parts)
  tests = []
  for model in (
    convolutions.model(),
    convolutions.model()._replace(as_written=True),
  ):
    simulation = simulations.build_simulation(
      model,
      clients,
      examples,
      algorithm=rounds.fedavg(),
      client_fraction=0.5,
      epochs=1,
      batch_size=3,
      lanes=4,
    )
    tests.append(
      client_evaluation.build_client_tests(
        simulation, clients, finetune=optax.sgd(ETA), epochs=1
      )(simulation.init()[0])
    )
  for got, expected in zip(*map(jax.tree.leaves, tests), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_client_that_diverges_does_not_count(divided):
  x, y, kept, held = divided
  x = x.astype(np.float32)
  x[kept[3][0]] = np.inf
  simulation, own = build((x, y, kept, held), on_nan='skip_client')
  tests = client_evaluation.build_client_tests(
    simulation, own, finetune=optax.sgd(ETA), epochs=1
  )(simulation.init()[0])
  assert tests.global_model.count[3] == len(held[3]) > 0
  assert tests.personal.count[3] == 0
  others = [0, 1, 2, 4]
  np.testing.assert_array_equal(
    tests.personal.count[others], tests.global_model.count[others]
  )


def test_sequences_count_their_labels():
  """Two clients have two sequences each; a model always predicts symbol 1."""
  y = np.array([[1, 1, -1], [0, 1, 1], [1, -1, -1], [0, 0, 0]], np.int32)
  x = np.zeros((4, 3), np.int32)

  def apply(params, x):
    return jnp.zeros((*x.shape, 2)) + params['b'][None, None]

  always_one = fa.Model('one', lambda key: {'b': jnp.array([0.0, 2.0])}, apply)
  examples = fa.Examples(x, y)
  clients = fa.build_clients(examples, [np.array([0, 1]), np.array([2, 3])])
  simulation = simulations.build_simulation(
    always_one,
    clients,
    examples,
    algorithm=rounds.fedavg(),
    client_fraction=1.0,
    epochs=1,
    batch_size=1,
  )
  tests = client_evaluation.build_client_tests(simulation, clients)(
    simulation.init()[0]
  )
  np.testing.assert_array_equal(
    tests.global_model.values['accuracy'], [4 / 5, 1 / 4]
  )
  np.testing.assert_array_equal(tests.global_model.count, [5, 4])
  wrong, right = np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))
  np.testing.assert_allclose(
    tests.global_model.values['loss'],
    [(4 * right + wrong) / 5, (right + 3 * wrong) / 4],
    rtol=1e-6,
  )


def test_description_by_hand():
  correct = np.array([0.0, 5, 9, 4, 0])
  count = np.array([0.0, 10, 10, 4, 4])
  found = client_evaluation.describe(of_classifier(correct, 2 * count, count))
  accuracies = [0.5, 0.9, 1.0, 0.0]
  assert found['tested'] == 4
  assert found['accuracy_weighted'] == pytest.approx(18 / 28)
  assert found['accuracy_mean'] == pytest.approx(0.6)
  assert found['accuracy_p50'] == pytest.approx(0.7)
  assert found['accuracy_p10'] == pytest.approx(0.15)  # 0 + 0.3 * 0.5
  assert found['accuracy_p90'] == pytest.approx(0.97)
  assert found['accuracy_worst_tenth'] == 0.0
  assert found['accuracy_variance'] == pytest.approx(np.var(accuracies))
  assert found['loss_weighted'] == pytest.approx(2.0)
  many = np.arange(30.0)
  worst = client_evaluation.describe(
    of_classifier(many, many, np.full(30, 100.0))
  )
  assert worst['accuracy_worst_tenth'] == pytest.approx(0.01)  # 0, 1, 2 %.
  # The last client has trained and diverged: it counts, with nothing correct.
  diverged = count.copy()
  diverged[3] = 0
  own = client_evaluation.describe(
    of_classifier(correct, 2 * diverged, diverged), count
  )
  assert (own['tested'], own['diverged']) == (4, 1)
  assert own['accuracy_mean'] == pytest.approx((0.5 + 0.9) / 4)
  assert own['accuracy_weighted'] == pytest.approx(14 / 28)
  assert own['loss_weighted'] == pytest.approx(2.0)
  none = np.zeros(3)
  assert client_evaluation.describe(of_classifier(none, none, none)) == {}


def test_csv(tmp_path):
  metrics = of_classifier(
    np.array([1.0, 0.0]), np.array([3.0, 0.0]), np.array([2.0, 0.0])
  )
  path = tmp_path / 'clients.csv'
  client_evaluation.write_csv(
    path, np.array([7, 1]), client_evaluation.ClientTests(metrics, metrics)
  )
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  assert rows[0] == {
    **{'client': '0', 'train_examples': '7', 'held_out': '2'},
    **{'client_accuracy': '0.5', 'client_loss': '1.5'},
    **{'personal_accuracy': '0.5', 'personal_loss': '1.5'},
  }
  assert rows[1]['client_accuracy'] == '' and rows[1]['held_out'] == '0'


def test_refusals(divided):
  simulation, own = build(divided)
  empty = fa.build_clients(fa.Examples(*divided[:2]), [np.array([], int)] * 5)
  with pytest.raises(InputError, match='no client has a held-out example'):
    client_evaluation.build_client_tests(simulation, empty)
  others = fa.build_clients(fa.Examples(*divided[:2]), divided[3][:4])
  with pytest.raises(
    InputError, match='held: expected 5 clients, as in training, got 4'
  ):
    client_evaluation.build_client_tests(simulation, others)
  with pytest.raises(InputError, match='epochs = 2: must be 0 without'):
    client_evaluation.build_client_tests(simulation, own, epochs=2)
  fedper = fa.experimental.personal(rounds.fedavg(), ['?2'])
  simulation, own = build(divided, algorithm=fedper)
  with pytest.raises(InputError, match='epochs = 1: must be 0 with an algor'):
    client_evaluation.build_client_tests(simulation, own, epochs=1)
