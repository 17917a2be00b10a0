"""Several processes compute what one does, and report what is wrong."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml

from experiments.stress import lost_process
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.runs import checkpoint
from tests.testing import PROGRAMS

# One worker of the tests: several processes need all cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('processes')]


def _settings(number: int, folder: pathlib.Path) -> dict[str, np.ndarray]:
  script = PROGRAMS / 'several_processes.py'
  port = lost_process.free_port()
  out = folder / f'{number}.npz'
  started = [
    subprocess.Popen(
      [sys.executable, script, *map(str, (number, i, port, out))],
      stderr=subprocess.PIPE,
      text=True,
      env={
        **os.environ,
        'PYTHONPATH': str(lost_process.REPOSITORY),
      },
    )
    for i in range(number)
  ]
  for ended in lost_process.wait(started, 240):
    assert ended.code == 0, ended.stderr
  return dict(np.load(out))


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  return _settings(1, tmp_path_factory.mktemp('alone'))


def test_several_processes_are_one(alone, tmp_path):
  """C = 0 and 1, B = inf, SCAFFOLD and streams are the same within 1e-6."""
  several = _settings(2, tmp_path)
  assert several.keys() == alone.keys()
  for name in several.keys() - {'read'}:
    np.testing.assert_allclose(several[name], alone[name], atol=1e-6, rtol=1e-6)
    assert several[name].dtype == alone[name].dtype
  # Each process reads only clients of its lanes, up to two rounds ahead.
  rows = [int(several['read'])]
  rows += [int(np.load(path)['read']) for path in tmp_path.glob('*.npz.*.npz')]
  assert len(rows) == 2 and max(rows) < alone['read']


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
  """Returns the folder of a run of one process; no test changes it."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  lost_process.run(1, workdir)
  return workdir


def test_one_process_tests_the_last_model(tmp_path):
  """A validation set leaves the test set to the end, for process 0 alone."""
  accuracy = []
  for number in (1, 2):
    workdir = tmp_path / str(number)
    lost_process.run(
      number,
      workdir,
      '--config.validation_fraction=0.2',
      '--config.rounds=2',
    )
    summary = json.loads((workdir / 'summary.json').read_text())
    accuracy.append(summary['final_test_accuracy'])
  assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)


def test_one_dies_the_others_report_it_the_run_resumes(one_process, tmp_path):
  for number, after, victim, signum in (
    (3, 2, 0, signal.SIGKILL),
    (2, 1, 1, signal.SIGSTOP),
  ):
    workdir = tmp_path / f'{number} {after}'
    others, seconds = lost_process.kill_one(number, victim, signum, workdir, 9)
    assert seconds < lost_process.HEARTBEAT_SECONDS + 20
    for ended in others:
      assert ended.code == 1
      (error,) = ended.errors
      assert 'to resume from the last checkpoint' in error
      assert 'Check failure' not in ended.stderr
      assert 'Traceback' not in ended.stderr
    lost_process.run(after, workdir)
    assert lost_process.difference(one_process, workdir) <= lost_process.CLOSE
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    assert len(lines) == 31


def test_a_signal_to_one_stops_and_saves_all(tmp_path):
  run = tmp_path / 'run'
  others, _ = lost_process.kill_one(2, 1, signal.SIGTERM, run, 5)
  (first,) = others
  assert first.code == 128 + signal.SIGTERM
  (error,) = first.errors
  done = int(re.findall(r'round (\d+) is saved', error)[0])
  leaves = checkpoint.load_params(run)
  assert 5 <= done < 30 and jax.tree.leaves(leaves)
  assert (run / 'checkpoints' / str(done)).is_dir()


@pytest.mark.parametrize(
  'own, said',
  [
    ([['--config.seed=1'], ['--config.seed=2']], 'config.seed is 1 on process'),
    (
      [['--config.cpu_devices=1'], ['--config.cpu_devices=2']],
      'different numbers of devices',
    ),
    ([[], ['--num_processes=3']], '--num_processes is 2 on process 0, 3 on'),
    (
      [['--config.data_dir={}/a'], ['--config.data_dir={}/b']],
      'the data, by SHA-256, is',
    ),
    (
      [['--config.data_dir={}/a'], ['--config.data_dir={}/none']],
      'process 1: data_dir = ',
    ),
    ([['--workdir={}'], []], 'exists already, and is not the folder of a run'),
  ],
)
def test_differences_are_reported_on_every_process(own, said, tmp_path):
  """The run has not started then, and nothing is written."""
  data = ()
  if any('data_dir' in flag for flags in own for flag in flags):
    for name, text in (
      ('a', 'to be or not to be'),
      ('b', 'to be to be'),
    ):
      (tmp_path / name).mkdir()
      for author in ('one', 'two', 'three'):
        (tmp_path / name / f'{author}.txt').write_text(f'{text} {author}')
    data = ('--config.dataset=words', '--config.model=word_lstm')
    data += ('--config.partition=natural', '--config.num_clients=0')
  (tmp_path / 'theirs').write_text('a file of somebody')
  own = [[flag.format(tmp_path) for flag in flags] for flags in own]
  started = lost_process.start(
    2, f'--workdir={tmp_path}/run', '--connect_seconds=20', *data, own=own
  )
  for ended in lost_process.wait(started, 100):
    assert ended.code == 2, ended.stderr
    (error,) = ended.errors
    assert said in error
    assert ended.stderr.strip() == error
  assert not (tmp_path / 'run').exists()


# The error of a process that cannot join: its flags.
CANNOT_JOIN = {
  'cannot be reached within 2 s': ['--num_processes=2', '--process_id=1'],
  'never connected (--connect': ['--num_processes=2', '--process_id=0'],
  'must be in [0, 1]': ['--num_processes=2', '--process_id=2'],
  'must be HOST:PORT': ['--coordinator=nowhere'],
  'needs --distributed': ['--nodistributed', '--process_id=1'],
}


@pytest.fixture(scope='module')
def cannot_join(tmp_path_factory):
  """Returns each process's outcome and workdir; they wait at the same time."""
  started, workdirs = [], []
  for flags in CANNOT_JOIN.values():
    workdirs.append(tmp_path_factory.mktemp('joins') / 'run')
    command = lost_process.command(
      '--distributed',
      f'--coordinator=localhost:{lost_process.free_port()}',
      '--connect_seconds=2',
      f'--workdir={workdirs[-1]}',
      *flags,
    )
    started.append(
      subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
      )
    )
  ended = lost_process.wait(started, 60)
  return dict(zip(CANNOT_JOIN, zip(ended, workdirs, strict=True), strict=True))


@pytest.mark.parametrize('said', CANNOT_JOIN)
def test_a_process_that_cannot_join_reports_it_in_time(said, cannot_join):
  ended, workdir = cannot_join[said]
  assert ended.code in (1, 2)
  assert ended.stderr.count('\n') == 1 and said in ended.stderr
  assert not workdir.exists()


def test_a_process_too_many_is_reported(tmp_path):
  own = [[], ['--process_id=2', '--num_processes=3']]
  started = lost_process.start(
    2, f'--workdir={tmp_path}/run', '--connect_seconds=6', own=own
  )
  first, second = lost_process.wait(started, 60)
  assert ['--num_processes' in e.errors[0] for e in (first, second)] == [1, 1]


def test_one_process_needs_no_agreement():
  """Every agreement of one process is its own value."""
  assert not processes.is_distributed() and processes.is_primary()
  assert (
    processes.on_every_process(lambda: 3)
    == processes.on_primary(lambda: 3)
    == 3
  )
  assert (
    processes.broadcast({'a': 1}) == {'a': 1} and processes.smallest(4) == 4
  )
  processes.check_equal({'a': object})
  with pytest.raises(InputError, match='wrong'):
    processes.on_every_process(
      lambda: (_ for _ in ()).throw(InputError('wrong'))
    )


def test_a_joined_sum_is_the_sum_of_each():
  mesh = jax.sharding.Mesh(jax.devices()[:2], ('lanes',))
  rng = np.random.default_rng(0)
  tree = {
    'a': rng.standard_normal((2, 3, 4)).astype(np.float32),
    'b': rng.integers(0, 9, (2, 5)).astype(np.int32),
    'c': rng.standard_normal((2,)).astype(np.float32),
    'none': np.zeros((2, 0), np.float32),
    'large': rng.standard_normal((2, 2**20 + 1)).astype(np.float32),
  }

  def sums(tree):
    return collectives.sum_over_devices(
      jax.tree.map(lambda leaf: leaf[0], tree)
    )

  total = jax.jit(
    jax.shard_map(
      sums,
      mesh=mesh,
      in_specs=jax.P('lanes'),
      out_specs=jax.P(),
      check_vma=False,
    )
  )(tree)
  jax.tree.map(
    lambda got, own: np.testing.assert_array_equal(got, own[0] + own[1]),
    total,
    tree,
  )


def test_every_process_traces_the_same():
  """Sums have one order, whatever the seed of Python's hashes."""
  texts = {
    subprocess.run(
      [sys.executable, PROGRAMS / 'print_sums.py'],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in '1234'
  }
  assert len(texts) == 1 and 'all_reduce' in texts.pop()


def test_an_unexpected_error_ends_all_processes_at_once(tmp_path):
  shutil.copy(PROGRAMS / 'config_that_fails.py', tmp_path / 'own.py')
  begin = time.monotonic()
  started = lost_process.start(
    2, f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run'
  )
  first, second = lost_process.wait(started, 100)
  assert time.monotonic() - begin < 40
  assert first.code == second.code == 1
  assert len(first.errors) == 1 and 'Traceback' not in first.stderr
  assert not second.errors and second.stderr.count('Traceback') == 1
  assert 'KeyError' in second.stderr


def test_warnings_of_the_package_are_passed_on(one_process, tmp_path):
  shutil.copytree(one_process, tmp_path / 'run')
  more = ('--resume=extend', '--config.rounds=31')
  started = lost_process.start(
    2, f'--workdir={tmp_path}/run', *lost_process.SETTING, *more
  )
  first, second = lost_process.wait(started, 100)
  assert first.code == second.code == 0, first.stderr
  assert 'num_processes) differ from those of round 30: results' in first.stderr


def test_a_signal_before_round_1_is_a_signal(tmp_path):
  (process, *_) = lost_process.start(1, '--num_processes=2')
  time.sleep(3)
  process.send_signal(signal.SIGTERM)
  (ended,) = lost_process.wait([process], 30)
  assert ended.code == 128 + signal.SIGTERM
  assert ended.stderr == (
    'error: interrupted by SIGTERM; rerun the same command to resume or start'
    ' the run\n'
  )


def test_the_manifest_has_valid_flags(repository):
  """Every flag in docs/kubernetes.yaml is one of the command's."""
  service, job = yaml.safe_load_all(
    (repository / 'docs' / 'kubernetes.yaml').read_text()
  )
  spec = job['spec']
  (container,) = spec['template']['spec']['containers']
  assert spec['completions'] == spec['parallelism']
  assert container['env'] == [
    {'name': 'NUM_PROCESSES', 'value': str(spec['completions'])}
  ]
  assert spec['template']['spec']['subdomain'] == service['metadata']['name']
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  *_, command = container['command']
  name, *flags = re.findall(r'(?<= )(?:-m |--)([\w.]+)', command)
  assert name == 'fedavg_jax.main'
  help_text = subprocess.run(
    [sys.executable, '-m', name, '--help'], capture_output=True, text=True
  ).stdout
  for flag in flags:
    assert re.search(rf'--(\[no\])?{flag}\b', help_text), flag
