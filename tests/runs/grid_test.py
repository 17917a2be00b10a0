"""A sweep's runs are those of single commands; tables compare them."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys

import filelock
import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.cli import sweep
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs import compare
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs import grid
from fedavg_jax.runs import grid_jobs
from fedavg_jax.runs import grid_report
from fedavg_jax.runs import grid_training
from fedavg_jax.runs import plots
from fedavg_jax.runs import run_config
from fedavg_jax.runs import summary
from fedavg_jax.runs import train
from fedavg_jax.runs.run_dir import FORMAT
from fedavg_jax.runs.targets import Measure
from tests.testing import conversions
from tests.testing.run_folders import lines
from tests.testing.run_folders import load
from tests.testing.run_folders import write_run

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')

GRID = {
  'client.learning_rate': ['0.05', '0.3'],
  'client.epochs': ['1', '2'],
}


def small(repository, **changes):
  own = {'rounds': 6, 'num_clients': 10, 'eval_every': 2}
  return load(repository, 'quickstart', **(own | changes))


def without_times(records):
  return [
    {k: v for k, v in record.items() if k != 'seconds'} for record in records
  ]


@pytest.fixture(scope='module')
def swept(tmp_path_factory, request):
  """Returns a sweep of four settings with two seeds: config, jobs, folder."""
  repository = request.config.rootpath
  folder = tmp_path_factory.mktemp('sweeps') / 'grid'
  config = small(repository)
  jobs = grid.run_sweep(config, GRID, 2, folder, choose_on='test')
  return config, jobs, folder


@pytest.mark.slow
def test_every_run_is_that_of_a_single_command(swept, tmp_path):
  config, jobs, _ = swept
  assert len(jobs) == 8
  for i, job in enumerate((jobs[1], jobs[6])):
    alone = tmp_path / str(i)
    train.train(job.cfg, alone)
    for own, other in zip(lines(job.folder), lines(alone), strict=True):
      assert own.keys() == other.keys()
      for key in own.keys() - {'seconds'}:
        same = other[key] and pytest.approx(other[key], rel=1e-5)
        assert own[key] == same, key
    for a, b in zip(
      jax.tree.leaves(fa.load_params(job.folder)),
      jax.tree.leaves(fa.load_params(alone)),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, atol=1e-6)
    joint, alike = (
      json.loads((folder / 'summary.json').read_text())
      for folder in (job.folder, alone)
    )
    assert joint.keys() == alike.keys()
    assert joint['parameters'] == alike['parameters']
    assert joint['status'] == alike['status'] == 'finished'
    # The folder is that of a finished run.
    assert train.train(job.cfg, job.folder) == joint


@pytest.mark.slow
def test_table_has_every_setting_and_the_best(swept, capsys):
  _, jobs, folder = swept
  text = (folder / 'table.md').read_text()
  settings = {job.name for job in jobs}
  assert len(settings) == 4
  best = {name: [] for name in settings}
  for job in jobs:
    summary = json.loads((job.folder / 'summary.json').read_text())
    best[job.name].append(summary['best_test_accuracy'])
  for name, own in best.items():
    (row,) = [line for line in text.splitlines() if f'| {name} |' in line]
    assert (
      f'| 2 | {np.mean(own):.4f} | {min(own):.4f} | {max(own):.4f} |' in row
    )
  winner = max(best, key=lambda name: np.mean(best[name]))
  assert f'Best: {winner}' in text
  assert (folder / 'sweep.png').read_bytes().startswith(b'\x89PNG')
  assert not (folder / 'parts').exists()


@pytest.mark.slow
def test_it_resumes_with_further_values_and_seeds(swept, tmp_path, monkeypatch):
  """Only missing runs are trained; the table has all runs."""
  config, _, folder = swept
  own = tmp_path / 'grid'
  shutil.copytree(folder, own)
  before = {p: p.read_bytes() for p in own.rglob('metrics.jsonl')}
  ran = []
  together, alone = grid_training.train_together, train.train

  def spy_together(jobs, *args):
    ran.append([job.name for job in jobs])
    together(jobs, *args)

  def spy_alone(*args):
    ran.append('alone')
    return alone(*args)

  monkeypatch.setattr(grid, 'train_together', spy_together)
  monkeypatch.setattr(train, 'train', spy_alone)
  values = {
    'client.epochs': ['1'],
    'client.learning_rate': ['0.3', '0.2', '0.1'],
  }
  jobs = grid.run_sweep(config, values, 1, own)
  assert ran == [
    [f'client.epochs=1, client.learning_rate={eta}' for eta in (0.2, 0.1)]
  ]
  assert len(jobs) == 10
  text = (own / 'table.md').read_text()
  rows = [line for line in text.splitlines() if 'client.epochs=' in line]
  assert len(rows) == 6
  ran.clear()
  swapped = dict(reversed(GRID.items()))  # The order differs, the runs do not.
  grid.run_sweep(config, swapped, 2, own)
  assert ran == []
  for path, content in before.items():
    assert path.read_bytes() == content


# The keys that differ within one sweep, and the rest of its configs.
KEYS = {
  'fedprox': (
    {
      'client.decay': ['0.5', '0.9'],
      'client.learning_rate': ['0.05', '0.3'],
      'client.proximal': ['0.1', '3.0'],
      'server.learning_rate': ['0.5', '1.5'],
    },
    {'algorithm': 'fedprox'},
  ),
  'adam': (
    {'server.second_momentum': ['0.5', '0.99']},
    {'server.optimizer': 'adam', 'server.learning_rate': 0.05},
  ),
  'yogi': (
    {'server.adaptivity': ['0.001', '0.1']},
    {'server.optimizer': 'yogi', 'server.learning_rate': 0.05},
  ),
  'feddyn': (
    {'client.regularization': ['0.05', '2.0']},
    {'algorithm': 'feddyn'},
  ),
  'qfedavg': ({'server.fairness': ['0.0', '5.0']}, {'algorithm': 'qfedavg'}),
  'private': (
    {'privacy.noise_multiplier': ['0.1', '1.0']},
    {
      'privacy.clip': 0.5,
      'privacy.delta': 0.01,
      'sampling': 'poisson',
      'weighting': 'uniform',
      'on_nan': 'skip_client',
    },
  ),
  'fedexp': ({'server.epsilon': ['0.001', '1.0']}, {'algorithm': 'fedexp'}),
}


@pytest.mark.slow
def test_all_keys_of_joint_training_are_tested_here():
  tried = [key for values, _ in KEYS.values() for key in values]
  assert sorted(tried) == sorted(grid_jobs.TOGETHER)


@pytest.mark.slow
@pytest.mark.parametrize('name', KEYS)
def test_every_key_of_joint_training_is_that_of_each_run(
  repository, tmp_path, name
):
  """The run of all second values is trained alone and with the other runs."""
  values, changes = KEYS[name]
  config = small(repository, rounds=3, eval_every=3, **changes)
  jobs = grid.run_sweep(config, values, 1, tmp_path / 'grid')
  train.train(jobs[-1].cfg, tmp_path / 'alone')
  alone, together = map(fa.load_params, (tmp_path / 'alone', jobs[-1].folder))

  def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs)))

  last = jobs[-1].setting
  others = [
    job.folder
    for job in jobs
    if sum(job.setting[key] != last[key] for key in last) == 1
  ]
  assert len(others) == len(values)
  for folder in others:
    # Adaptive optimizers amplify rounding errors of gradients near zero.
    apart = distance(fa.load_params(folder), together)
    assert apart > 1e-3
    assert distance(together, alone) < 0.003 * apart


@pytest.mark.slow
def test_killed_between_its_folders_and_resumed_with_more(
  repository, tmp_path, monkeypatch
):
  """Trained runs of a group are kept, whatever the next command adds."""
  config = small(repository)
  finish, simulate = summary.finish, grid_training.simulate
  own = tmp_path / 'own'
  values = {'client.learning_rate': ['0.1', '0.2', '0.3']}
  with monkeypatch.context() as patch:
    configs = []

    def dies(cfg, *args, **kwargs):
      configs.append(cfg)
      if len(configs) == 2:
        raise MemoryError('killed')
      return finish(cfg, *args, **kwargs)

    patch.setattr(summary, 'finish', dies)
    with pytest.raises(MemoryError):
      grid.run_sweep(config, values, 1, own)
  assert len(list(own.glob('*/seed_0'))) == 1
  started = []
  monkeypatch.setattr(
    grid_training,
    'simulate',
    lambda *args, **kwargs: started.append(1) or simulate(*args, **kwargs),
  )
  jobs = grid.run_sweep(config, values, 1, own)
  assert not started  # No run was trained again.
  assert len(list(own.glob('*/seed_0'))) == 3
  assert not list(own.glob('*/.part*')) and not (own / 'parts').exists()
  for job in jobs:
    assert [r['round'] for r in lines(job.folder)] == [*range(7)]


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [0.0, 60.0])
def test_interrupted_and_resumed_to_the_same_lines(
  swept, repository, tmp_path, monkeypatch, seconds
):
  """A signal stops two runs that are trained together."""
  monkeypatch.setattr(grid_training, '_SECONDS_BETWEEN_SAVES', seconds)
  _, jobs, _ = swept
  config = small(repository, rounds_per_call=1)
  simulate = grid_training.simulate

  def interrupted(*args, **kwargs):
    for record in simulate(*args, **kwargs):
      if record.round == 3:
        signal.raise_signal(signal.SIGTERM)
      yield record

  values = {'client.learning_rate': GRID['client.learning_rate']}
  values |= {'client.epochs': ['2']}
  own = tmp_path / 'own'
  with monkeypatch.context() as patch:
    patch.setattr(grid_training, 'simulate', interrupted)
    with pytest.raises(InterruptedRunError, match='is saved'):
      grid.run_sweep(config, values, 1, own)
  assert list((own / 'parts').glob('*/checkpoints/[0-9]*'))
  assert not list(own.glob('*/seed_0/metrics.jsonl'))
  # More values are requested: the interrupted group resumes first, unchanged.
  began = []

  def spy(simulation, **kwargs):
    began.append((kwargs['start'] is not None, len(simulation.sweep)))
    return simulate(simulation, **kwargs)

  monkeypatch.setattr(grid_training, 'simulate', spy)
  more = values | {
    'client.learning_rate': [*GRID['client.learning_rate'], '0.4']
  }
  resumed = grid.run_sweep(config, more, 1, own)
  assert began == [(True, 2)]  # The third one is trained alone.
  uninterrupted = {(j.name, j.cfg.seed): j.folder for j in jobs}
  for job in resumed[:2]:
    other = uninterrupted[job.name, 0]
    assert without_times(lines(job.folder)) == without_times(lines(other))
  assert not (own / 'parts').exists()


@pytest.mark.slow
def test_a_group_on_stored_clients_only_resumes_on_the_same_data(
  repository, tmp_path, monkeypatch
):
  """Other data are refused; the number of lanes is that of the first start."""
  data = tmp_path / 'data'
  for seed in (1, 0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (40, 3, 3), dtype=np.uint8)
    np.savez(
      tmp_path / f'{seed}.npz',
      **{'x': x, 'y': x[:, 0, 0] % 3, 'client': np.arange(40) % 5},
      **{'x_test': x[:9], 'y_test': x[:9, 0, 0] % 3},
    )
    conversions.convert(
      'arrays', tmp_path / f'{seed}.npz', tmp_path / f'c{seed}'
    )
  config = small(
    repository,
    **{'dataset': 'stored', 'data_dir': str(data), 'partition': 'natural'},
    **{'num_clients': 0, 'rounds_per_call': 1, 'lanes': 1},
  )
  values = {'client.learning_rate': ['0.1', '0.2']}
  simulate, lanes = grid_training.simulate, []

  def interrupted(simulation, **kwargs):
    lanes.append(simulation.planner.lanes)
    for record in simulate(simulation, **kwargs):
      if record.round == 3 and len(lanes) == 1:
        signal.raise_signal(signal.SIGTERM)
      yield record

  monkeypatch.setattr(grid_training, 'simulate', interrupted)
  shutil.copytree(tmp_path / 'c0', data)
  with pytest.raises(InterruptedRunError):
    grid.run_sweep(config, values, 1, tmp_path / 'own')
  shutil.rmtree(data)
  shutil.copytree(tmp_path / 'c1', data)
  with pytest.raises(InputError, match='the data of its clients, or their'):
    grid.run_sweep(config, values, 1, tmp_path / 'own')
  shutil.rmtree(data)
  shutil.copytree(tmp_path / 'c0', data)
  jobs = grid.run_sweep(config, values, 1, tmp_path / 'own')
  grid.run_sweep(config, values, 1, tmp_path / 'whole')
  assert lanes == [1, 1, 1]
  for job in jobs:
    other = tmp_path / 'whole' / job.folder.relative_to(tmp_path / 'own')
    assert without_times(lines(job.folder)) == without_times(lines(other))


@pytest.mark.slow
def test_a_setting_that_diverges_and_one_at_its_target(repository, tmp_path):
  config = small(repository, target_accuracy=0.5, rounds=30, eval_every=1)
  values = {'client.learning_rate': ['0.2', '1e20']}
  good, bad = grid.run_sweep(
    config, values, 1, tmp_path / 'grid', choose_on='test'
  )
  summaries = [
    json.loads((job.folder / 'summary.json').read_text()) for job in (good, bad)
  ]
  assert [t['status'] for t in summaries] == ['target reached', 'diverged']
  assert summaries[0]['rounds'] == summaries[0]['rounds_to_target'] < 30
  assert lines(good.folder)[-1]['test_accuracy'] >= 0.5
  for job, status in ((good, 'target reached'), (bad, 'diverged')):
    alone = tmp_path / status
    with contextlib.suppress(DivergedError):
      train.train(job.cfg, alone)
    own, other = (
      json.loads((folder / 'summary.json').read_text())
      for folder in (job.folder, alone)
    )
    assert own['rounds'] == other['rounds']
    assert [r.keys() for r in lines(job.folder)] == [
      r.keys() for r in lines(alone)
    ]
    names = [
      {p.name for p in folder.iterdir()} for folder in (job.folder, alone)
    ]
    assert names[0] == names[1]
  text = (tmp_path / 'grid' / 'table.md').read_text()
  assert 'Best: client.learning_rate=0.2' in text


@pytest.mark.slow
def test_tests_of_clients_run_one_run_at_a_time(repository, tmp_path):
  config = small(
    repository, rounds=2, holdout_fraction=0.2, client_eval_every=1
  )
  jobs = grid.run_sweep(
    config, {'client.learning_rate': ['0.1', '0.2']}, 1, tmp_path / 'grid'
  )
  for job in jobs:
    assert 'client_accuracy_mean' in lines(job.folder)[-1]


@pytest.mark.parametrize(
  ('values', 'seeds', 'words'),
  [
    ({'client.rate': ['1']}, 1, '--grid client.rate: unknown key'),
    ({'cpu_devices': ['1', '2']}, 1, '--grid cpu_devices: a process cannot'),
    ({'client': ['1']}, 1, '--grid client: unknown key'),
    ({'seed': ['1', '2']}, 1, 'those of --seeds'),
    ({'rounds': ['many']}, 1, '--grid rounds=many: must be of type int'),
    ({'rounds': ['1.5']}, 1, 'must be of type int'),
    ({'self_balancing': ['1']}, 1, 'must be of type bool'),
    ({'client.learning_rate': ['0.1', '0.10']}, 1, 'duplicate value'),
    ({'client.learning_rate': ['-1']}, 1, 'client.learning_rate = -1.0'),
    ({'partition': ['iid', 'x']}, 1, "partition = 'x'"),
    ({}, 0, '--seeds 0: must be at least 1'),
  ],
)
def test_sweeps_that_are_refused(repository, tmp_path, values, seeds, words):
  with pytest.raises(InputError) as caught:
    grid.run_sweep(small(repository), values, seeds, tmp_path / 'grid')
  assert words in str(caught.value)
  assert not (tmp_path / 'grid').exists()


@pytest.mark.slow
def test_folders_that_are_refused(swept, repository, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('all of it')
  with pytest.raises(InputError, match='is not the folder of a sweep'):
    grid.run_sweep(small(repository), {}, 1, tmp_path / 'mine')
  _, _, folder = swept
  with pytest.raises(InputError, match='another config: weighting = .uniform'):
    grid.run_sweep(small(repository, weighting='uniform'), GRID, 2, folder)
  with (
    filelock.FileLock(folder / '.lock'),
    pytest.raises(InputError, match='in use by another process'),
  ):
    grid.run_sweep(small(repository), GRID, 2, folder)


@pytest.mark.slow
def test_a_signal_between_two_runs_ends_the_sweep(
  repository, tmp_path, monkeypatch
):
  """The error is one line, and the same call completes the sweep."""
  config, values = small(repository, rounds=1), {'rounds': ['1', '2']}
  next_group = grid.next_group

  def interrupted(jobs, workdir):
    if any(map(grid_jobs.is_over, jobs)):
      signal.raise_signal(signal.SIGINT)
    return next_group(jobs, workdir)

  folder = tmp_path / 'grid'
  with monkeypatch.context() as patch:
    patch.setattr(grid, 'next_group', interrupted)
    with pytest.raises(
      InterruptedRunError,
      match=f'1 of 2 runs are finished.* --workdir {folder} to resume',
    ) as info:
      grid.run_sweep(config, values, 1, folder)
  assert info.value.signum == signal.SIGINT
  assert all(map(grid_jobs.is_over, grid.run_sweep(config, values, 1, folder)))


def test_invalid_runs_leave_no_folder(repository, tmp_path):
  """A model does not fit, or a name is too long for a folder."""
  folder = tmp_path / 'grid'
  for changes, values, words in (
    ({'model': 'char_lstm'}, {}, "model = 'char_lstm': must be one of"),
    ({'lanes': 99}, {}, 'lanes = 99'),
    ({}, {'data_dir': ['a' * 300, 'b']}, 'folder of 309 characters, must be'),
    ({}, {'validation_fraction': ['0', '0.3']}, 'compared by one test; must'),
    ({}, {'target': ['0.5', '2.0']}, r'target = 2.0: must be in \[0, 1\]'),
    (
      {'metrics': 'loss'},
      {'target_accuracy': ['0.0', '0.5']},
      'target_accuracy = 0.5: must be 0 where smaller is better',
    ),
  ):
    with pytest.raises(InputError, match=words):
      grid.run_sweep(small(repository, **changes), values, 1, folder)
    assert not folder.exists()


def test_an_empty_sweep_does_not_block_another(tmp_path):
  base = run_config.RunConfig()
  (tmp_path / '.lock').touch()
  (tmp_path / 'sweep.json').write_text('{')
  assert grid_jobs.earlier_jobs(tmp_path, base) == []
  (tmp_path / 'mine').touch()
  with pytest.raises(InputError, match='sweep.json: cannot be read'):
    grid_jobs.earlier_jobs(tmp_path, base)


@pytest.mark.slow
def test_damaged_folders_are_one_line(swept, tmp_path):
  config, jobs, folder = swept
  own = shutil.copytree(folder, tmp_path / 'grid')
  run = own / jobs[0].folder.relative_to(folder)

  def refused(words):
    with pytest.raises(InputError, match=words) as info:
      grid.run_sweep(config, GRID, 2, own)
    assert '\n' not in str(info.value)

  began = (run / 'config.json').read_text()
  other = json.loads(began)
  other['config']['client']['epochs'] = 7
  (run / 'config.json').write_text(json.dumps(other))
  refused('seed_0: belongs to a run with other settings: client.epochs = 1')
  (run / 'config.json').write_text('[]')
  refused('config.json: cannot be read')
  (run / 'config.json').write_text(began)
  mark = json.loads((own / 'sweep.json').read_text())
  mark['runs'][0][0]['client.epoch'] = 1
  (own / 'sweep.json').write_text(json.dumps(mark))
  refused("sweep.json: cannot be read .a run has 'client.epoch', which")


@pytest.mark.parametrize('text', ['{', '{}', '3'])
def test_a_damaged_group_is_one_line(tmp_path, text):
  base = run_config.RunConfig()
  jobs = grid_jobs.plan_jobs(base, {'client.decay': ['1', '0.9']}, 1, tmp_path)
  parts = grid_jobs.parts_of(jobs[0], tmp_path)
  parts.mkdir(parents=True)
  (parts / 'sweep.json').write_text(text)
  with pytest.raises(InputError, match='sweep.json: cannot be read'):
    grid_jobs.next_group(jobs, tmp_path)
  (parts / 'sweep.json').write_text('[]')
  assert grid_jobs.next_group(jobs, tmp_path) == jobs


@pytest.mark.slow
def test_an_invalid_population_is_refused_before_the_first_run(
  repository, tmp_path
):
  config = small(repository, alpha=0.001, num_clients=15)
  for values, words in (
    ({'partition': ['iid', 'dirichlet']}, 'alpha = 0.001'),
    (
      {'sizes': ['equal', '700,800'], 'partition': ['iid']},
      'sizes: has 2 numbers',
    ),
    ({'availability_trace': ['', 'no.csv']}, 'no.csv: cannot be read'),
  ):
    with pytest.raises(InputError, match=words):
      grid.run_sweep(config, values, 1, tmp_path / 'grid')
    assert not (tmp_path / 'grid').exists()


@pytest.mark.slow
def test_the_best_has_not_diverged_and_reached_the_target():
  def rows(*own):
    return [
      {'best': best, 'to_target': to, 'status': status}
      for best, to, status in own
    ]

  def merit(own, target):
    return grid_report._merit(own, target, Measure())

  good = rows((0.94, 50, 'target reached'), (0.93, 60, 'target reached'))
  bad = rows((0.95, 5, 'target reached'), (0.95, None, 'diverged'))
  assert merit(good, 0.9) < merit(bad, 0.9)
  assert merit(good, 0.0) < merit(bad, 0.0)
  at_once = rows((0.5, 0, 'target reached'))
  assert merit(at_once, 0.4)[1] == 0.0


@pytest.mark.parametrize(
  ('texts', 'words'),
  [
    (['rounds'], 'must be key=value'),
    (['rounds=1,,2'], 'must be key=value'),
    (['sizes=equal;'], 'must be key=value'),
    (['rounds=1 rounds=2'], 'rounds: duplicate key'),
    (
      ['algorithm=fedavg,fedprox', 'rounds=1 algorithm=fedexp'],
      '--grid algorithm: duplicate key; alternatives begin with the same key',
    ),
    ([' '], 'must be key=value'),
  ],
)
def test_grids_that_cannot_be_read(texts, words):
  with pytest.raises(InputError, match=words):
    sweep._parse(texts)


def test_flags_with_one_first_key_are_alternatives():
  assert sweep._parse([]) == [{}]
  grids = sweep._parse(
    [
      'client.epochs=1,5',
      'algorithm=fedavg',
      'algorithm=fedprox client.proximal=0.1,1',
      'data_dir=/my data,/other  sizes=equal;3,4',
    ]
  )
  rest = {
    'client.epochs': ['1', '5'],
    'data_dir': ['/my data', '/other'],
    'sizes': ['equal', '3,4'],
  }
  assert grids == [
    rest | {'algorithm': ['fedavg']},
    rest | {'algorithm': ['fedprox'], 'client.proximal': ['0.1', '1']},
  ]


def test_settings_of_alternatives(tmp_path):
  base = run_config.RunConfig(seed=4)
  grids = [
    {'algorithm': ['fedavg'], 'client.epochs': ['1', '5']},
    {'algorithm': ['fedprox'], 'client.proximal': ['0.1', '1']},
  ]
  jobs = grid_jobs.plan_jobs(base, grids, 2, tmp_path)
  assert [job.name for job in jobs[::2]] == [
    'algorithm=fedavg, client.epochs=1',
    'algorithm=fedavg, client.epochs=5',
    'algorithm=fedprox, client.proximal=0.1',
    'algorithm=fedprox, client.proximal=1.0',
  ]
  assert [job.cfg.seed for job in jobs] == [4, 5] * 4
  prox = jobs[4].cfg
  assert prox == base.replace({'algorithm': 'fedprox', 'client.proximal': 0.1})
  with pytest.raises(InputError, match='client.epochs=1 occurs in two altern'):
    grid_jobs.plan_jobs(base, [*grids, grids[0]], 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('rates', [['0.1'], ['0.1', '0.3']])
def test_more_rounds_continue_what_is_done(
  repository, tmp_path, monkeypatch, rates
):
  """Runs alone and together end as one that had all rounds from the start."""
  values = {'client.learning_rate': rates}
  own, whole = tmp_path / 'own', tmp_path / 'whole'
  grid.run_sweep(small(repository, rounds=2), values, 1, own)
  before = {job: job.read_bytes() for job in own.rglob('metrics.jsonl')}
  started = []
  train_run = train.train
  monkeypatch.setattr(
    train,
    'train',
    lambda cfg, folder, **kwargs: (
      started.append(folder) or train_run(cfg, folder, **kwargs)
    ),
  )
  jobs = grid.run_sweep(small(repository, rounds=6), values, 1, own)
  assert started == [job.folder for job in jobs]
  for path, content in before.items():
    assert path.read_bytes().startswith(content)
  for job in jobs:
    train_run(job.cfg, whole / job.name)
    for found, other in zip(
      lines(job.folder), lines(whole / job.name), strict=True
    ):
      assert found.keys() == other.keys()
      for key in found.keys() - {'seconds'}:
        assert found[key] == (
          other[key] and pytest.approx(other[key], rel=1e-4)
        )
    if len(rates) == 1:  # To the same bits.
      jax.tree.map(
        np.testing.assert_array_equal,
        *map(fa.load_params, (job.folder, whole / job.name)),
      )
  started.clear()
  grid.run_sweep(small(repository, rounds=6), values, 1, own)
  assert not started
  with pytest.raises(InputError, match=r'rounds = 5 .was 6.; use those'):
    grid.run_sweep(small(repository, rounds=5), values, 1, own)
  (own / 'parts').mkdir()
  with pytest.raises(InputError, match=r'rounds = 7 .was 6.: some .* interru'):
    grid.run_sweep(small(repository, rounds=7), values, 1, own)


def test_private_runs_do_not_continue_with_the_noise_of_fewer_rounds(tmp_path):
  base = run_config.RunConfig(
    rounds=5,
    weighting='uniform',
    sampling='poisson',
    on_nan='skip_client',
    privacy=config_privacy.PrivacyConfig(clip=1.0, target_epsilon=2.0),
  )
  mark = {'format': FORMAT, 'config': base.to_dict(), 'runs': [[{}, 0]]}
  (tmp_path / 'sweep.json').write_text(json.dumps(mark))
  (tmp_path / 'as it is').mkdir()
  assert len(grid_jobs.earlier_jobs(tmp_path, base)) == 1
  with pytest.raises(InputError, match='rounds = 6: must be 5 with privacy'):
    grid_jobs.earlier_jobs(tmp_path, base.replace({'rounds': 6}))


def test_runs_that_ended_early_are_over_at_any_number_of_rounds(tmp_path):
  (job,) = grid_jobs.plan_jobs(run_config.RunConfig(rounds=9), {}, 1, tmp_path)
  job.folder.mkdir(parents=True)
  for status, rounds, over in (
    ('finished', 9, True),
    ('finished', 8, False),
    ('target reached', 3, True),
    ('diverged', 3, True),
    ('interrupted', 3, False),
  ):
    (job.folder / 'summary.json').write_text(
      json.dumps({'status': status, 'rounds': rounds})
    )
    assert grid_jobs.is_over(job) == over


def test_the_test_set_chooses_only_if_asked(repository, tmp_path):
  """Tables are made of runs that are written by hand."""
  config = run_config.read(small(repository, rounds=2))
  jobs = grid_jobs.plan_jobs(
    config, {'client.learning_rate': ['0.1', '0.2']}, 2, tmp_path
  )
  for i, job in enumerate(jobs):
    values = [0.1, 0.4, 0.5 + 0.1 * i]
    write_run(job.folder, values, **job.cfg.to_dict())
  grid_report.report(jobs, tmp_path)
  text = (tmp_path / 'table.md').read_text()
  assert 'Best: none is chosen, because' in text and ' * |' not in text
  assert '**' not in (tmp_path / 'results.md').read_text()
  grid_report.report(jobs, tmp_path, 'test')
  text = (tmp_path / 'table.md').read_text()
  assert 'Best: client.learning_rate=0.2, highest mean of the best' in text
  first, second = (tmp_path / 'results.md').read_text().splitlines()[2:4]
  assert '| client.learning_rate=0.1 | 2 | 0.5500 ± 0.0707 |' in first
  assert '| **client.learning_rate=0.2** | 2 | 0.7500 ± 0.0707 |' in second
  assert '+0.2000 ± 0.0000 (n = 2)' in second
  assert {'results.csv', 'results.tex', 'sweep.png'} <= {
    path.name for path in tmp_path.iterdir()
  }
  for changes, choose_on, words in (
    ({'validation_fraction': 0.1}, 'test', '--choose_on test: the runs of'),
    ({}, 'train', "--choose_on = 'train': must be one of validation, test"),
  ):
    with pytest.raises(InputError, match=words):
      grid.run_sweep(
        small(repository, **changes), {}, 1, tmp_path, choose_on=choose_on
      )


def report(folder, runs, **changes):
  """Writes a sweep of learning rates by hand; returns table.md.

  Args:
    folder: a new folder.
    runs: (learning rate, seed) -> accuracies, or those and the status.
    **changes: those of the config of all runs.
  """
  base = run_config.RunConfig(rounds=2, **changes)
  jobs = []
  for (rate, seed), values in runs.items():
    values, status = values if isinstance(values, tuple) else (values, None)
    jobs += grid_jobs.plan_jobs(
      base.replace({'seed': seed}), {'client.learning_rate': [rate]}, 1, folder
    )
    cfg = jobs[-1].cfg.to_dict()
    write_run(jobs[-1].folder, values, status=status or 'finished', **cfg)
  grid_report.report(jobs, folder, 'test')
  return (folder / 'table.md').read_text()


def test_a_run_that_has_diverged_has_no_best_value(tmp_path):
  # The untrained model of the one that diverged is better than any.
  good, bad = [0.1, 0.2, 0.3], ([0.9, 0.0], 'diverged')
  text = report(
    tmp_path / 'one',
    {('0.1', 0): bad, ('0.1', 1): good, ('0.2', 0): good, ('0.2', 1): good},
  )
  assert '| client.learning_rate=0.1 | 2 | — | — | — | 1 |' in text
  assert 'Best: client.learning_rate=0.2, fewest diverged seeds, then ' in text
  for suffix in ('csv', 'md'):
    assert '0.9' not in (tmp_path / 'one' / f'results.{suffix}').read_text()
  text = report(tmp_path / 'all', {('0.1', 0): bad, ('0.2', 0): bad})
  assert 'Best: none is chosen, because every run has diverged' in text


def test_a_setting_is_chosen_by_the_seeds_of_all(tmp_path):
  low, high = [0.1, 0.2, 0.3], [0.1, 0.2, 0.9]
  middle = [0.1, 0.2, 0.4]
  runs = {('0.1', 0): low, ('0.1', 1): high, ('0.2', 0): middle}
  text = report(tmp_path / 'common', runs)  # The mean of 0.1 is larger.
  assert 'Best: client.learning_rate=0.2, highest mean of the best' in text
  assert ', over the seeds of all settings, 0; chosen on the test set' in text
  text = report(tmp_path / 'none', {('0.1', 1): high, ('0.2', 0): middle})
  assert (
    'Best: none is chosen, because no seed has runs of all settings;'
    ' client.learning_rate=0.1 has none of the seed 0'
  ) in text
  assert ' * |' not in text


def test_runs_that_ended_at_the_target_have_rounds_to_it(tmp_path):
  # The one that needs more rounds ends with the better model.
  late, soon = [0.1, 0.2, 0.9], [0.1, 0.6]
  text = report(
    tmp_path / 'target',
    {
      ('0.1', 0): (late, 'target reached'),
      ('0.2', 0): (soon, 'target reached'),
    },
    target=0.5,
  )
  assert 'Best: client.learning_rate=0.2, fewest rounds to 0.5; chosen' in text
  assert 'best accuracy' not in text
  assert '| client.learning_rate=0.1 | 1 | 2 | 1 |' in text
  results = (tmp_path / 'target' / 'results.md').read_text()
  assert '−1 (n = 1)' in results and '0.9' not in results


def test_a_picture_of_some_settings_says_so(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(grid_report, '_MOST_CURVES', 2)
  runs = {(f'0.{i}', 0): [0.1, 0.2, i / 10] for i in (1, 2, 3)}
  report(tmp_path / 'few', runs)
  assert 'sweep.png (the best 2 of 3 settings);' in capsys.readouterr().out
  # Only a sweep replaces its picture.
  assert not plots.is_own(tmp_path / 'few' / 'sweep.png')
  report(tmp_path / 'all', {key: runs[key] for key in [*runs][:2]})
  assert 'the best' not in capsys.readouterr().out.partition('sweep.png')[2]


# Comparisons.


@pytest.mark.slow
def test_comparison_by_hand(tmp_path):
  records = [
    {'round': 0, 'seconds': 0.0, 'test_accuracy': 0.1},
    {'round': 1, 'seconds': 0.5, 'bytes_down': 10, 'bytes_up': 5},
    {
      **{'round': 2, 'seconds': 0.5, 'bytes_down': 10, 'bytes_up': 5},
      **{'simulated_seconds': 3.0, 'test_accuracy': 0.6},
    },
    {
      **{'round': 3, 'seconds': 1.0, 'bytes_down': 10, 'bytes_up': 0},
      **{'simulated_seconds': 4.0, 'test_accuracy': 0.5},
    },
  ]
  run = compare.Run('a', {}, {}, records, 'finished')
  row = compare.row(run, 0.55)
  assert (row['to_target'], row['bytes'], row['simulated']) == (2, 30, 3.0)
  assert (row['best'], row['last'], row['pace']) == (0.6, 0.5, 1.5)
  unmet = compare.row(run, 0.9)
  assert (unmet['to_target'], unmet['bytes']) == (None, None)
  none = compare.row(run, 0.0)
  assert (none['to_target'], none['simulated']) == (None, 7.0)
  assert '| a | 3 | 0.6000 | 0.5000 | — | — | — | 1.5 | finished |' in (
    compare.table([unmet], 0.9)
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('number', 'text'),
  [
    (0, '0 B'),
    (999, '999 B'),
    (999_999, '1 MB'),
    (1500, '1.5 kB'),
    (2.5e15, '2.5e+03 TB'),
  ],
)
def test_amounts(number, text):
  assert compare.amount(number) == text


def run_compare(tmp_path, *args):
  return subprocess.run(
    [sys.executable, '-m', 'fedavg_jax', 'compare', *args],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
def test_compare_command(swept, repository, tmp_path):
  _, jobs, _ = swept
  folders = [str(job.folder) for job in jobs[:3]]
  process = run_compare(tmp_path, *folders, '--target=0.3')
  assert process.returncode == 0, process.stderr
  assert all(f'| {folder} | 6 |' in process.stdout for folder in folders)
  picture = (tmp_path / 'compare.png').read_bytes()
  assert picture.startswith(b'\x89PNG')

  train.train(small(repository, rounds=1), tmp_path / 'other')
  path = tmp_path / 'other' / 'config.json'
  path.write_text(
    path.read_text().replace('"test_sha256": "', '"test_sha256": "0')
  )
  shutil.copytree(folders[0], tmp_path / 'broken')
  path = tmp_path / 'broken' / 'metrics.jsonl'
  first, *_ = path.read_text().splitlines()
  path.write_text(first + '\n{"round": 3, "test_accuracy": null}\n')
  for args, words in (
    ([folders[0], 'other', '--picture=x.png'], 'other: has another test'),
    ([folders[0], folders[0] + '/', '--picture=x.png'], 'duplicate value'),
    ([folders[0], 'nowhere', '--picture=x.png'], 'nowhere/config.json'),
    ([folders[0], '--target=2', '--picture=x.png'], '--target 2.0'),
    (['--picture=x.png'], 'give the folders'),
    ([folders[0], '--picture=x'], '--picture x: must end with .png,'),
    (['broken', '--picture=x.png'], 'line 2 is not a round'),
    ([folders[0], '--picture=no/x.png'], 'folder no does not exist'),
  ):
    process = run_compare(tmp_path, *args)
    assert process.returncode == 2 and 'Traceback' not in process.stderr
    (line,) = process.stderr.splitlines()
    assert words in line
  assert (tmp_path / 'compare.png').read_bytes() == picture
  assert not (tmp_path / 'x.png').exists()


@pytest.mark.slow
def test_sweep_command(repository, tmp_path):
  process = subprocess.run(
    [
      *(
        sys.executable,
        '-W',
        'error::RuntimeWarning',
        '-m',
        'fedavg_jax',
        'sweep',
      ),
      *('--config', repository / 'configs' / 'quickstart.py'),
      *('--config.rounds=2', '--grid', 'client.learning_rate=0.1,0.2'),
      *('--workdir', 'grid', '--choose_on=test'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  assert 'Best: client.learning_rate=' in process.stdout
  assert len([*(tmp_path / 'grid').rglob('seed_0/curves.png')]) == 2
  bad = subprocess.run(
    [
      *(sys.executable, '-m', 'fedavg_jax', 'sweep', '--grid', 'rate=1'),
      *('--config', repository / 'configs' / 'quickstart.py'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert bad.returncode == 2
  assert '--grid rate: unknown key' in bad.stderr.splitlines()[-1]
  none = subprocess.run(
    [
      *(sys.executable, '-m', 'fedavg_jax', 'sweep', '--seeds=0'),
      *('--config', repository / 'configs' / 'quickstart.py'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert none.returncode == 2 and '--seeds 0: must' in none.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['grid']
