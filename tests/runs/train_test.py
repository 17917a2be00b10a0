"""A run in this process computes its results and writes them to a folder."""

import json
import pathlib
import signal

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.engine import client_evaluation
from fedavg_jax.runs import builders
from fedavg_jax.runs import grid
from fedavg_jax.runs import loggers
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import plots
from fedavg_jax.runs import run_config
from fedavg_jax.runs import train
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from tests.testing import results
from tests.testing.run_folders import lines
from tests.testing.run_folders import load
from tests.testing.run_folders import png_size
from tests.testing.run_folders import signal_after

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns a short run's config, summary and folder."""
  repository = pathlib.Path(__file__).parents[2]
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  config = load(repository, 'quickstart', pictures=True, rounds=5, eval_every=2)
  return config, train.train(config, workdir), workdir


def test_metrics_lines(finished):
  _, _, workdir = finished
  records = lines(workdir)
  assert [r['round'] for r in records] == [0, 1, 2, 3, 4, 5]
  for record in records:
    assert {'round', 'train_loss', 'seconds', 'examples'} <= record.keys()
    evaluated = record['round'] in (0, 2, 4, 5)  # Always the last one.
    assert ('test_accuracy' in record) == evaluated
    assert ('test_loss' in record) == evaluated
  assert records[0]['train_loss'] is None and records[0]['examples'] == 0
  assert all(r['examples'] == 5 * 25 * 30 for r in records[1:])  # E m n_k
  assert records[-1]['train_loss'] < records[1]['train_loss']


def test_summary(finished):
  _, summary, workdir = finished
  assert summary == json.loads((workdir / 'summary.json').read_text())
  tested = [r['test_accuracy'] for r in lines(workdir) if 'test_loss' in r]
  assert summary['final_test_accuracy'] == tested[-1]
  assert summary['best_test_accuracy'] == max(tested)
  assert summary['rounds_to_target'] is None
  assert summary['status'] == 'finished' and summary['rounds'] == 5
  assert summary['updates_per_round'] == 15.0  # u = E n / (K B)
  assert summary['parameters'] == 64 * 200 + 200 + 200 * 201 + 10 * 201
  seconds = sum(r['seconds'] for r in lines(workdir))
  assert summary['rounds_per_second'] == pytest.approx(5 / seconds)
  assert summary['compile_seconds'] > 0
  assert (summary['devices'], summary['lanes']) == (2, 2)


def test_config_json_has_versions_and_device(finished):
  config, _, workdir = finished
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['config'] == run_config.read(config).to_dict()
  assert saved['versions']['jax'] == jax.__version__
  assert (saved['platform'], saved['num_devices']) == ('cpu', 2)


def test_pictures(finished):
  _, _, workdir = finished
  assert png_size(workdir / 'curves.png') == (960, 720)
  assert png_size(workdir / 'partition.png') == (1200, 840)


def test_the_final_model_loads_and_gives_the_same_accuracy(finished):
  _, summary, workdir = finished
  params = fa.load_params(workdir)
  data = fa.load_dataset('digits')
  model = fa.build_model('2nn', data)
  logits = model.apply(params, data.test.x)
  accuracy = float(np.mean(np.argmax(logits, axis=1) == data.test.y))
  assert accuracy == pytest.approx(summary['final_test_accuracy'])
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    fa.load_params(workdir / 'nowhere')


def test_same_config_same_bits(finished, tmp_path):
  config, _, workdir = finished
  train.train(config, tmp_path / 'again')
  for a, b in zip(lines(workdir), lines(tmp_path / 'again'), strict=True):
    assert {**a, 'seconds': 0} == {**b, 'seconds': 0}
  jax.tree.map(
    np.testing.assert_array_equal,
    fa.load_params(workdir),
    fa.load_params(tmp_path / 'again'),
  )


@pytest.mark.slow
def test_tests_of_clients_do_not_change_the_rounds(repository, tmp_path):
  config = load(
    repository,
    'quickstart',
    pictures=True,
    rounds=7,
    holdout_fraction=0.2,
    client_eval_every=3,
    finetune_epochs=1,
  )
  train.train(config, tmp_path / 'whole')
  records = lines(tmp_path / 'whole')
  assert [r['round'] for r in records if 'client_accuracy_mean' in r] == [
    *(0, 3, 6, 7)  # And the last.
  ]
  for record in (records[0], records[7]):
    assert record['client_tested'] == record['personal_tested'] == 50
    for name in ('client', 'personal'):
      worst, few, middle = (
        record[f'{name}_accuracy_{what}']
        for what in ('worst_tenth', 'p10', 'p50')
      )
      assert 0 <= worst <= few <= middle <= 1
  # Six examples of each client: after training it knows its two digits.
  assert records[0]['personal_accuracy_mean'] > 0.5
  assert records[0]['client_accuracy_mean'] < 0.3
  rows = (tmp_path / 'whole' / 'clients.csv').read_text().splitlines()
  assert len(rows) == 51
  assert png_size(tmp_path / 'whole' / 'clients.png') == (960, 840)
  # The same bits are trained without tests of clients.
  config.client_eval_every = config.finetune_epochs = 0
  train.train(config, tmp_path / 'plain')
  for a, b in zip(
    *(
      jax.tree.leaves(fa.load_params(tmp_path / name))
      for name in ('whole', 'plain')
    ),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_trace_is_part_of_the_data(repository, tmp_path):
  trace = tmp_path / 'trace.csv'
  everybody = ''.join(f'{k},1,9\n' for k in range(50))
  trace.write_text('client,first,last\n' + everybody)
  config = load(
    repository, 'quickstart', rounds=2, availability_trace=str(trace)
  )
  train.train(config, tmp_path / 'run')
  trace.write_text('client,first,last\n0,1,9\n')
  config.rounds = 4
  with pytest.raises(InputError, match='other clients or examples|data'):
    train.train(config, tmp_path / 'run', extend=True)
  trace.write_text('client,first,last\n' + everybody)
  train.train(config, tmp_path / 'run', extend=True)


@pytest.mark.slow
def test_skipped_clients_are_not_in_the_mean(repository, tmp_path):
  config = load(
    repository,
    'quickstart',
    **{'rounds': 1, 'on_nan': 'skip_client', 'client.learning_rate': 1e25},
  )
  train.train(config, tmp_path / 'run')
  line = lines(tmp_path / 'run')[1]
  assert (line['clients'], line['skipped']) == (0, 25)
  assert line['bytes_up'] == 25 * 4 * 55210


@pytest.mark.slow
def test_client_tests_that_a_kill_lost_are_made_again(
  repository, tmp_path, monkeypatch
):
  config = load(
    repository,
    'quickstart',
    pictures=True,
    **{'rounds': 4, 'holdout_fraction': 0.2, 'client_eval_every': 2},
    **{'checkpoint.rounds': 4, 'log': 'csv'},
  )

  def dies(*args, **kwargs):
    raise MemoryError('killed')

  # One after another, in the order of writing.
  for owner, name, not_there in (
    (loggers._Csv, 'close', 'metrics.csv'),
    (client_evaluation, 'write_csv', 'clients.csv'),
    (plots, 'draw_clients', 'clients.png'),
    (plots, 'draw_curves', 'curves.png'),
    (Workdir, 'summary', 'summary.json'),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, dies)
      with pytest.raises(MemoryError):
        train.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run' / not_there).exists()
    assert not (tmp_path / 'run' / 'summary.json').exists()
  train.train(config, tmp_path / 'run')
  train.train(config, tmp_path / 'alone')
  for folder in ('run', 'alone'):
    names = {path.name for path in (tmp_path / folder).iterdir()}
    assert names == {
      *('.lock', 'checkpoints', 'clients.csv', 'clients.png', 'config.json'),
      *('curves.png', 'metrics.csv', 'metrics.jsonl', 'partition.png'),
      'summary.json',
    }


def test_stops_at_the_target(repository, tmp_path):
  config = load(repository, 'quickstart', rounds=60, target_accuracy=0.5)
  summary = train.train(config, tmp_path / 'run')
  assert summary['status'] == 'target reached'
  assert summary['rounds'] == summary['rounds_to_target'] < 60
  assert summary['final_test_accuracy'] >= 0.5
  assert lines(tmp_path / 'run')[-1]['round'] == summary['rounds']
  assert not list((tmp_path / 'run').glob('*.png'))  # None was requested.


def test_divergence_stops_and_saves(repository, tmp_path):
  config = load(
    repository, 'quickstart', rounds=9, **{'client.learning_rate': 1e30}
  )
  with pytest.raises(
    DivergedError, match=r'round 1: .*client.learning_rate or .*1e\+30'
  ):
    train.train(config, tmp_path / 'run')
  records = lines(tmp_path / 'run')
  assert [r['round'] for r in records] == [0, 1]
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['status'] == 'diverged'
  for leaf in jax.tree.leaves(fa.load_params(tmp_path / 'run')):
    assert np.isfinite(leaf).all()


def test_an_interrupted_run_is_saved(repository, tmp_path, monkeypatch):
  signal_after(monkeypatch, 2, signal.SIGTERM)
  with pytest.raises(
    InterruptedRunError, match='round . is saved; the same command'
  ):
    train.train(load(repository, 'quickstart'), tmp_path / 'run')
  numbers = [r['round'] for r in lines(tmp_path / 'run')]
  assert numbers == list(range(len(numbers))) and 2 < len(numbers) < 10
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert (summary['status'], summary['rounds']) == ('interrupted', numbers[-1])
  fa.load_params(tmp_path / 'run')


def test_an_existing_folder_is_not_touched(repository, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('mine')
  with pytest.raises(InputError, match='workdir = .*exists already'):
    train.train(load(repository, 'quickstart', rounds=1), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']
  assert (tmp_path / 'metrics.jsonl').read_text() == 'mine'


def test_bad_data_makes_no_folder(repository, tmp_path):
  config = load(repository, 'mnist_2nn', data_dir=str(tmp_path / 'nothing'))
  with pytest.raises(InputError, match='data_dir'):
    train.train(config, tmp_path / 'run')
  config = load(repository, 'quickstart', num_clients=1501)
  with pytest.raises(InputError, match='num_clients = 1501'):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('mnist_2nn', {}),
    ('mnist_2nn', {'partition': 'shards'}),
    ('mnist_cnn', {'client.epochs': 1, 'client_fraction': 0.02}),
    (
      'flower_mnist',
      {
        'partition': 'iid',
        'client.epochs': 1,
        'client_fraction': 0.02,
      },
    ),
  ],
)
def test_mnist_configs_shrunk(repository, tmp_path, mnist_dir, name, changes):
  """The files are real; the rounds and the work are fewer."""
  config = load(repository, name, rounds=2, data_dir=str(mnist_dir), **changes)
  summary = train.train(config, tmp_path / 'run')
  records = lines(tmp_path / 'run')
  assert summary['parameters'] in (199_210, 1_663_370)
  assert records[-1]['test_loss'] < records[0]['test_loss']
  per_client = 540 if name == 'flower_mnist' else 600
  cohort = max(int(config.client_fraction * 100), 1)
  assert records[-1]['examples'] == cohort * per_client * config.client.epochs


KNOBS = {
  'pixels': 'standard',
  'convolution': 'lax',
  'precision': 'bfloat16',
  'shards_per_client': 3,
  'num_clients': 40,
  'holdout_fraction': 0.2,
  'client_fraction': 0.25,
  'unavailable_fraction': 0.3,
  'weighting': 'uniform',
  'on_nan': 'skip_client',
  'algorithm': 'fedprox',
  'client.proximal': 0.7,
  'client.clip_norm': 2.0,
  'client.epochs': 3,
  'client.batch_size': 7,
  'client.learning_rate': 0.03,
  'client.shuffle': 'round',
  'server.optimizer': 'yogi',
  'server.learning_rate': 0.5,
  'server.momentum': 0.9,
  'server.second_momentum': 0.8,
  'server.adaptivity': 0.25,
  'seed': 5,
  'lanes': 6,
  'micro_batch': 4,
  'rounds_per_call': 3,
  'gpu_graphs': True,
  'deterministic': True,
}


@pytest.mark.slow
def test_every_option_reaches_the_run(repository, tmp_path, monkeypatch):
  """No option of the config has its default."""
  seen = {}
  build_model, build = fa.build_model, builders.build_simulation

  def spy_model(*args, **kwargs):
    seen.update(kwargs)
    return build_model(*args, **kwargs)

  def spy(model, federation, *args, **kwargs):
    seen['on_nan'] = federation.on_nan
    seen['simulation'] = build(model, federation, *args, **kwargs)
    return seen['simulation']

  monkeypatch.setattr(builders.zoo, 'build_model', spy_model)
  monkeypatch.setattr(builders, 'build_simulation', spy)
  config = load(repository, 'quickstart', rounds=1, **KNOBS)
  train.train(config, tmp_path / 'run')
  assert (seen['pixels'], seen['convolution']) == ('standard', 'lax')
  assert (seen['precision'], seen['on_nan']) == ('bfloat16', 'skip_client')
  simulation = seen['simulation']
  planner = simulation.planner
  assert (planner.epochs, planner.batch_size, planner.seed) == (3, 7, 5)
  assert (planner.shuffle, planner.lanes) == ('round', 6)
  assert planner.cohort_size == 10
  assert planner.participation.unavailable_fraction == 0.3
  assert (planner.weighting, planner.micro_batch) == ('uniform', 4)
  assert simulation.rounds_per_call == 3
  assert simulation.arithmetic == ('cpu', 'bfloat16', True, True)
  # 40 clients of 37 or 38, a fifth held out; three shards of 12 or 13 each.
  assert len(planner.num_examples) == 40
  assert set(planner.num_examples) <= {29, 30, 31, 32}
  dataset = fa.load_dataset('digits')
  labels = dataset.train.y
  expected, _ = fa.partition.hold_out(
    fa.partition.shards(labels, num_clients=40, shards_per_client=3, seed=5),
    fraction=0.2,
    seed=5,
  )
  clients = fa.build_clients(dataset.train, expected)
  np.testing.assert_array_equal(simulation.data([1]).x, clients.x)
  np.testing.assert_array_equal(simulation.data([1]).y, clients.y)


def message_of(algorithm, delta):
  """Returns a client's message with this delta, without client state."""
  return algorithm.client_finish(results.of_client(delta)).message


def test_algorithms_from_configs():
  """Each option has its effect in the algorithm, on plain numbers."""
  w = {'w': np.array([3.0, 4.0], np.float32)}
  zero = {'w': np.zeros(2, np.float32)}

  def build(**changes):
    return builders.build_algorithm(
      RunConfig().replace(
        {'client.learning_rate': 0.03, 'server.learning_rate': 0.5} | changes
      )
    )

  def server_step(algorithm, times=1):
    params, server = w, algorithm.server_init(w)
    for _ in range(times):
      params, server = algorithm.server_update(
        params, server, w, results.server_context()
      )
    return params['w'] - w['w']

  def client_step(algorithm):
    optimizer = algorithm.client_optimizer
    updates, _ = optax.with_extra_args_support(optimizer).update(
      w, optimizer.init(w), w, context=results.context(zero, number=5), step=0
    )
    return updates['w']

  np.testing.assert_allclose(client_step(build()), -0.03 * w['w'], rtol=1e-6)
  np.testing.assert_allclose(server_step(build()), 0.5 * w['w'], rtol=1e-6)
  np.testing.assert_allclose(
    server_step(build(**{'server.momentum': 0.9}), times=2),
    0.5 * 2.9 * w['w'],
    rtol=1e-6,
  )
  prox = build(algorithm='fedprox', **{'client.proximal': 0.7})
  np.testing.assert_allclose(client_step(prox), -0.03 * 1.7 * w['w'], rtol=1e-6)
  # Only fedprox uses mu.
  np.testing.assert_allclose(
    client_step(build(**{'client.proximal': 0.7})), -0.03 * w['w'], rtol=1e-6
  )
  clipped = message_of(build(**{'client.clip_norm': 2.0}), w)
  np.testing.assert_allclose(clipped['w'], [1.2, 1.6], rtol=1e-6)
  np.testing.assert_array_equal(message_of(build(), w)['w'], w['w'])
  adam = build(
    **{
      'server.optimizer': 'adam',
      'server.momentum': 0.9,
      'server.second_momentum': 0.8,
      'server.adaptivity': 0.25,
    }
  )
  v = 0.8 * 0.25**2 + 0.2 * w['w'] ** 2
  np.testing.assert_allclose(
    server_step(adam), 0.5 * 0.1 * w['w'] / (np.sqrt(v) + 0.25), rtol=1e-5
  )
  scaffold = build(algorithm='scaffold')
  server = scaffold.server_init(w)
  _, change = scaffold.client_finish(
    results.of_client(w, server=server, state=zero, num_updates=5)
  ).message
  np.testing.assert_allclose(change['w'], -w['w'] / (5 * 0.03), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'algorithm': 'scaffold', 'weighting': 'uniform'},
    {'algorithm': 'fedprox', 'client.proximal': 0.1},
    {
      'server.optimizer': 'yogi',
      'server.learning_rate': 0.01,
      'server.momentum': 0.9,
    },
    {'precision': 'bfloat16'},
    {'client.clip_norm': 1.0},
    {'client.batch_size': 0, 'client.learning_rate': 0.5, 'micro_batch': 7},
  ],
)
def test_quickstart_learns_with_every_algorithm(repository, tmp_path, changes):
  """After 30 rounds, the digits' error has halved."""
  config = load(repository, 'quickstart', rounds=30, eval_every=30, **changes)
  summary = train.train(config, tmp_path / 'run')
  assert summary['final_test_accuracy'] > 0.55


VALIDATED = {'rounds': 4, 'validation_fraction': 0.2, 'num_clients': 10}


def test_a_validation_set_is_part_of_the_training_examples(
  repository, tmp_path, monkeypatch
):
  """Other test labels change the last accuracy, and nothing else."""
  target = {'target_accuracy': 0.5, 'rounds': 30}
  config = load(repository, 'quickstart', **(VALIDATED | target))
  summary = train.train(config, tmp_path / 'run')
  records = lines(tmp_path / 'run')
  assert all('validation_accuracy' in record for record in records)
  assert not any('test_accuracy' in record for record in records)
  accuracies = [record['validation_accuracy'] for record in records]
  assert summary['best_validation_accuracy'] == max(accuracies)
  assert summary['final_validation_accuracy'] == accuracies[-1]
  # The last model, on a test set that was not used before.
  data = fa.load_dataset('digits')
  params = fa.load_params(tmp_path / 'run')
  predicted = fa.build_model('2nn', data).apply(params, data.test.x).argmax(1)
  assert summary['final_test_accuracy'] == (predicted == data.test.y).mean()
  # Every training example is a client's or for validation, none is both.
  prepared = builders.prepare(run_config.read(config))
  rows = np.concatenate([prepared.clients.x, prepared.validation.x])
  assert len(prepared.validation.y) == 300 and len(rows) == 1500
  order = [np.lexsort(x.reshape(1500, -1).T) for x in (rows, data.train.x)]
  np.testing.assert_array_equal(rows[order[0]], data.train.x[order[1]])
  other = data._replace(test=fa.Examples(data.test.x, (data.test.y + 1) % 10))
  monkeypatch.setattr(own_parts.catalog, 'load_dataset', lambda *args: other)
  summaries = [summary, train.train(config, tmp_path / 'other')]
  for a, b in zip(
    lines(tmp_path / 'run'), lines(tmp_path / 'other'), strict=True
  ):
    assert a | {'seconds': 0} == b | {'seconds': 0}
  assert summaries[0]['status'] == summaries[1]['status'] == 'target reached'
  accuracies = [summary['final_test_accuracy'] for summary in summaries]
  assert accuracies[0] > 0.4 > accuracies[1]


@pytest.mark.slow
def test_a_validation_set_resumed_and_in_a_sweep(repository, tmp_path):
  config = load(repository, 'quickstart', **VALIDATED)
  uninterrupted = train.train(config, tmp_path / 'whole')
  with config.unlocked():
    config.rounds = 2
  train.train(config, tmp_path / 'run')
  config.rounds = 4
  resumed = train.train(config, tmp_path / 'run', extend=True)
  for key in ('final_test_accuracy', 'best_validation_accuracy'):
    assert resumed[key] == uninterrupted[key]
  grid.run_sweep(
    config, {'client.learning_rate': ['0.1', '0.2']}, 1, tmp_path / 'grid'
  )
  path = tmp_path / 'grid' / 'client.learning_rate=0.1' / 'seed_0'
  swept = json.loads((path / 'summary.json').read_text())
  assert swept['final_test_accuracy'] == pytest.approx(
    uninterrupted['final_test_accuracy'], abs=0.02
  )
  table = (tmp_path / 'grid' / 'table.md').read_text()
  assert 'chosen on the validation set' in table
