"""The command line runs in separate processes, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fedavg_jax.runs import signals
from tests.testing import PROGRAMS

# Drawing pictures takes most of a second of each command.
_NO_PICTURES = ('--config.pictures=False',)


def run(repository, tmp_path, *args, config='quickstart.py', workdir='run'):
  """Executes the program outside of the repository; returns the process."""
  command = [sys.executable, '-m', 'fedavg_jax.main']
  if config is not None:
    command += ['--config', str(repository / 'configs' / config)]
  if workdir is not None:
    command += ['--workdir', workdir]
  environment = os.environ | {'TFDS_DATA_DIR': str(tmp_path / 'tfds')}
  return subprocess.run(
    [*command, *_NO_PICTURES, *args],
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


@pytest.mark.slow
def test_overrides_reach_the_run(repository, tmp_path):
  process = run(
    repository,
    tmp_path,
    '--config.rounds=2',
    '--config.client.epochs=1',
    '--config.client.learning_rate=1',  # An integer for a float.
    '--config.client_fraction=0',
    '--config.client.batch_size=0',
  )
  assert process.returncode == 0, process.stderr
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())['config']
  assert saved['client']['learning_rate'] == 1.0
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  records = [json.loads(line) for line in text.splitlines()]
  assert [r['examples'] for r in records] == [0, 30, 30]  # One client, E = 1.
  assert 'round 2/2' in process.stdout  # Plain lines: no terminal.
  assert 'finished after 2 rounds' in process.stdout


@pytest.mark.slow
def test_default_workdir_is_named_after_date_and_config(repository, tmp_path):
  args = ('--config.rounds=1', '--config.pictures')
  process = run(repository, tmp_path, *args, workdir=None)
  assert process.returncode == 0, process.stderr
  (summary,) = (tmp_path / 'outputs').glob('*/*_quickstart/summary.json')
  assert str(summary.parent.relative_to(tmp_path)) in process.stdout


def test_a_bad_flag_is_one_line_and_leaves_nothing(repository, tmp_path):
  """This one runs in a separate process; `bad_inputs_test.py` has many more."""
  process = run(repository, tmp_path, '--config.client.epoch=3')
  assert_one_line(process, 'unknown key: \'epoch\'. Did you mean "epochs"')
  assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
  """Yields a real file system of 4 MiB, in tmp_path / 'disk'."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', disk]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('mounting a small file system needs rights')
  yield disk
  subprocess.run(['umount', disk], check=True)


@pytest.mark.slow
def test_lack_of_space_is_reported_first(repository, tmp_path, small_disk):
  (small_disk / 'mine').write_bytes(b'x' * 3 * 2**20)
  process = run(repository, tmp_path, workdir='disk/run')
  assert_one_line(process, 'workdir = disk/run', 'MiB are free')
  assert [path.name for path in small_disk.iterdir()] == ['mine']


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line(repository, tmp_path, small_disk):
  """Another process takes all the space during round 5."""
  config = repository / 'configs' / 'quickstart.py'
  process = subprocess.run(
    [
      *(sys.executable, PROGRAMS / 'disk_fills_up.py', '--config', config),
      *('--workdir', 'disk/run', *_NO_PICTURES),
      *('--config.rounds=12', '--config.checkpoint.rounds=1'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert_one_line(process, 'disk/run', code=1)
  assert 'No space left' in process.stderr or 'cannot be written' in (
    process.stderr
  )
  # With space again, the same command resumes, and nothing is missing.
  (small_disk / 'theirs').unlink()
  args = ['--config.rounds=12', '--config.checkpoint.rounds=1']
  process = run(repository, tmp_path, *args, workdir='disk/run')
  assert process.returncode == 0, process.stderr
  assert 'resumes after round' in process.stdout
  run(repository, tmp_path, *args, workdir='whole')
  assert metrics(small_disk / 'run') == metrics(tmp_path / 'whole')


def metrics(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [{**json.loads(line), 'seconds': 0} for line in text.splitlines()]


@pytest.mark.slow
def test_a_disk_that_may_only_be_read(repository, tmp_path, small_disk):
  process = run(repository, tmp_path, '--config.rounds=2', workdir='disk/run')
  assert process.returncode == 0, process.stderr
  (small_disk / 'run' / 'summary.json').unlink()
  before = {p: p.stat().st_mtime_ns for p in small_disk.rglob('*')}
  remount = ['mount', '-o', 'remount,ro', small_disk]
  if subprocess.run(remount, capture_output=True).returncode:
    pytest.skip('mounting read-only needs rights')
  for workdir, said in (
    ('disk/run', 'cannot be written'),
    ('disk/new', 'cannot be created'),
  ):
    process = run(repository, tmp_path, '--config.rounds=2', workdir=workdir)
    assert_one_line(process, f'workdir = {workdir}', said, 'Read-only')
  assert {p: p.stat().st_mtime_ns for p in small_disk.rglob('*')} == before


def start(repository, tmp_path, *args, until='metrics.jsonl'):
  """Starts the program; returns it once its run has written a file."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'fedavg_jax.main', '--workdir', 'run'),
      *('--config', repository / 'configs' / 'quickstart.py'),
      *(*_NO_PICTURES, *args),
    ],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not (tmp_path / 'run' / until).exists() and process.poll() is None:
    time.sleep(0.01)
  return process


@pytest.mark.slow
def test_two_processes_on_one_workdir(repository, tmp_path):
  first = start(repository, tmp_path)
  second = run(repository, tmp_path)
  out, err = first.communicate(timeout=120)
  assert first.returncode == 0, err
  assert_one_line(second, 'workdir = run', 'is in use by another process')
  assert [r['round'] for r in metrics(tmp_path / 'run')] == list(range(201))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('signum', 'times'), [(signal.SIGINT, 1), (signal.SIGTERM, 3)]
)
def test_a_signal_saves_and_says_how_to_resume(
  repository, tmp_path, signum, times
):
  """A sender may signal the process and its group: the signal comes twice."""
  args = ['--config.rounds=2000', '--config.eval_every=50']
  process = start(repository, tmp_path, *args)
  for _ in range(times):
    process.send_signal(signum)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signum
  assert 'stopping' in out and 'Traceback' not in err
  (line,) = err.splitlines()
  assert line.startswith('error: interrupted: round ')
  assert 'the same command with --workdir run resumes' in line
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['status'] == 'interrupted' and summary['rounds'] < 2000
  number = str(summary['rounds'])
  assert (tmp_path / 'run' / 'checkpoints' / number).is_dir()


@pytest.mark.slow
def test_a_signal_before_the_first_round(repository, tmp_path):
  process = start(repository, tmp_path, until='config.json')
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM
  assert 'Traceback' not in err and 'round 0 is saved' in err


@pytest.mark.slow
@pytest.mark.parametrize('signum', [0, signal.SIGINT])
def test_stdout_that_is_closed_early(repository, tmp_path, signum):
  """This is what `... | head -1` does, and Ctrl-C on `... | tee log`."""
  rounds = '--config.rounds=' + ('2000' if signum else '40')
  process = start(repository, tmp_path, rounds)
  process.stdout.close()
  if signum:
    time.sleep(0.5)
    process.send_signal(signum)
  err = process.stderr.read()
  code = process.wait(timeout=120)
  process.stderr.close()
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  if signum:
    assert code == 128 + signum and err.startswith('error: interrupted: round')
    assert summary['status'] == 'interrupted'
  else:
    assert (code, err, summary['status']) == (0, '', 'finished')


@pytest.mark.slow
def test_closed_output(repository, tmp_path):
  command = [sys.executable, '-m', 'fedavg_jax.main', '--config']
  command += [str(repository / 'configs' / 'quickstart.py')]
  command += ['--config.rounds=3']
  process = subprocess.run(
    ['sh', '-c', '"$@" >&- 2>&-', 'sh', *command, '--workdir', 'run'],
    cwd=tmp_path,
  )
  assert process.returncode == 0
  assert [r['round'] for r in metrics(tmp_path / 'run')] == [0, 1, 2, 3]


def test_a_second_signal_ends_at_once():
  """The loop never checks, so that the second signal takes its usual effect."""
  process = subprocess.run(
    [sys.executable, PROGRAMS / 'two_signals.py'],
    capture_output=True,
    text=True,
  )
  assert process.returncode == -signal.SIGINT, process.stderr
  assert (
    process.stdout == '\nstopping after this round; a second signal exits now\n'
  )


def test_signal_handlers_are_restored():
  before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  with signals.stop_on_signals() as stop:
    assert signal.getsignal(signal.SIGTERM) is not before[1]
  assert not stop()
  after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  assert after == before


@pytest.mark.slow
def test_divergence_is_one_line_and_its_own_exit_code(repository, tmp_path):
  process = run(repository, tmp_path, '--config.client.learning_rate=1e30')
  assert_one_line(process, 'round 1', 'learning_rate', code=3)
  assert (tmp_path / 'run' / 'summary.json').exists()


def test_no_tensorflow_and_no_heavy_import_at_the_start():
  heavy = (
    'tensorflow',
    'tensorflow_datasets',
    'matplotlib',
    'orbax',
    'tensorboardX',
  )
  process = subprocess.run(
    [
      *(sys.executable, PROGRAMS / 'print_imported.py'),
      *('fedavg_jax.cli.run', *heavy),
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert process.stdout.strip() == '[]'
