"""Custom losses, metrics and models are compared with plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from tests.testing import rest_slow
from tests.testing import simulations

ETA = 0.05
SIZES = (5, 1, 3)  # With B = 2: short minibatches, and a client of one example.


def population(y_of, features=2):
  """Makes three clients of five, one and three examples."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(sum(SIZES), features)).astype(np.float32)
  y = y_of(rng, x)
  parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
  return fa.build_clients(fa.Examples(x, y), parts), fa.Examples(x, y)


def build(model, y_of, *, algorithm=None, loss, metrics=None, **options):
  clients, test = population(y_of)
  settings = {
    **{'client_fraction': 1.0, 'epochs': 2, 'batch_size': 2, 'seed': 5},
    **options,
  }
  execution = fa.Execution(
    lanes=settings.pop('lanes', 2),
    micro_batch=settings.pop('micro_batch', 0),
  )
  return fa.build_simulation(
    model,
    fa.Federation(clients, test, **settings),
    algorithm or fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
    loss=loss,
    metrics=metrics,
    execution=execution,
  )


@functools.cache
def plain():
  """Returns the linear regression that several tests compare with."""
  return build(linear(), noisy, loss=fa.losses.squared_error)


@functools.cache
def classifier():
  """Returns a linear model of three classes with all metrics."""
  return build(
    linear(3), three_classes, loss=fa.losses.cross_entropy, metrics=METRICS
  )


def linear(outputs=1, **changes):
  """Makes a linear model without a bias."""
  model = fa.Model(
    'linear',
    lambda key: {'w': jnp.full((2, outputs), 0.1)},
    lambda params, x: x @ params['w'],
  )
  return model._replace(**changes)


def batches(simulation, number, client):
  """Yields the rows of a client's examples in each of its minibatches."""
  for order in simulation.planner.epoch_orders(number, client):
    for start in range(0, len(order), 2):
      yield order[start : start + 2]


def numpy_rounds(simulation, rounds, gradient):
  """Computes FedAvg of w [2, outputs] with gradient(w, x, y) in plain NumPy."""
  clients, _ = population(lambda rng, x: x)
  w = np.full(np.shape(simulation.init()[0].params['w']), 0.1)
  offsets = clients.offsets
  for number in range(1, rounds + 1):
    total = np.zeros_like(w)
    for k, size in enumerate(SIZES):
      local = w.copy()
      for rows in batches(simulation, number, k):
        local -= ETA * gradient(local, offsets[k] + rows)
      total += size / sum(SIZES) * local
    w = total
  return w


def noisy(rng, x):
  return (x @ [[1.0], [-2.0]] + rng.normal(size=(len(x), 1))).astype('f4')


@pytest.mark.parametrize('micro_batch', rest_slow(1, [0, 1]))
def test_regression(micro_batch):
  simulation = build(
    linear(), noisy, loss=fa.losses.squared_error, micro_batch=micro_batch
  )
  history = fa.run(simulation, rounds=3)
  _, test = population(noisy)

  def gradient(w, rows):
    x, y = test.x[rows], test.y[rows]
    return 2 * x.T @ (x @ w - y) / len(rows)

  w = numpy_rounds(simulation, 3, gradient)
  assert set(history) >= {'test_loss'} and 'test_accuracy' not in history
  np.testing.assert_allclose(
    history['test_loss'][-1], np.mean((test.x @ w - test.y) ** 2), rtol=1e-5
  )


def two_labels(rng, x):
  return (x + 0.3 * rng.normal(size=x.shape) > 0).astype(np.int32)


def signs(dtype):
  return lambda rng, x: np.where(x[:, :1] > 0, 1, -1).astype(dtype)


def test_minus_one_is_a_target_like_others():
  """Integers of a hinge loss train and test as the same numbers in float32."""

  def hinge(outputs, batch):
    y = batch.y.astype(jnp.float32)
    return jnp.maximum(0, 1 - y * outputs).sum(axis=1)

  whole, real = (
    fa.run(build(linear(), signs(dtype), loss=hinge), rounds=2)['test_loss']
    for dtype in (np.int32, np.float32)
  )
  np.testing.assert_array_equal(whole, real)
  assert np.isfinite(whole).all()


def test_booleans_stay_for_a_loss_that_negates_them():
  """As integers, ~1 is -2 and everything is true."""

  def against(negative):
    def loss(outputs, batch):
      error = jnp.where(negative(batch.y), outputs**2, (1 - outputs) ** 2)
      return error.sum(axis=1)

    simulation = build(linear(), lambda rng, x: x[:, :1] > 0, loss=loss)
    return fa.run(simulation, rounds=2)['test_loss']

  np.testing.assert_array_equal(
    against(lambda y: ~y), against(lambda y: y.astype(jnp.float32) < 1)
  )


def test_several_labels_of_an_example():
  simulation = build(linear(2), two_labels, loss=fa.losses.binary_cross_entropy)
  *_, record = fa.simulate(simulation, rounds=3)
  _, test = population(two_labels)

  def gradient(w, rows):
    x, y = test.x[rows], test.y[rows]
    return x.T @ (1 / (1 + np.exp(-x @ w)) - y) / (2 * len(rows))

  w = numpy_rounds(simulation, 3, gradient)
  np.testing.assert_allclose(record.state.params['w'], w, rtol=1e-5)
  z = test.x @ w
  expected = np.mean(np.log1p(np.exp(z)) - test.y * z)
  assert record.test['loss'] == pytest.approx(expected, rel=1e-5)


def three_classes(rng, x):
  return rng.integers(0, 3, len(x)).astype(np.int32)


METRICS = (
  fa.metrics.macro_f1(),
  fa.metrics.accuracy(),
  fa.metrics.top_k(2),
  fa.metrics.label_loss(),
  fa.metrics.perplexity(),
)


def test_metrics_of_a_classifier():
  simulation = classifier()
  *_, record = fa.simulate(simulation, rounds=2)
  _, test = population(three_classes)
  logits = test.x @ np.asarray(record.state.params['w'])
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  best = logits.argmax(axis=1)
  f1 = []
  for label in range(3):
    hits = np.sum((best == label) & (test.y == label))
    both = np.sum(best == label) + np.sum(test.y == label)
    f1.append(2 * hits / both if both else 0)
  loss = -log_p[np.arange(9), test.y].mean()
  top = np.argsort(-logits, axis=1)[:, :2] == test.y[:, None]
  expected = {
    'macro_f1': np.mean(f1),
    'accuracy': np.mean(best == test.y),
    'top_2_accuracy': top.any(axis=1).mean(),
    'loss': loss,
    'perplexity': np.exp(loss),
  }
  assert list(record.test) == list(expected)
  for name, value in expected.items():
    assert record.test[name] == pytest.approx(value, rel=1e-5)
  assert simulation.evaluate(record.state.params) == record.test


def test_squared_error_as_a_metric():
  simulation = build(
    linear(),
    noisy,
    loss=fa.losses.squared_error,
    metrics=[fa.metrics.squared_error()],
  )
  _, test = population(noisy)
  w = np.full((2, 1), 0.1)
  expected = np.mean((test.x @ w - test.y) ** 2)
  found = simulation.evaluate({'w': jnp.float32(w)})
  assert found['squared_error'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('metric', 'lower'),
  rest_slow(
    1,
    [(fa.metrics.perplexity(), True), (fa.metrics.macro_f1(), False)],
    several=True,
  ),
)
def test_a_custom_target_ends_a_run_on_the_device(metric, lower):
  """The first metric decides, in the middle of a call."""
  simulation = build(
    linear(3),
    three_classes,
    loss=fa.losses.cross_entropy,
    metrics=[metric, fa.metrics.accuracy()],
  )
  (name, *_) = simulation.evaluate(simulation.init()[0].params)
  values = fa.run(simulation, rounds=30)[f'test_{name}']
  sign = -1 if lower else 1
  target = np.quantile(sign * values, 0.8) * sign
  first = int(np.argmax(sign * values >= sign * target))
  assert 0 < first < 30
  *_, record = fa.simulate(simulation, rounds=30, target=float(target))
  assert record.round == first


def test_a_sweep_has_custom_metrics_of_each_value():
  clients, test = population(three_classes)
  sweep = fa.build_sweep(
    linear(3),
    fa.Federation(
      clients, test, client_fraction=1.0, epochs=1, batch_size=2, seed=5
    ),
    lambda rate: fa.fedavg(optax.sgd(rate), optax.sgd(1.0)),
    [0.01, 0.2],
    metrics=METRICS,
  )
  *_, record = fa.simulate(sweep, rounds=2)
  for g in range(2):
    params = jax.tree.map(lambda leaf, g=g: leaf[g], record.state.params)
    for name, value in classifier().evaluate(params).items():
      assert record.test[name][g] == pytest.approx(value, rel=1e-6)


def centred(variables, batch, context):
  """Returns a model's outputs for x minus the mean of the unmasked rows."""
  del context
  real = batch.mask[:, None]
  count = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
  mean = jnp.sum(jnp.where(real, batch.x, 0.0), axis=0) / count
  params, state = variables
  state = {'mean': 0.5 * state['mean'] + 0.5 * mean}
  return (batch.x - mean[None]) @ params['w'], state


def with_state(state_of='everybody'):
  """Subtracts the running mean of its inputs, as BatchNorm does."""
  return linear(
    init=lambda key: fa.Variables(
      {'w': jnp.full((2, 1), 0.1)}, {'mean': jnp.zeros(2)}
    ),
    apply=lambda variables, x: (
      (x - variables.state['mean'][None]) @ variables.params['w']
    ),
    train=centred,
    state_of=state_of,
  )


@pytest.mark.parametrize('on', rest_slow(1, ['device', 'host']))
@pytest.mark.parametrize('state_of', ['everybody', 'client', 'nobody'])
def test_state_that_is_not_trained(state_of, on):
  """The twin has short last minibatches and a client of one example."""
  clients, test = population(noisy)
  simulation = fa.build_simulation(
    with_state(state_of),
    fa.Federation(
      clients, test, client_fraction=0.7, epochs=2, batch_size=2, seed=5
    ),
    fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
    loss=fa.losses.squared_error,
    execution=fa.Execution(lanes=2),
    placement=fa.Placement(client_states_on=on),
  )
  *_, record = fa.simulate(simulation, rounds=3)
  w, mean = np.full((2, 1), 0.1), np.zeros(2)
  kept = [np.zeros(2) for _ in SIZES]
  for number in (1, 2, 3):
    cohort = simulation.planner.cohort(number)
    sizes = clients.num_examples[cohort]
    new_w, new_mean = np.zeros_like(w), np.zeros(2)
    for share, k in zip(sizes / sizes.sum(), cohort, strict=True):
      local, own = w.copy(), kept[k] if state_of == 'client' else mean
      for rows in batches(simulation, number, k):
        x, y = (
          test.x[clients.offsets[k] + rows],
          test.y[clients.offsets[k] + rows],
        )
        centre = x.mean(axis=0)
        residual = (x - centre) @ local - y
        local -= ETA * 2 * (x - centre).T @ residual / len(rows)
        own = 0.5 * own + 0.5 * centre
      kept[k] = own
      new_w += share * local
      new_mean += share * own
    w, mean = new_w, mean if state_of == 'nobody' else new_mean
  np.testing.assert_allclose(record.state.params['w'], w, rtol=1e-4)
  np.testing.assert_allclose(
    record.state.model_state['mean'], mean, rtol=1e-4, atol=1e-7
  )
  expected = np.mean(((test.x - mean) @ w - test.y) ** 2)
  assert record.test['loss'] == pytest.approx(expected, rel=1e-4)
  if state_of == 'client':
    states = record.client_states
    if on == 'host':
      states = states.gather(np.arange(3))
    np.testing.assert_allclose(
      states.model_state['mean'], kept, rtol=1e-4, atol=1e-7
    )


def dropout(variables, batch, context):
  keep = jax.random.bernoulli(context.key, 0.5, batch.x.shape)
  return jnp.where(keep, 2 * batch.x, 0.0) @ variables['w'], ()


def test_dropout_keys_depend_on_client_and_batch_alone():
  """The model is the same under any lanes, but not that without dropout."""
  own = linear(train=dropout)
  models = [
    build(own, noisy, loss=fa.losses.squared_error, lanes=lanes)
    for lanes in (1, 2)
  ]
  one, other = (
    list(fa.simulate(simulation, rounds=3))[-1].state.params['w']
    for simulation in models
  )
  np.testing.assert_allclose(one, other, rtol=1e-6)
  without = list(fa.simulate(plain(), rounds=3))[-1].state.params['w']
  assert np.abs(np.asarray(one) - np.asarray(without)).max() > 1e-3


def test_examples_are_clipped_one_by_one():
  """Each example's gradient has a norm of at most 0.5, as in NumPy."""

  def clipped(loss_fn, params, batch, context):
    del context
    losses, grads = fa.losses.per_example_gradients(loss_fn, params, batch)
    norms = jnp.sqrt(jnp.sum(grads['w'] ** 2, axis=(1, 2)))
    scale = jnp.minimum(1.0, 0.5 / jnp.maximum(norms, 1e-9))
    total = jnp.sum(grads['w'] * scale[:, None, None], axis=0)
    return losses, {'w': total / jnp.maximum(batch.size, 1).astype(jnp.float32)}

  algorithm = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))._replace(
    client_gradient=clipped
  )
  simulation = build(
    linear(), noisy, loss=fa.losses.squared_error, algorithm=algorithm
  )
  *_, record = fa.simulate(simulation, rounds=3)
  _, test = population(noisy)

  def gradient(w, rows):
    total = np.zeros_like(w)
    for row in rows:
      x, y = test.x[[row]], test.y[[row]]
      own = 2 * x.T @ (x @ w - y)
      total += own * min(1, 0.5 / np.linalg.norm(own))
    return total / len(rows)

  w = numpy_rounds(simulation, 3, gradient)
  np.testing.assert_allclose(record.state.params['w'], w, rtol=1e-5)


def test_a_gradient_written_out_is_the_default_one():
  def mean_gradient(loss_fn, params, batch, context):
    del context
    return fa.losses.mean_gradient(loss_fn, params, batch)

  algorithm = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))._replace(
    client_gradient=mean_gradient
  )
  written_out = build(
    linear(), noisy, loss=fa.losses.squared_error, algorithm=algorithm
  )
  one, other = (
    list(fa.simulate(simulation, rounds=2))[-1]
    for simulation in (plain(), written_out)
  )
  np.testing.assert_array_equal(one.state.params['w'], other.state.params['w'])
  assert one.train_loss == other.train_loss


def half(outputs, batch):
  return jnp.sum(outputs, axis=1)[: len(batch.y) // 2]


def bad_metric(**changes):
  return fa.metrics.squared_error()._replace(**changes)


@pytest.mark.parametrize(
  ('model', 'changes', 'said'),
  [
    (linear(), {'loss': half}, r'loss: returns float32\[1\] for a batch of 3'),
    (
      linear(),
      {'loss': lambda outputs, batch: jnp.argmax(outputs, axis=1)},
      'loss: returns int32, must be floating-point',
    ),
    (
      linear(2),
      {'loss': lambda outputs, batch: jnp.stack([outputs] * 2)},
      'loss: returns',
    ),
    (
      linear(),
      {'loss': lambda outputs, batch: outputs @ jnp.ones((7, 7))},
      'the model or the loss: fails on a batch',
    ),
    (
      linear(apply=lambda params, x: (x - x.mean(axis=0)[None]) @ params['w']),
      {},
      'depends on rows that batch.mask excludes',
    ),
    (
      linear(
        train=lambda v, batch, context: (
          batch.x @ v['w'],
          {'mean': batch.x.mean()},
        )
      ),
      {},
      'train returns the state',
    ),
    (
      linear(train=lambda v, batch, context: batch.x @ v['w']),
      {},
      'train returns .*, must return outputs and state',
    ),
    (
      with_state()._replace(train=None),
      {},
      'init.key. returns Variables with a state, which needs a `train`',
    ),
    (with_state('me'), {}, "state_of = 'me': must be one of everybody"),
    (linear(), {'metrics': []}, 'metrics: must hold at least one'),
    (linear(), {'metrics': ['loss']}, r'metrics\[0\]: is str, must be a Met'),
    (
      linear(),
      {'metrics': [bad_metric(rows=lambda outputs, batch: outputs.sum())]},
      r'metrics\[0\].rows: returns float32\[\] for a batch of 3',
    ),
    (
      linear(),
      {'metrics': [bad_metric(result=lambda sums: {})]},
      r'metrics\[0\].result: returns {}, must return a dictionary of num',
    ),
    (
      linear(),
      {'metrics': [bad_metric(result=lambda sums: {'a': np.ones(3)})]},
      'must be one number with a string as its key',
    ),
    (
      linear(),
      {'metrics': [bad_metric(), bad_metric()]},
      'metrics: the names .* must differ',
    ),
    (
      linear(),
      {'loss': fa.losses.cross_entropy},
      'clients.y: has the shape',
    ),
  ],
)
def test_functions_that_do_not_fit(model, changes, said):
  with pytest.raises(InputError, match=said):
    build(model, noisy, **({'loss': fa.losses.squared_error} | changes))


def test_targets_of_train_and_test_must_be_alike():
  clients, test = population(noisy)
  wrong = fa.Examples(test.x, test.y[:, 0])
  with pytest.raises(
    InputError, match=r'test.y: expected .* as in clients.y, got float32\[\]'
  ):
    simulations.build_simulation(
      linear(),
      clients,
      wrong,
      algorithm=fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
      client_fraction=1.0,
      epochs=1,
      batch_size=2,
      loss=fa.losses.squared_error,
    )
