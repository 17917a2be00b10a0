"""The command line in processes of its own, as a person uses it."""

import json
import os
import subprocess
import sys

import pytest


def run(repository, tmp_path, *args, config='quickstart.py', workdir='run'):
  """Runs the program away from the repository; returns the process."""
  command = [sys.executable, '-m', 'fedavg_jax.main']
  if config is not None:
    command += ['--config', str(repository / 'configs' / config)]
  if workdir is not None:
    command += ['--workdir', workdir]
  environment = os.environ | {'TFDS_DATA_DIR': str(tmp_path / 'tfds')}
  return subprocess.run(
    [*command, *args],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


def assert_one_line(process, *words, code=2):
  assert process.returncode == code, process.stderr
  assert 'Traceback' not in process.stderr + process.stdout
  (line,) = process.stderr.strip().splitlines()
  assert line.startswith('error: ')
  for word in words:
    assert word in line


def test_overrides_reach_the_run(repository, tmp_path):
  process = run(
    repository,
    tmp_path,
    '--config.rounds=2',
    '--config.client.epochs=1',
    '--config.client.learning_rate=1',  # A whole number for a float.
    '--config.client_fraction=0',
    '--config.client.batch_size=0',
  )
  assert process.returncode == 0, process.stderr
  told = json.loads((tmp_path / 'run' / 'config.json').read_text())['config']
  assert told['client']['learning_rate'] == 1.0
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  records = [json.loads(line) for line in text.splitlines()]
  assert [r['examples'] for r in records] == [0, 30, 30]  # One client, E = 1.
  assert 'round 2/2' in process.stdout  # Plain lines: this is no terminal.
  assert 'finished after 2 rounds' in process.stdout


def test_default_workdir_is_named_after_date_and_config(repository, tmp_path):
  process = run(repository, tmp_path, '--config.rounds=1', workdir=None)
  assert process.returncode == 0, process.stderr
  (summary,) = (tmp_path / 'outputs').glob('*/*_quickstart/summary.json')
  assert str(summary.parent.relative_to(tmp_path)) in process.stdout


BAD_FLAGS = {
  'misspelt key': (
    ['--config.client.epoch=3'],
    ['no such key: \'epoch\' Did you mean "epochs"'],
  ),
  'huge E': (['--config.client.epochs=100000000'], ['epochs', '2**31']),
  'huge lr': (['--config.client.learning_rate=1e300'], ['learning_rate']),
  'unknown key': (['--config.optimizer=adam'], ['optimizer']),
  'not a number': (['--config.rounds=many'], ['rounds', 'many']),
  'fraction of a round': (['--config.rounds=2.5'], ['rounds', '2.5']),
  'unknown flag': (['--wordir=x'], ['wordir']),
  'stray word': (['fast'], ['fast']),
  'data set': (['--config.dataset=mnits'], ['dataset', 'mnits', 'digits']),
  'model': (['--config.model=3nn'], ['model', '3nn', '2nn']),
  'partition': (['--config.partition=x'], ['partition', 'x', 'shards']),
  'C': (['--config.client_fraction=1.5'], ['client_fraction', '1.5']),
  'K': (['--config.num_clients=1501'], ['num_clients', '1501', '1500']),
  'K for shards': (
    ['--config.num_clients=1000'],
    ['num_clients', '1000', 'shards_per_client', '2'],
  ),
  'E': (['--config.client.epochs=0'], ['client.epochs', '0', '[1,']),
  'lr': (['--config.client.learning_rate=-1'], ['learning_rate', '-1.0']),
  'lr nan': (['--config.client.learning_rate=nan'], ['learning_rate', 'nan']),
  'B': (['--config.client.batch_size=-1'], ['batch_size', '-1']),
  'unavailable': (
    ['--config.unavailable_fraction=0.9'],
    ['unavailable_fraction', '0.9', 'cohort of 25'],
  ),
  'no folder': (['--workdir='], ['workdir']),
  'data_dir': (
    ['--config.dataset=mnist', '--config.data_dir=/nowhere'],
    ['data_dir', '/nowhere', 'train-images'],
  ),
}


@pytest.mark.parametrize('name', BAD_FLAGS)
def test_a_bad_flag_is_one_line_and_leaves_nothing(repository, tmp_path, name):
  flags, words = BAD_FLAGS[name]
  assert_one_line(run(repository, tmp_path, *flags), *words)
  assert list(tmp_path.iterdir()) == []


def test_bad_config_files(repository, tmp_path):
  broken = tmp_path / 'broken.py'
  for content, words in {
    'def get_config(:': ['SyntaxError'],
    'import nothing_of_this_name': ['nothing_of_this_name'],
    'x = 1': ['get_config'],
    'def get_config(): return 3': ['ConfigDict'],
    (
      'import ml_collections\n'
      'def get_config(): return ml_collections.ConfigDict({"rounds": 1})'
    ): ['missing'],
  }.items():
    broken.write_text(content)
    process = run(repository, tmp_path, config=broken)
    assert_one_line(process, *words)
  assert_one_line(run(repository, tmp_path, config='nowhere.py'), 'nowhere.py')
  assert_one_line(
    run(repository, tmp_path, config='mnist_cnn.py:odd'), ':odd', ':noniid'
  )
  assert_one_line(run(repository, tmp_path, config=None), '--config')
  assert not (tmp_path / 'run').exists()


def test_a_workdir_that_exists_is_not_written_over(repository, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'summary.json').write_text('mine')
  assert_one_line(run(repository, tmp_path), 'workdir', 'exists')
  assert (tmp_path / 'run' / 'summary.json').read_text() == 'mine'
  assert len(list((tmp_path / 'run').iterdir())) == 1


def test_a_workdir_that_cannot_be_made(repository, tmp_path):
  (tmp_path / 'file').write_text('')
  process = run(repository, tmp_path, workdir='file/run')
  assert_one_line(process, 'workdir', 'file/run', 'Not a directory')
  process = run(repository, tmp_path, workdir='/proc/run')
  assert_one_line(process, 'workdir', '/proc/run')


@pytest.fixture
def small_disk(tmp_path):
  """A real file system of 4 MiB, in tmp_path / 'disk'."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', disk]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('mounting a small file system needs rights')
  yield disk
  subprocess.run(['umount', disk], check=True)


def test_no_room_is_told_before_the_run(repository, tmp_path, small_disk):
  (small_disk / 'mine').write_bytes(b'x' * 3 * 2**20)
  process = run(repository, tmp_path, workdir='disk/run')
  assert_one_line(process, 'workdir = disk/run', 'MiB are free')
  assert [path.name for path in small_disk.iterdir()] == ['mine']


def test_a_disk_that_fills_up_is_one_line(repository, tmp_path, small_disk):
  """While round 2 goes on, somebody else takes all the space."""
  code = """
from absl import app
from fedavg_jax import main, train
simulate = train.simulate

def fills(*args, **kwargs):
  for record in simulate(*args, **kwargs):
    if record.round == 2:
      with open('disk/theirs', 'wb', buffering=0) as file:
        try:
          while file.write(bytes(4096)):
            pass
        except OSError:
          pass
    yield record

train.simulate = fills
app.run(main.main, flags_parser=main._parse_flags)
"""
  config = repository / 'configs' / 'quickstart.py'
  process = subprocess.run(
    [sys.executable, '-c', code, '--config', config, '--workdir', 'disk/run'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert_one_line(process, 'disk/run', 'No space left', code=1)


def test_divergence_is_one_line_and_its_own_exit_code(repository, tmp_path):
  process = run(repository, tmp_path, '--config.client.learning_rate=1e30')
  assert_one_line(process, 'round 1', 'learning_rate', code=3)
  assert (tmp_path / 'run' / 'summary.json').exists()


def test_no_tensorflow_and_no_heavy_import_at_the_start():
  code = (
    'import sys, fedavg_jax.main;'
    ' print([m for m in ("tensorflow", "tensorflow_datasets", "matplotlib",'
    ' "orbax", "sklearn") if m in sys.modules])'
  )
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert process.stdout.strip() == '[]'
