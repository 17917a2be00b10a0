"""The engine is compared with closed forms, NumPy twin and reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax import algorithms
from fedavg_jax.contracts import reference
from fedavg_jax.core import choices
from fedavg_jax.core import client_data
from fedavg_jax.core.choices import SHUFFLES
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.planning import Planner
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import twin
from tests.testing.rounds import CLASSES
from tests.testing.rounds import LEARNING_RATE
from tests.testing.rounds import assert_close
from tests.testing.rounds import distance
from tests.testing.rounds import fedavg
from tests.testing.rounds import loss_fn
from tests.testing.rounds import make_engine
from tests.testing.rounds import run
from tests.testing.rounds import run_states


@pytest.fixture
def population(uneven_examples):
  x, y, parts = uneven_examples
  return client_data.build_clients(client_data.Examples(x, y), parts)


@pytest.mark.parametrize(
  ('batch_size', 'shuffle'), covering([1, 3, 4, 0], SHUFFLES)
)
@pytest.mark.parametrize('cohort_size', rest_slow(1, [3, 1, 5]))
def test_numpy_twin_after_three_rounds(
  uneven_examples, population, shuffle, batch_size, cohort_size
):
  x, y, parts = uneven_examples
  got, metrics = run(
    population,
    rounds=3,
    cohort_size=cohort_size,
    epochs=2,
    batch_size=batch_size,
    shuffle=shuffle,
    lanes=2,
    num_devices=2,
  )
  planner = Planner(
    num_examples=np.array([len(part) for part in parts]),
    cohort_size=cohort_size,
    epochs=2,
    batch_size=batch_size,
    shuffle=shuffle,
    seed=3,
  )
  params = twin.init(np.random.default_rng(0), 9, 6, CLASSES)
  flat = x.reshape(len(x), -1) / 255.0
  for number in (1, 2, 3):

    def batches_of(k, number=number):
      size = batch_size or len(parts[k])
      for order in planner.epoch_orders(number, k):
        for start in range(0, len(order), size):
          yield order[start : start + size]

    cohort = planner.cohort(number)
    params, loss = twin.federated_round(
      params, flat, y, parts, cohort, batches_of, LEARNING_RATE
    )
    assert metrics[number - 1].train_loss == pytest.approx(loss, abs=1e-5)
    assert metrics[number - 1].examples == 2 * sum(
      len(parts[k]) for k in cohort
    )
  assert_close(got, params, 1e-5)


@pytest.mark.parametrize(
  'sizes', rest_slow(2, [[1, 7, 4, 9, 2], [23], [1, 22], [1] * 23])
)
def test_fedsgd_is_one_step_on_the_union_of_the_data(uneven_examples, sizes):
  """With E = 1, B = inf, C = 1, any division has w - eta * gradient."""
  x, y, _ = uneven_examples
  parts = np.split(np.arange(23), np.cumsum(sizes)[:-1])
  population = client_data.build_clients(client_data.Examples(x, y), parts)
  got, _ = run(population, cohort_size=len(sizes), epochs=1, batch_size=0)
  params = twin.init(np.random.default_rng(0), 9, 6, CLASSES)
  _, gradient = twin.losses_and_gradient(params, x.reshape(23, -1) / 255.0, y)
  expected = {n: params[n] - LEARNING_RATE * gradient[n] for n in params}
  assert_close(got, expected, 1e-6)


def test_one_client_is_plain_sgd(uneven_examples, population):
  """With C = 0, the new model is the client's own."""
  x, y, parts = uneven_examples
  planner = make_engine(population, cohort_size=1, epochs=3, batch_size=2)[-1]
  (k,) = planner.cohort(1)
  got, _ = run(population, cohort_size=1, epochs=3, batch_size=2)
  flat = x[parts[k]].reshape(len(parts[k]), -1) / 255.0
  batches = [
    order[start : start + 2]
    for order in planner.epoch_orders(1, k)
    for start in range(0, len(order), 2)
  ]
  expected, _ = twin.client_update(
    twin.init(np.random.default_rng(0), 9, 6, CLASSES),
    flat,
    y[parts[k]],
    batches,
    LEARNING_RATE,
  )
  assert_close(got, expected, 1e-6)


@pytest.mark.parametrize('batch_size', rest_slow(1, [3, 0]))
def test_reference_round(population, batch_size):
  round_fn, states, data, planner = make_engine(
    population, cohort_size=4, epochs=2, batch_size=batch_size, lanes=2
  )
  reference_round = reference.build_reference_round(loss_fn, LEARNING_RATE)
  params = jax.device_get(states[0].params)
  for number in (1, 2):
    ids = planner.cohort(number)
    params = reference_round(
      params,
      *client_data.stack(population, ids),
      planner.padded_batches(number, ids),
    )
    *states, _ = round_fn(*states, data, planner(number))
  assert_close(jax.device_get(states[0].params), jax.device_get(params), 1e-6)


@pytest.mark.parametrize(
  ('lanes', 'num_devices'),
  rest_slow(2, [(2, 1), (8, 2), (1, 1), (2, 2), (5, 1), (6, 2)], True),
)
def test_lanes_and_devices_change_nothing(population, lanes, num_devices):
  """Lanes under vmap have the results of one lane; some lanes are idle."""
  setting = {'cohort_size': 5, 'epochs': 2, 'batch_size': 3, 'rounds': 2}
  one_by_one, metrics_one = run(population, **setting)
  got, metrics = run(
    population, lanes=lanes, num_devices=num_devices, **setting
  )
  assert_close(got, one_by_one, 1e-6)
  assert metrics[-1].train_loss == pytest.approx(
    metrics_one[-1].train_loss, rel=1e-6
  )
  assert metrics[-1].examples == metrics_one[-1].examples


@pytest.mark.slow
@pytest.mark.parametrize(
  ('widths', 'num_devices', 'batch_size'),
  [
    ((4, 3, 2, 1), 2, 1),
    ((4, 3, 2, 1), 1, 0),
    ((4, 1), 2, 0),
    ((4, 1), 1, 1),
    ((2, 1), 2, 1),
    ((2, 1), 1, 0),
  ],
)
def test_continuing_with_fewer_lanes_changes_nothing(
  population, widths, num_devices, batch_size
):
  """Any two values of different parameters are a pair in some case."""
  setting = {
    'cohort_size': 5,
    'epochs': 2,
    'batch_size': batch_size,
    'rounds': 2,
    'micro_batch': 4,
    'algorithm': algorithms.scaffold(LEARNING_RATE),
  }
  one_state, one_clients, metrics_one = run_states(population, **setting)
  state, clients, metrics = run_states(
    population,
    lanes=widths[0] * num_devices,
    num_devices=num_devices,
    widths=widths,
    **setting,
  )
  assert_close(state.params, one_state.params, 1e-6)
  assert_close(clients, one_clients, 1e-5)
  assert metrics[-1].train_loss == pytest.approx(
    metrics_one[-1].train_loss, rel=1e-6
  )
  assert metrics[-1].examples == metrics_one[-1].examples


def nan_after(steps):
  """Returns plain SGD whose updates of a client are NaN after `steps`."""

  def update(grads, count, params=None):
    del params
    scale = jnp.where(count < steps, -LEARNING_RATE, jnp.nan)
    return jax.tree.map(lambda g: scale * g, grads), count + 1

  return optax.GradientTransformation(
    lambda params: jnp.zeros((), jnp.int32), update
  )


def test_idle_lanes_have_no_effect(population):
  """An idle lane may compute nonsense, which has no effect.

  E = 1, B = 3: the clients take 1 to 3 steps. An optimizer that returns NaN
  from the fourth step only affects lanes that continue without a client.

  """
  setting = {'cohort_size': 5, 'epochs': 1, 'batch_size': 3}
  plain, _ = run(population, **setting)
  for lanes in (4, 8):
    got, metrics = run(
      population, lanes=lanes, algorithm=fedavg(nan_after(3)), **setting
    )
    assert metrics[0].finite
    assert_close(got, plain, 1e-6)
  idle, metrics = run(
    population, lanes=5, algorithm=fedavg(nan_after(2)), **setting
  )
  assert not metrics[0].finite  # The optimizer does return NaN.


@pytest.mark.slow
def test_client_optimizer_starts_anew_with_every_client(population):
  """One lane with momentum equals a lane for every client."""
  setting = {
    'cohort_size': 5,
    'epochs': 2,
    'batch_size': 2,
    'algorithm': fedavg(optax.sgd(0.1, momentum=0.9)),
  }
  assert_close(
    run(population, lanes=1, **setting)[0],
    run(population, lanes=5, **setting)[0],
    1e-6,
  )


def test_server_learning_rate_scales_the_mean_delta(population):
  setting = {'cohort_size': 3, 'epochs': 1, 'batch_size': 2}
  begin = jax.device_get(make_engine(population, **setting)[1][0].params)
  full, _ = run(population, **setting)
  half, _ = run(population, algorithm=fedavg(server=optax.sgd(0.5)), **setting)
  assert_close(
    half, {n: begin[n] + (full[n] - begin[n]) / 2 for n in full}, 1e-6
  )


def test_server_momentum_matches_its_recurrence(population):
  """The recurrence is v <- 0.5 v + delta, w <- w + v, with known deltas."""
  setting = {'cohort_size': 5, 'epochs': 1, 'batch_size': 0}
  round_fn, (state, clients), data, planner = make_engine(population, **setting)
  w = jax.device_get(state.params)
  v = {n: np.zeros_like(value) for n, value in w.items()}
  for number in (1, 2, 3):
    begin = state._replace(params=w)
    after, clients, _ = round_fn(begin, clients, data, planner(number))
    delta = {n: np.asarray(after.params[n]) - w[n] for n in w}
    v = {n: 0.5 * v[n] + delta[n] for n in w}
    w = {n: w[n] + v[n] for n in w}
  got, _ = run(
    population,
    rounds=3,
    algorithm=fedavg(server=optax.sgd(1.0, momentum=0.5)),
    **setting,
  )
  assert_close(got, w, 1e-5)


def test_one_trace_serves_every_cohort(uneven_examples):
  """Cohorts of very different work are neither traced nor compiled again."""
  traces = []

  def counting_loss(params, x, y):
    traces.append(1)
    return loss_fn(params, x, y)

  x, y, _ = uneven_examples
  population = client_data.build_clients(
    client_data.Examples(x, y), np.split(np.arange(23), [1, 2, 3])
  )
  round_fn, states, data, planner = make_engine(
    population, loss=counting_loss, cohort_size=1, epochs=2, batch_size=2
  )
  examples = set()
  for number in range(1, 9):
    *states, metrics = round_fn(*states, data, planner(number))
    examples.add(int(metrics.examples))
    if number == 1:
      after_first = len(traces)
  assert examples == {2, 40}  # Both kinds of cohort occurred.
  assert len(traces) == after_first
  assert round_fn._cache_size() == 1


def test_same_seed_same_bits_other_seed_other_model(population):
  setting = {'cohort_size': 3, 'epochs': 2, 'batch_size': 2, 'rounds': 3}
  first, _ = run(population, **setting)
  again, _ = run(population, **setting)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  assert distance(first, run(population, seed=4, **setting)[0]) > 1e-3


@pytest.mark.parametrize(
  'harm',
  [
    {'algorithm': fedavg(optax.sgd(1e38)), 'batch_size': 2},
    {
      'algorithm': fedavg(nan_after(0))
    },  # E = 1, one step: the loss is still finite.
    {'algorithm': fedavg(server=optax.sgd(float('inf')))},
  ],
)
def test_divergence_is_reported_and_leaves_the_model(population, harm):
  setting = {'cohort_size': 5, 'epochs': 1, 'batch_size': 0} | harm
  before = jax.device_get(make_engine(population, **setting)[1][0].params)
  state, _, metrics = run_states(population, **setting)
  assert not metrics[0].finite
  assert_close(state.params, before, 0.0)
  assert int(state.round) == 0


def test_server_state_must_be_finite(population):
  """v overflows though the model does not, so the round is not applied."""
  server = algorithms.adaptive('adam', 1e-3, b1=0.9, b2=0.9, tau=1.0)
  huge = algorithms.fedavg(optax.sgd(1e22), server)
  state, _, metrics = run_states(
    population, algorithm=huge, cohort_size=5, epochs=1, batch_size=0
  )
  assert not metrics[0].finite and np.isfinite(metrics[0].train_loss)
  assert all(np.isfinite(v).all() for v in state.server.v.values())


def test_client_states_stay_when_not_trained_or_diverged(
  uneven_examples,
):
  """SCAFFOLD has a client without examples, then a round that diverges."""
  x, y, _ = uneven_examples
  population = client_data.build_clients(
    client_data.Examples(x, y), np.split(np.arange(23), [4, 4, 15])
  )
  setting = {'cohort_size': 4, 'epochs': 1, 'batch_size': 3, 'lanes': 2}
  algorithm = algorithms.scaffold(LEARNING_RATE)
  round_fn, (state, clients), data, planner = make_engine(
    population, algorithm=algorithm, **setting
  )
  kept = jax.tree.map(lambda leaf: leaf + 0.01, clients)
  before = jax.device_get(kept)
  state, clients, metrics = round_fn(state, kept, data, planner(1))
  after = jax.device_get(clients)
  assert metrics.finite
  for name in before:
    np.testing.assert_array_equal(after[name][1], before[name][1])
    assert (after[name][[0, 2, 3]] != before[name][[0, 2, 3]]).any()
  poisoned = state._replace(
    params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
  )
  _, clients, metrics = round_fn(poisoned, clients, data, planner(2))
  assert not metrics.finite
  for name in before:
    np.testing.assert_array_equal(clients[name], after[name])


def test_a_loss_that_is_not_finite_is_reported(uneven_examples):
  """The gradient may be finite: the loss of one example is infinite."""

  def with_one_infinite(params, x, y):
    losses = loss_fn(params, x, y)
    return losses + jnp.where(y == 3, jnp.inf, 0.0)

  x, y, parts = uneven_examples
  population = client_data.build_clients(client_data.Examples(x, y), parts)
  state, _, metrics = run_states(
    population, loss=with_one_infinite, cohort_size=5, epochs=1, batch_size=2
  )
  assert np.isinf(metrics[0].train_loss) and not metrics[0].finite
  assert int(state.round) == 0


def spoilt(population, clients, value):
  """Returns the population as float pixels, some clients' all changed.

  Other clients then find such rows after their last, short minibatches.

  """
  x = population.x.astype(np.float32)
  for k in clients:
    x[population.offsets[k] : population.offsets[k + 1], 1, 1, 0] = value
  return population._replace(x=x)


def twin_without(bad, examples, *, epochs, sizes):
  """Computes the twin's first round without some clients; B = 4.

  Returns:
    The planner, the model before, the deltas and the model after.

  """
  x, y, parts = examples
  planner = Planner(
    num_examples=np.array([len(part) for part in parts]),
    cohort_size=5,
    epochs=epochs,
    batch_size=4,
    seed=3,
  )
  params = twin.init(np.random.default_rng(0), 9, 6, CLASSES)
  flat = x.reshape(len(x), -1) / 255.0
  deltas = twin.deltas(params, flat, y, parts, planner, 1, LEARNING_RATE)
  good = {k: delta for k, delta in deltas.items() if k not in bad}
  mean = twin.mean(good, sizes)
  after = {name: params[name] + mean[name] for name in params}
  return planner, params, good, after


@pytest.mark.parametrize(
  ('value', 'bad', 'layout', 'weighting'),
  rest_slow(
    2,
    [
      (np.nan, (0, 2), {'lanes': 2, 'num_devices': 2}, 'uniform'),
      (np.inf, (1, 3), {'lanes': 4, 'widths': (4, 2, 1)}, 'examples'),
      (-np.inf, (4,), {'lanes': 1}, 'examples'),
      (np.nan, (1, 3), {'lanes': 5, 'micro_batch': 2}, 'uniform'),
      (np.inf, (0, 2), {'lanes': 5, 'micro_batch': 2}, 'examples'),
    ],
    several=True,
  ),
)
def test_clients_that_are_not_finite_are_skipped(
  uneven_examples, population, value, bad, layout, weighting
):
  """The twin has the other clients alone, whose weights add up to one."""
  x, y, parts = uneven_examples
  state, _, (metrics,) = run_states(
    spoilt(population, bad, value),
    cohort_size=5,
    epochs=2,
    batch_size=4,
    on_nan='skip_client',
    weighting=weighting,
    **layout,
  )
  sizes = [len(part) if weighting == 'examples' else 1 for part in parts]
  planner, params, good, expected = twin_without(
    bad, uneven_examples, epochs=2, sizes=sizes
  )
  flat = x.reshape(len(x), -1) / 255.0
  assert_close(state.params, expected, 1e-5)
  assert (metrics.skipped, bool(metrics.finite)) == (len(bad), True)
  read = [
    loss
    for k in good
    for loss in twin.client_update(
      params,
      flat[parts[k]],
      y[parts[k]],
      twin.batches_of(planner, 1, k),
      LEARNING_RATE,
    )[1]
  ]
  assert metrics.train_loss == pytest.approx(np.mean(read), abs=1e-5)
  assert metrics.examples == len(read)


@pytest.mark.parametrize(
  'what', rest_slow(1, ['update', 'message', 'client state'])
)
def test_finite_data_and_a_client_that_becomes_infinite(
  uneven_examples, population, what
):
  """Only client 3 takes three updates: then something of it is infinite."""
  plain = fedavg()

  def client_finish(result):
    bad = jnp.where(result.num_updates == 3, jnp.inf, 0.0)
    sent, kept = result.delta, result.context.client_state + 1
    if what == 'message':
      sent = sent | {'b2': sent['b2'] + bad}
    elif what == 'client state':
      kept += bad
    return fa.ClientOutput(sent, kept)

  def update(grads, state, params):
    # The third gradient of a round; w1 becomes NaN and stays NaN.
    grads = grads | {'w1': grads['w1'] + jnp.where(state == 2, jnp.nan, 0.0)}
    return jax.tree.map(lambda g: -LEARNING_RATE * g, grads), state + 1

  algorithm = plain._replace(
    client_finish=client_finish,
    client_init=lambda params, client_id: jnp.zeros(()),
  )
  if what == 'update':
    algorithm = algorithm._replace(
      client_optimizer=optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32), update
      )
    )
  state, kept, (metrics,) = run_states(
    population,
    algorithm=algorithm,
    on_nan='skip_client',
    cohort_size=5,
    epochs=1,
    batch_size=4,
    lanes=2,
  )
  # Client 3 has nine examples, in minibatches of four.
  *_, expected = twin_without(
    (3,),
    uneven_examples,
    epochs=1,
    sizes=[len(part) for part in uneven_examples[2]],
  )
  assert_close(state.params, expected, 1e-5)
  assert metrics.skipped == 1
  np.testing.assert_array_equal(kept, [1, 1, 1, 0, 1])


def test_states_of_skipped_clients_and_their_share(population):
  """SCAFFOLD's control variates stay; c moves by |S|/N of the others."""
  kwargs = {'cohort_size': 5, 'epochs': 1, 'batch_size': 4, 'lanes': 2}
  state, kept, (metrics,) = run_states(
    spoilt(population, [1], np.nan),
    algorithm=algorithms.scaffold(LEARNING_RATE),
    on_nan='skip_client',
    **kwargs,
  )
  assert metrics.skipped == 1
  for leaf in jax.tree.leaves(kept):
    assert np.isfinite(leaf).all()
    assert (leaf[1] == 0).all() and (leaf[0] != 0).any()
  # From c = c_i = 0, c is the weighted sum of the other clients' states, with
  # weights over ALL clients: the skipped client's share is dropped.
  weights = population.num_examples / population.num_examples.sum()
  jax.tree.map(
    lambda c, kept: np.testing.assert_allclose(
      c, np.tensordot(weights, kept, 1), rtol=1e-4, atol=1e-6
    ),
    state.server.control,
    kept,
  )


@pytest.mark.parametrize('on_nan', choices.ON_NAN)
def test_losses_that_are_finite_but_not_their_sum(population, on_nan):
  """The loss is infinite; where clients are skipped, the run continues."""

  def large(params, x, y):
    return loss_fn(params, x, y) + 2e37

  state, _, (metrics,) = run_states(
    population,
    loss=large,
    on_nan=on_nan,
    cohort_size=5,
    epochs=1,
    batch_size=0,
  )
  assert metrics.train_loss == np.inf and metrics.skipped == 0
  assert bool(metrics.finite) == (on_nan == 'skip_client') == bool(state.round)


@pytest.mark.parametrize('cohort_size', rest_slow(1, [5, 1]))
def test_a_round_of_skipped_clients_changes_nothing(population, cohort_size):
  """The server's momentum must not move the model either."""
  server = optax.sgd(1.0, momentum=0.9)
  kwargs = {'cohort_size': cohort_size, 'epochs': 1, 'batch_size': 0}
  round_fn, states, data, planner = make_engine(
    population, algorithm=fedavg(server=server), **kwargs
  )
  *states, _ = round_fn(*states, data, planner(1))
  before = jax.device_get(states[0])
  round_fn, _, data, planner = make_engine(
    spoilt(population, range(5), np.nan),
    algorithm=fedavg(server=server),
    on_nan='skip_client',
    **kwargs,
  )
  *states, metrics = round_fn(*states, data, planner(2))
  after = jax.device_get(states[0])
  assert (int(before.round), int(after.round)) == (1, 2)
  assert (metrics.skipped, metrics.examples) == (
    cohort_size,
    0,
  ) and metrics.finite
  jax.tree.map(np.testing.assert_array_equal, before[1:], after[1:])


@pytest.mark.parametrize(
  'algorithm', rest_slow(1, [algorithms.scaffold(LEARNING_RATE), fedavg()])
)
def test_skipping_no_client_changes_no_bit(population, algorithm):
  kwargs = {'cohort_size': 4, 'epochs': 2, 'batch_size': 4, 'lanes': 2}
  runs = [
    run_states(population, 3, algorithm=algorithm, on_nan=on_nan, **kwargs)
    for on_nan in choices.ON_NAN
  ]
  jax.tree.map(np.testing.assert_array_equal, *runs)


def test_one_bad_client_stops_a_round_that_does_not_skip(population):
  state, _, (metrics,) = run_states(
    spoilt(population, [1], np.nan),
    cohort_size=5,
    epochs=1,
    batch_size=4,
  )
  assert not metrics.finite and metrics.skipped == 0 and state.round == 0


def test_on_nan_is_one_of_two(population):
  with pytest.raises(InputError, match="on_nan = 'skip': must be one of stop"):
    make_engine(
      population, on_nan='skip', cohort_size=1, epochs=1, batch_size=1
    )
