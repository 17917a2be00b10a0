"""Regression and multi-label runs are compared with plain NumPy."""

import importlib
import itertools
import json

import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import builders
from fedavg_jax.runs import compare
from fedavg_jax.runs import given
from fedavg_jax.runs import grid
from fedavg_jax.runs import run_config
from fedavg_jax.runs import train
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.targets import Measure
from tests.testing import own_modules
from tests.testing import twin
from tests.testing.run_folders import lines
from tests.testing.run_folders import png_size

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')

MODULE = """
import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa


def _dataset(name, y_of):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(44, 2)).astype(np.float32)
    y = y_of(rng, x)
    return fa.Dataset(name, fa.Examples(x[:20], y[:20]),
                      fa.Examples(x[20:], y[20:]), 1, None)


def numbers():
    return _dataset('numbers', lambda rng, x: (
        x @ [[1.0], [-2.0]] + rng.normal(size=(44, 1))).astype('f4'))


def tags():
    return _dataset('tags', lambda rng, x: (
        x + rng.normal(size=x.shape) > 0).astype(np.int32))


def linear(dataset):
    shape = 2, dataset.train.y.shape[1]
    return fa.Model('linear', lambda key: {'w': jnp.full(shape, 0.1)},
                    lambda params, x: x @ params['w'])


def huber(dataset, delta):
    def loss(outputs, batch):
        apart = jnp.abs(outputs - batch.y)[:, 0]
        far = delta * (apart - delta / 2)
        return jnp.where(apart < delta, apart**2 / 2, far)
    return loss


def largest(dataset, name):
    def rows(outputs, batch):
        return fa.metrics.Ratio(jnp.abs(outputs)[:, 0], jnp.ones(len(batch.y)))
    return fa.metrics.ratio(name, rows, lower_is_better=True)


def both(dataset):
    return [fa.metrics.squared_error(), largest(dataset, 'size')]


def nothing(dataset):
    return None


def empty(dataset):
    return fa.metrics.squared_error()._replace(result=lambda sums: {})
"""
SIZES = '1,7,5,7'  # With B = 3: short minibatches, and a client of one example.
RATE = 0.3


@pytest.fixture(scope='module')
def module(tmp_path_factory):
  folder = tmp_path_factory.mktemp('modules')
  with own_modules.importable(folder, MODULE) as name:
    yield name


def settings(module, data='numbers', **changes):
  config = run_config.default_config()
  config.dataset, config.model = f'{module}:{data}', f'{module}:linear'
  config.loss, config.metrics = 'squared_error', 'squared_error'
  config.partition, config.sizes, config.num_clients = 'iid', SIZES, 4
  config.client.batch_size, config.client.epochs = 3, 2
  config.client.learning_rate, config.rounds, config.seed = RATE, 6, 5
  config.checkpoint.rounds, config.checkpoint.keep = 1, 9
  config.update_from_flattened_dict(changes)
  return config


def squared_gradient(w, x, y):
  return 2 * x.T @ (x @ w - y) / len(x)


def binary_gradient(w, x, y):
  return x.T @ (1 / (1 + np.exp(-x @ w)) - y) / y.size


def numpy_run(config, gradient):
  """Returns the run's parts, and w after each round in plain NumPy."""
  cfg = run_config.read(config)
  prepared = builders.prepare(cfg)
  clients = prepared.clients
  planner = fa.engine.Planner(
    num_examples=clients.num_examples,
    cohort_size=2,
    epochs=2,
    batch_size=3,
    seed=5,
  )
  outputs = prepared.dataset.train.y.shape[1]
  models = twin.linear_rounds(
    clients, planner, np.full((2, outputs), 0.1), gradient, RATE
  )
  return prepared, list(itertools.islice(models, cfg.rounds + 1))


def squared_error(examples, w):
  return float(np.mean((examples.x @ w - examples.y) ** 2))


def macro_f1(y, logits):
  hits = ((logits > 0) & (y == 1)).sum(axis=0)
  both = (logits > 0).sum(axis=0) + (y == 1).sum(axis=0)
  return float(np.mean(2 * hits / np.maximum(both, 1)))


def timeless(folder):
  return [record | {'seconds': 0} for record in lines(folder)]


@pytest.fixture(scope='module')
def regression(module, tmp_path_factory):
  """Trains with squared errors; returns the folder, models and errors."""
  folder = tmp_path_factory.mktemp('runs') / 'run'
  train.train(settings(module), folder)
  prepared, models = numpy_run(settings(module), squared_gradient)
  return (
    folder,
    models,
    [squared_error(prepared.dataset.test, w) for w in models],
  )


def test_a_regression_run_is_that_of_numpy(regression):
  folder, models, errors = regression
  found = [record['test_squared_error'] for record in lines(folder)]
  np.testing.assert_allclose(found, errors, rtol=1e-4)
  best = int(np.argmin(errors))
  assert 0 < best < 6  # Neither the first nor the last model.
  summary = json.loads((folder / 'summary.json').read_text())
  assert summary['best_test_squared_error'] == found[best]
  assert summary['final_test_squared_error'] == found[-1]
  assert 'best_test_accuracy' not in summary
  params = fa.load_params(folder, best=True)
  np.testing.assert_allclose(params['w'], models[best], rtol=1e-4)
  assert png_size(folder / 'curves.png') == (960, 720)
  assert (folder / 'partition.png').exists()


def test_a_resumed_run_with_a_target_has_the_same_bits(
  module, regression, tmp_path
):
  unbroken, _, errors = regression
  best = int(np.argmin(errors))
  target = (min(errors) + min(errors[:best])) / 2
  own = settings(module, target=target, rounds=2)
  train.train(own, tmp_path / 'run')
  own.rounds = 6
  summary = train.train(own, tmp_path / 'run', extend=True)
  assert summary['status'] == 'target reached'
  assert summary['rounds'] == summary['rounds_to_target'] == best > 2
  assert summary['target_squared_error'] == target
  assert timeless(tmp_path / 'run') == timeless(unbroken)[: best + 1]
  one, other = (
    fa.load_params(path, best=True) for path in (tmp_path / 'run', unbroken)
  )
  np.testing.assert_array_equal(one['w'], other['w'])
  # The run has finished: the same call trains nothing.
  assert train.train(own, tmp_path / 'run', extend=True) == summary


@pytest.mark.slow
def test_comparison_and_sweep_prefer_the_smallest(module, regression, tmp_path):
  folder, _, errors = regression
  goal = sorted(errors)[1] * 1.001
  jobs = grid.run_sweep(
    settings(module, target=goal),
    {'client.learning_rate': ['0.001', str(RATE)]},
    1,
    tmp_path / 'sweep',
    choose_on='test',
  )
  text = (tmp_path / 'sweep' / 'table.md').read_text()
  first = next(i for i, error in enumerate(errors) if error <= goal)
  assert f'Best: client.learning_rate={RATE}, fewest rounds to {goal:g}' in text
  (winner,) = [line for line in text.splitlines() if line.endswith(' * |')]
  assert f'| {first} | 1 |' in winner
  runs = [compare.read_run(path) for path in (folder, jobs[0].folder)]
  compare.check_same_data(runs)
  main, little = (compare.row(run, goal) for run in runs)
  assert main['to_target'] == first and little['to_target'] is None
  assert main['best'] == pytest.approx(min(errors), rel=1e-4)
  assert little['best'] == little['last'] < errors[0]  # It decreases slowly.
  table = compare.table([main, little], goal, runs[0].measure)
  assert f'{min(errors):.4g}' in table and 'best squared_error' in table
  compare.draw(tmp_path / 'two.png', {r.name: [r] for r in runs}, goal)
  other = runs[1]._replace(measure=Measure())
  with pytest.raises(InputError, match='is judged by accuracy, not by squared'):
    compare.check_same_data([runs[0], other])
  compare.check_target('--target', 9.0, runs[0].measure)
  with pytest.raises(InputError, match=r'--target 9.0: must be in .0, 1'):
    compare.check_target('--target', 9.0, Measure())
  # Without a target, the smallest mean of the best values wins.
  grid.run_sweep(
    settings(module),
    {'client.learning_rate': ['0.001', str(RATE)]},
    1,
    tmp_path / 'plain',
    choose_on='test',
  )
  text = (tmp_path / 'plain' / 'table.md').read_text()
  assert 'best squared_error: mean' in text
  assert f'Best: client.learning_rate={RATE}, lowest mean of the best' in text
  assert 'the best squared_error is the minimum over the rounds' in text


def test_several_labels_of_an_example_and_their_f1(module, tmp_path):
  config = settings(
    module,
    'tags',
    loss='binary_cross_entropy',
    metrics='macro_f1, loss',
    rounds=3,
    holdout_fraction=0.3,
    client_eval_every=3,
    validation_fraction=0.2,
  )
  summary = train.train(config, tmp_path / 'run')
  prepared, models = numpy_run(config, binary_gradient)
  found = lines(tmp_path / 'run')
  x, y = prepared.validation
  for w, record in zip(models, found, strict=True):
    assert record['validation_macro_f1'] == pytest.approx(macro_f1(y, x @ w))
    z = x @ w
    loss = np.mean(np.log1p(np.exp(z)) - y * z)
    assert record['validation_loss'] == pytest.approx(loss, rel=1e-4)
  test = prepared.dataset.test
  assert summary['final_test_macro_f1'] == pytest.approx(
    macro_f1(test.y, test.x @ models[-1])
  )
  assert summary['best_validation_macro_f1'] == max(
    record['validation_macro_f1'] for record in found
  )
  own = []  # Clients that hold something out.
  held = prepared.held
  for first, stop in itertools.pairwise(held.offsets):
    if stop > first:
      rows = slice(first, stop)
      own.append(macro_f1(held.y[rows], held.x[rows] @ models[-1]))
  assert 0 < len(own) < 4
  assert found[-1]['client_macro_f1_mean'] == pytest.approx(np.mean(own))
  header, *_ = (tmp_path / 'run' / 'clients.csv').read_text().splitlines()
  assert header == 'client,train_examples,held_out,client_macro_f1,client_loss'
  assert png_size(tmp_path / 'run' / 'clients.png') == (960, 840)


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def objects(module):
  mine = importlib.import_module(module)
  dataset = mine.numbers()
  return {
    'dataset': dataset,
    'model': mine.linear(dataset),
    'algorithm': fa.fedavg(optax.sgd(RATE), optax.sgd(1.0)),
    'loss': mine.huber(dataset, 0.5),
    'metrics': [fa.metrics.squared_error(), mine.largest(dataset, 'size')],
  }


@pytest.mark.slow
def test_losses_of_one_maker_are_not_compared(module, tmp_path):
  """What they compute differs, though their functions have one name."""
  runs = []
  for i, delta in enumerate((0.5, 0.5, 5.0)):
    config = settings(module, rounds=1, metrics='')
    parts = objects(module)
    parts['loss'] = importlib.import_module(module).huber(None, delta)
    del parts['metrics']
    fa.train(config, tmp_path / str(i), **parts)
    runs.append(compare.read_run(tmp_path / str(i)))
  compare.check_same_data(runs[:2])
  with pytest.raises(InputError, match='has another test than .*: loss = '):
    compare.check_same_data(runs)


def test_objects_are_the_same_run_as_names(module, tmp_path):
  config = settings(module, loss=f'{module}:huber', rounds=4)
  config.metrics = f'squared_error,{module}:largest'
  config.options.loss.delta = 0.5
  config.options.metrics.name = 'size'
  train.train(config, tmp_path / 'names')
  plain = run_config.default_config()
  for name in ('partition', 'sizes', 'num_clients', 'seed'):
    plain[name] = config[name]
  plain.client, plain.checkpoint = config.client, config.checkpoint
  plain.rounds = 2
  folder = tmp_path / 'objects'
  fa.train(plain, folder, **objects(module))
  plain.rounds = 4
  fa.train(plain, folder, extend=True, **objects(module))
  assert timeless(folder) == timeless(tmp_path / 'names')
  assert {'test_squared_error', 'test_size'} <= lines(folder)[-1].keys()
  began = json.loads((folder / 'config.json').read_text())
  assert {k: began['config'][k] for k in run_config.OWN_PARTS} == {
    'dataset': 'from Python: numbers',
    'model': f'from Python: {module}.linear',
    'algorithm': 'from Python: fedavg_jax.algorithms.fedavg.fedavg',
    'loss': f'from Python: {module}.huber',
    'metrics': (
      'from Python: fedavg_jax.contracts.metrics.squared_error,'
      f' {module}.largest'
    ),
  }
  names = json.loads((tmp_path / 'names' / 'config.json').read_text())
  sha256 = began['own_code_sha256'][module]
  assert sha256 == names['own_code_sha256'][module] and len(sha256) == 64

  compare.check_same_data(
    [compare.read_run(tmp_path / name) for name in ('objects', 'names')]
  )

  def refused(said, *, config=plain, **parts):
    before = contents(folder)
    with pytest.raises(InputError, match=said) as raised:
      fa.train(config, folder, extend=True, **parts)
    assert '\n' not in str(raised.value)
    assert contents(folder) == before

  refused('was given its dataset, model, .*metrics from Python; no command')
  kept = json.loads((folder / 'config.json').read_text())['config']
  refused(
    "dataset = 'from Python: numbers': was given from Python",
    config=run_config.from_dict(kept),
  )
  other = objects(module) | {'loss': fa.losses.squared_error}
  refused("loss = 'from Python: fedavg_jax.*squared_error' .was", **other)
  plain.rounds = 5
  rate = fa.fedavg(optax.sgd(0.7), optax.sgd(1.0))
  refused(
    'algorithm: computes something else than when the run began',
    **objects(module) | {'algorithm': rate},
  )
  began['own_code_sha256'][module] = 64 * '0'
  (folder / 'config.json').write_text(json.dumps(began))
  refused(f'{module}: its code is not that', **objects(module))


@pytest.mark.slow
def test_programs_of_another_platform_are_not_compared(module, tmp_path):
  """There the same functions are other programs, as with other versions."""
  config, folder = settings(module, rounds=2, metrics=''), tmp_path / 'run'
  fa.train(config, folder, **objects(module))
  config.rounds = 3
  path = folder / 'config.json'
  began = json.loads(path.read_text())
  other = dict.fromkeys(began['from_python_sha256'], 64 * '0')
  began |= {'from_python_sha256': other, 'platform': 'gpu'}
  path.write_text(json.dumps(began))
  assert fa.train(config, folder, extend=True, **objects(module))['rounds'] == 3


@pytest.mark.parametrize(
  ('algorithm', 'names'),
  [
    (fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)), ['fedavg.fedavg']),
    (
      fa.fedprox(0.1, optax.sgd(0.1), optax.sgd(1.0)),
      ['fedprox.proximal', 'fedavg.fedavg'],
    ),
    (fa.scaffold(0.1, 1.0), ['scaffold.scaffold']),
  ],
)
def test_an_algorithm_has_the_name_of_its_makers(algorithm, names):
  cfg = given.named(RunConfig(), given.Given(algorithm=algorithm))
  expected = ', '.join(f'fedavg_jax.algorithms.{name}' for name in names)
  assert cfg.algorithm == f'from Python: {expected}'
  assert cfg.replace({'algorithm': 'fedavg'}) == RunConfig()


@pytest.mark.parametrize(
  ('parts', 'said'),
  [
    ({'model': 3}, 'model: is int, must be an fa.Model'),
    ({'dataset': 'digits'}, 'dataset: is str, must be an fa.Dataset'),
    ({'loss': 'huber'}, 'loss: is str, must be a function'),
    ({'metrics': []}, 'metrics: must hold at least one'),
    ({'metrics': ['loss']}, r'metrics.0.: is str, must be an fa.Metric'),
  ],
)
def test_invalid_objects_are_refused(tmp_path, parts, said):
  with pytest.raises(InputError, match=said):
    fa.train(RunConfig(), tmp_path / 'run', **parts)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'loss': 'squared_eror'}, 'loss = .*must be empty, one of .*did you mean'),
    ({'metrics': 'acuracy'}, "'acuracy' must be one of .*mean accuracy"),
    ({'metrics': 'loss,top_k'}, "'top_k' must be one of .* top_1, top_2"),
    ({'metrics': 'loss, loss'}, 'must name each metric once'),
    ({'metrics': 'a:b,c:d'}, 'must name one module:function at most'),
    ({'options': {'loss': {'delta': 1}}}, 'options.loss: must be empty with'),
    ({'options': {'metrics': {'k': 1}}, 'metrics': 'loss'}, 'options.metrics'),
    ({'target': 0.5, 'target_accuracy': 0.5}, 'target = 0.5: must be 0 with'),
  ],
)
def test_invalid_words_are_refused(changes, said):
  with pytest.raises(InputError, match=said):
    RunConfig(**changes)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'loss': '', 'metrics': ''}, "loss = '': is cross entropy, which needs"),
    ({'loss': 'MINE:numbers'}, "loss = '.*': fails .TypeError"),
    ({'loss': 'MINE:nothing'}, "loss = '.*returns NoneType, must return a C"),
    ({'metrics': 'MINE:nothing'}, 'metrics = .*returns NoneType'),
    ({'metrics': 'MINE:empty'}, r'metrics.0..result: returns {}, must return'),
    ({'metrics': 'macro_f1'}, 'metrics: macro_f1 needs logits .* class numb'),
    ({'metrics': 'accuracy'}, 'metrics: accuracy needs logits .* class numb'),
    ({'metrics': 'loss,MINE:none'}, 'metrics = .*: must be module:function'),
    ({'target_accuracy': 0.9}, 'target_accuracy = 0.9: must be 0 where small'),
    (
      {'metrics': 'macro_f1', 'target': 2.0},
      r'target = 2.0: must be in .0, 1',
    ),
    ({'partition': 'shards'}, "partition = 'shards': needs one label per"),
  ],
)
def test_objectives_that_do_not_fit_are_refused(
  module, tmp_path, changes, said
):
  changes = {
    k: v.replace('MINE', module) if isinstance(v, str) else v
    for k, v in changes.items()
  }
  with pytest.raises(InputError, match=said) as raised:
    train.train(settings(module, **changes), tmp_path / 'run')
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('key', 'metrics'),
  [('metrics', ''), ('loss', ''), ('loss', 'loss, accuracy')],
)
def test_a_sweep_has_one_measure(tmp_path, key, metrics):
  """Each run's own loss is not the measure, even where names are equal."""
  base = RunConfig().replace({'metrics': metrics})
  with pytest.raises(InputError, match=f'--grid {key}: the runs of a sweep'):
    grid.run_sweep(base, {key: ['loss']}, 1, tmp_path / 'sweep')


@pytest.mark.slow
def test_runs_of_other_losses_are_compared_by_another_measure(module, tmp_path):
  """Two losses have the same name in the lines; another metric serves both."""

  def folders(metrics, *losses):
    for loss in losses:
      name = f'{metrics}_{loss}'.replace(':', '_')
      config = settings(module, loss=loss, metrics=metrics, rounds=1)
      if ':' in loss:
        config.options.loss.delta = 0.5
      train.train(config, tmp_path / name)
      yield compare.read_run(tmp_path / name)

  losses = 'squared_error', f'{module}:huber'
  for metrics in ('', 'loss'):
    runs = list(folders(metrics, *losses))
    with pytest.raises(InputError, match='another test than .*: loss = .*hub'):
      compare.check_same_data(runs)
    compare.check_same_data([runs[0], runs[0]])
  compare.check_same_data(list(folders('squared_error', *losses)))


def test_values_that_are_not_finite_are_no_results():
  measure = Measure('loss', lower_is_better=True)
  records = [
    {'round': i, 'test_loss': value}
    for i, value in enumerate([None, 4.0, float('inf'), 2.0, 3.0])
  ]
  assert [measure.of(record) for record in records] == [None, 4, None, 2, 3]
  assert measure.crossings(records, 3.5) == (3, None)  # Round 2 is missing.
  assert measure.crossings(records, 1.0) == (None, None)
  assert measure.best([4.0, 2.0, 3.0]) == 2.0
  assert np.isnan(measure.best([]))
