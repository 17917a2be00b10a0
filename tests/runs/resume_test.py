"""Interrupted runs end with the bits of one that was never interrupted."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import recorder
from fedavg_jax.runs import train
from tests.conftest import REPOSITORY
from tests.testing.run_folders import lines
from tests.testing.run_folders import load
from tests.testing.run_folders import signal_after

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')

ROUNDS = 12
SETTINGS = {
  'momentum': {'server.momentum': 0.9, 'server.learning_rate': 0.3},
  'adam': {
    'server.optimizer': 'adam',
    'server.learning_rate': 0.01,
    'server.momentum': 0.9,
    'eval_every': 5,
  },
  'scaffold': {
    'algorithm': 'scaffold',
    'client.epochs': 1,
    'checkpoint.rounds': 2,
  },
  'private, an adaptive clip': {
    'sampling': 'poisson',
    'weighting': 'uniform',
    'on_nan': 'skip_client',
    'client_fraction': 0.2,
    'privacy.clip': 0.5,
    'privacy.target_epsilon': 20.0,
    'privacy.delta': 0.01,
    'privacy.quantile': 0.5,
    'privacy.bit_noise': 2.0,
  },
  'several rounds per call': {'rounds_per_call': 3, 'checkpoint.rounds': 5},
  'every round, no time': {'checkpoint.rounds': 1, 'checkpoint.minutes': 0.0},
}


def small(repository, **changes):
  return load(
    repository,
    'quickstart',
    **({'rounds': ROUNDS, 'num_clients': 15} | changes),
  )


def leaves(workdir):
  """Returns all arrays of the last checkpoint."""
  checkpoints = checkpoint.Checkpoints(workdir, keep=3)
  found = checkpoints.newest()
  checkpoints.close()
  return found.leaves


def timeless(workdir):
  return [{**line, 'seconds': 0} for line in lines(workdir)]


def assert_same_bits(workdir, other):
  assert timeless(workdir) == timeless(other)
  for a, b in zip(leaves(workdir), leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)
  clock = ('seconds', 'rounds_per_second', 'compile_seconds', 'start_seconds')
  a, b = (
    {
      key: value
      for key, value in json.loads((path / 'summary.json').read_text()).items()
      if key not in clock
    }
    for path in (workdir, other)
  )
  assert a == b


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """Returns the folder of an uninterrupted run; no test changes it."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  config = small(REPOSITORY, pictures=True, **{'checkpoint.rounds': 4})
  train.train(config, workdir)
  return workdir


@pytest.fixture
def stopped(uninterrupted, tmp_path):
  """Returns the same folder, as if killed after the checkpoint of round 8."""
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints' / '12')
  (workdir / 'summary.json').unlink()
  return workdir


def again(repository, workdir, *, extend=False, **changes):
  own = {'checkpoint.rounds': 4, 'pictures': True}
  config = small(repository, **(own | changes))
  return train.train(config, workdir, extend=extend)


@pytest.mark.slow
@pytest.mark.parametrize('name', SETTINGS)
def test_interrupted_twice(repository, tmp_path, monkeypatch, name):
  config = small(repository, **{'rounds_per_call': 1} | SETTINGS[name])
  train.train(config, tmp_path / 'whole')
  for number, signum in ((0, signal.SIGTERM), (3, signal.SIGINT)):
    with monkeypatch.context() as patch:
      signal_after(patch, number, signum)
      with pytest.raises(InterruptedRunError) as info:
        train.train(config, tmp_path / 'run')
    assert info.value.signum == signum
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['status'] == 'interrupted'
    assert number <= summary['rounds'] < ROUNDS
  train.train(config, tmp_path / 'run')
  assert_same_bits(tmp_path / 'whole', tmp_path / 'run')


@pytest.mark.slow
def test_checkpoints_by_rounds_and_by_time(repository, tmp_path, monkeypatch):
  saved = []
  save = checkpoint.Checkpoints.save
  monkeypatch.setattr(
    checkpoint.Checkpoints,
    'save',
    lambda self, number, *args: (
      saved.append(number),
      save(self, number, *args),
    ),
  )
  train.train(small(repository, **{'checkpoint.rounds': 5}), tmp_path / 'a')
  assert saved == [5, 10, 12]
  saved.clear()
  often = {'checkpoint.minutes': 1e-9, 'checkpoint.keep': 1}
  train.train(small(repository, **often), tmp_path / 'b')
  assert saved == list(range(13))  # A nanosecond has always passed.
  assert '12' in os.listdir(tmp_path / 'b' / 'checkpoints')
  assert len(os.listdir(tmp_path / 'b' / 'checkpoints')) <= 2
  assert_same_bits(tmp_path / 'a', tmp_path / 'b')
  saved.clear()
  never = {'checkpoint.minutes': 0.0}
  train.train(small(repository, **never), tmp_path / 'c')
  assert saved == [12]


@pytest.mark.slow
def test_best_model_of_a_run(repository, tmp_path):
  train.train(
    small(repository, rounds=5, **{'checkpoint.rounds': 1}), tmp_path / 'run'
  )
  tested = {r['round']: r['test_accuracy'] for r in lines(tmp_path / 'run')[1:]}
  params = fa.load_params(tmp_path / 'run', best=True)
  data = fa.load_dataset('digits')
  logits = fa.build_model('2nn', data).apply(params, data.test.x)
  accuracy = np.mean(np.argmax(logits, axis=1) == data.test.y)
  assert accuracy == pytest.approx(max(tested.values()))


@pytest.mark.slow
def test_killed_between_two_checkpoints(repository, uninterrupted, stopped):
  again(repository, stopped)
  assert_same_bits(uninterrupted, stopped)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(
  repository, uninterrupted, stopped, capsys
):
  shutil.rmtree(stopped / 'checkpoints')
  content = json.loads((stopped / 'config.json').read_text())
  assert content.pop('saved') is True
  (stopped / 'config.json').write_text(json.dumps(content))
  (stopped / 'partition.png').unlink()
  again(repository, stopped)
  assert 'ended before its first checkpoint' in capsys.readouterr().out
  assert_same_bits(uninterrupted, stopped)
  assert (stopped / 'partition.png').exists()


@pytest.mark.slow
def test_killed_between_the_last_checkpoint_and_the_summary(
  repository, uninterrupted, tmp_path
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  (workdir / 'summary.json').unlink()
  (workdir / 'curves.png').unlink()
  again(repository, workdir)
  assert_same_bits(uninterrupted, workdir)
  assert (workdir / 'curves.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'content', ['', '{"status"', '[]', '{"status": "finished", "rounds": 12}']
)
def test_a_damaged_summary_is_written_again(
  repository, uninterrupted, tmp_path, content
):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  (workdir / 'summary.json').write_text(content)
  again(repository, workdir)
  assert_same_bits(uninterrupted, workdir)


@pytest.mark.slow
def test_a_torn_line_and_rounds_after_the_checkpoint(
  repository, uninterrupted, stopped
):
  with open(stopped / 'metrics.jsonl', 'a') as file:
    file.write('{"round": 13, "train_l')
  again(repository, stopped)
  assert_same_bits(uninterrupted, stopped)


@pytest.mark.slow
def test_a_damaged_checkpoint(repository, uninterrupted, stopped, caplog):
  for path in (stopped / 'checkpoints' / '8').rglob('*'):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)
  again(repository, stopped)
  (warning,) = [r for r in caplog.records if r.levelname == 'WARNING']
  assert 'checkpoints/8: damaged' in warning.getMessage()
  assert_same_bits(uninterrupted, stopped)


@pytest.mark.slow
def test_a_finished_run_is_not_changed(repository, uninterrupted, capsys):
  before = {
    p: p.stat().st_mtime_ns for p in uninterrupted.rglob('*') if p.is_file()
  }
  summary = again(repository, uninterrupted)
  assert summary['status'] == 'finished'
  assert 'this run is finished' in capsys.readouterr().out
  after = {
    p: p.stat().st_mtime_ns for p in uninterrupted.rglob('*') if p.is_file()
  }
  assert {p for p in before | after if before.get(p) != after.get(p)} <= {
    uninterrupted / '.lock'
  }


@pytest.mark.slow
def test_a_target_ends_a_run_for_good(repository, tmp_path):
  config = {'rounds': 60, 'target_accuracy': 0.5}
  train.train(small(repository, **config), tmp_path / 'run')
  rounds = len(lines(tmp_path / 'run')) - 1
  assert rounds < 60
  for left in ('summary.json', None):  # Killed before it was written.
    if left:
      (tmp_path / 'run' / left).unlink()
    summary = train.train(small(repository, **config), tmp_path / 'run')
    assert (summary['status'], summary['rounds']) == ('target reached', rounds)
    assert len(lines(tmp_path / 'run')) - 1 == rounds


@pytest.mark.slow
def test_a_diverged_run_diverges_again(repository, tmp_path):
  config = small(repository, **{'client.learning_rate': 1e30})
  logged = []
  for _ in range(2):
    with pytest.raises(DivergedError, match='round 1: '):
      train.train(config, tmp_path / 'run')
    logged.append(timeless(tmp_path / 'run'))
  assert logged[0] == logged[1] and len(logged[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize('every', [1, 2, 0])
def test_diverged_after_a_checkpoint(repository, tmp_path, every):
  """The state to save is that of the round before, which was saved already."""
  config = small(
    repository,
    **{'server.learning_rate': 1e6, 'checkpoint.rounds': every},
  )
  logged = []
  for _ in range(2):
    with pytest.raises(DivergedError, match='server.learning_rate'):
      train.train(config, tmp_path / 'run')
    logged.append(timeless(tmp_path / 'run'))
  assert logged[0] == logged[1] and len(logged[0]) > 2
  # The test is of the model before, not of this round.
  assert 'test_accuracy' not in logged[0][-1]
  last = np.concatenate([leaf.ravel() for leaf in leaves(tmp_path / 'run')])
  assert np.isfinite(last).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['momentum', 'scaffold'])
def test_a_fault_between_two_checkpoints(
  repository, tmp_path, monkeypatch, name
):
  """SCAFFOLD's client states are in use then, and cannot be saved."""
  rare = {'rounds_per_call': 1, 'checkpoint.rounds': 0}
  config = small(repository, **SETTINGS[name] | rare)
  train.train(config, tmp_path / 'whole')
  simulate = recorder.simulate

  def fails(*args, **kwargs):
    for record in simulate(*args, **kwargs):
      yield record
      if record.round == 5:
        raise OSError(5, 'the disk is gone', 'disk')

  with monkeypatch.context() as patch:
    patch.setattr(recorder, 'simulate', fails)
    with pytest.raises(OSError, match='the disk is gone'):
      train.train(config, tmp_path / 'run')
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert (summary['status'], summary['rounds']) == ('failed', 5)
  train.train(config, tmp_path / 'run')
  assert_same_bits(tmp_path / 'whole', tmp_path / 'run')


@pytest.mark.slow
def test_extend(repository, tmp_path, uninterrupted):
  workdir = shutil.copytree(uninterrupted, tmp_path / 'run')
  with pytest.raises(InputError, match=r'rounds = 15 \(was 12\).*extend'):
    again(repository, workdir, rounds=15)
  assert timeless(workdir) == timeless(uninterrupted)
  again(repository, workdir, rounds=15, extend=True)
  assert [r['round'] for r in lines(workdir)] == list(range(16))
  # From now on it is a run of 15 rounds, as if started so.
  with pytest.raises(InputError, match=r'rounds = 12 \(was 15\)'):
    again(repository, workdir)
  assert again(repository, workdir, rounds=15)['rounds'] == 15
  again(repository, tmp_path / 'fifteen', rounds=15)
  assert_same_bits(tmp_path / 'fifteen', workdir)
  with pytest.raises(InputError, match='rounds = 9: must be at least the 15'):
    again(repository, workdir, rounds=9, extend=True)
  with pytest.raises(InputError, match='contains no run to resume'):
    again(repository, tmp_path / 'new', extend=True)
  assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_extend_allows_another_layout(repository, uninterrupted, stopped):
  """Other lanes have the same cohorts and orders, equal up to rounding."""
  with pytest.raises(InputError, match=r'lanes = 6 \(was 0\)'):
    again(repository, stopped, lanes=6)
  again(repository, stopped, lanes=6, extend=True)
  for a, b in zip(lines(uninterrupted), lines(stopped), strict=True):
    assert a['examples'] == b['examples']
    np.testing.assert_allclose(a['test_loss'], b['test_loss'], rtol=1e-4)
  summary = json.loads((stopped / 'summary.json').read_text())
  assert summary['lanes'] == 6


@pytest.mark.slow
def test_changed_configs_are_refused_by_name(repository, stopped):
  before = timeless(stopped)
  with pytest.raises(InputError) as info:
    again(repository, stopped, seed=7, **{'client.learning_rate': 0.25})
  message = str(info.value)
  assert 'seed = 7 (was 0)' in message
  assert 'client.learning_rate = 0.25 (was 0.1)' in message
  assert 'num_clients' not in message and '\n' not in message
  with pytest.raises(InputError, match='seed = 7'):
    again(repository, stopped, seed=7, extend=True)
  assert timeless(stopped) == before


def test_a_config_of_an_older_version(repository, stopped):
  content = json.loads((stopped / 'config.json').read_text())
  del content['config']['on_nan']
  content['config']['gone'] = 3
  (stopped / 'config.json').write_text(json.dumps(content))
  with pytest.raises(InputError, match=r'gone = None \(was 3\)'):
    again(repository, stopped)


def test_changed_data_are_refused(repository, stopped, monkeypatch):
  load_dataset = own_parts.catalog.load_dataset

  def changed(*args):
    data = load_dataset(*args)
    data.train.x[3, 2, 1] ^= 1
    return data

  monkeypatch.setattr(own_parts.catalog, 'load_dataset', changed)
  before = timeless(stopped)
  with pytest.raises(InputError, match='data of its clients.*SHA-256 expected'):
    again(repository, stopped)
  assert timeless(stopped) == before


def test_changed_metrics_are_refused(repository, stopped):
  path = stopped / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"round": 3', '"round": 4'))
  before = path.read_bytes()
  with pytest.raises(InputError, match='metrics.jsonl: does not begin with'):
    again(repository, stopped)
  assert path.read_bytes() == before


@pytest.mark.slow
def test_another_machine_is_reported_and_recorded(repository, stopped, caplog):
  path = stopped / 'config.json'
  content = json.loads(path.read_text())
  content['versions']['jax'] = '0.9.0'
  content['device'] = 'abacus'
  path.write_text(json.dumps(content))
  again(repository, stopped)
  assert 'the device or the versions (versions, device) differ' in caplog.text
  content = json.loads(path.read_text())
  assert content['device'] == 'abacus'
  (resumed,) = content['resumed']
  assert resumed['round'] == 8
  assert resumed['versions']['jax'] == jax.__version__


@pytest.mark.slow
def test_lanes_of_the_checkpoint_are_kept(
  repository, uninterrupted, stopped, monkeypatch
):
  """Free memory may have changed, but the bits must not."""
  chosen = []
  build = builders.build_simulation
  monkeypatch.setattr(
    builders,
    'build_simulation',
    lambda *args, **kwargs: (
      chosen.append(kwargs['execution'].lanes),
      build(*args, **kwargs),
    )[1],
  )
  again(repository, stopped)
  assert chosen == [
    json.loads((uninterrupted / 'summary.json').read_text())['lanes']
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('jump', 'looks'), [(10 * 365 * 86400, 8), (-10 * 365 * 86400, 1)]
)
def test_a_clock_that_jumps(
  repository, uninterrupted, tmp_path, monkeypatch, jump, looks
):
  """The clock changes by ten years, once, in the middle of every checkpoint."""
  real, save = time.time, checkpoint.Checkpoints.save
  left, offset = [0], [0.0]

  def jumping():
    left[0] -= 1
    if left[0] == 0:
      offset[0] += jump
    return real() + offset[0]

  def save_while_it_jumps(self, *args):
    left[0] = looks
    return save(self, *args)

  monkeypatch.setattr(time, 'time', jumping)
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save_while_it_jumps)
  again(repository, tmp_path / 'run')
  assert offset[0]
  monkeypatch.undo()
  assert_same_bits(uninterrupted, tmp_path / 'run')
  assert all(0 <= r['seconds'] < 60 for r in lines(tmp_path / 'run'))
