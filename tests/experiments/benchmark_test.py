"""The scripts of experiments/ run from end to end, at a small size."""

import json
import os
import signal
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import checkout
from experiments.benchmark import accelerator
from experiments.benchmark import accelerator_checks
from experiments.benchmark import own_convolutions
from experiments.benchmark import plain
from experiments.benchmark import race
from experiments.benchmark import show
from experiments.benchmark import worker
from experiments.benchmark import workloads
from experiments.gallery import custom_algorithm
import fedavg_jax as fa
from fedavg_jax.cli import workloads as bench_workloads
from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.engine import arithmetic
from tests.testing import results


def run(repository, module, *args, environment=None):
  process = subprocess.run(
    [sys.executable, '-m', module, *map(str, args)],
    cwd=repository,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  return process.stdout


def git(folder, *args):
  process = subprocess.run(
    ['git', '-C', folder, *args], capture_output=True, text=True, check=True
  )
  return process.stdout.strip()


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_benchmark_and_profile(repository, tmp_path):
  out, picture = tmp_path / 'rows.jsonl', tmp_path / 'cohorts.png'
  table = run(
    repository,
    'experiments.benchmark',
    *('--workloads', 'cohort_10,flute_lr', '--turns', 1),
    *('--out', out, '--picture', picture, '--profile', tmp_path),
  )
  assert 'fedavg_jax' in table and 'client steps' in table
  first, second = rows(out)
  assert first['parameters'] == 199_210 and second['parameters'] == 7850
  assert first['client_steps'] == 60 and first['clients'] == 10
  assert first['useful_share'] == 1.0 and first['ratio_to_ours'] == 1.0
  # A layer has 2 * 3 products, without the first layer's data gradient.
  assert second['flops_per_example'] == 2 * 2 * 7840
  assert first['gflops'] == pytest.approx(
    1e-9 * 879_200 * 600 / first['seconds_per_round']
  )
  assert first['peak_gflops_float32'] > 0 and first['versions']['jax']
  assert picture.stat().st_size > 10_000
  assert list(tmp_path.glob('**/perfetto_trace.json.gz'))


@pytest.mark.slow
def test_a_padded_lane_per_client_is_the_same_work(tmp_path):
  """Every lane is padded to the longest client, unlike in the engine."""
  workload = workloads.WORKLOADS['flute_lr']
  padded, _ = worker.build(workload, {'lanes': 'cohort'})
  plain, _ = worker.build(workload, {})
  assert padded.planner.lanes == 10
  one, other = (fa.run(s, rounds=2)['train_loss'][1:] for s in (padded, plain))
  np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_linen_cnn_is_the_papers():
  model = own_convolutions.linen_model(workloads.WORKLOADS['cnn'])
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert num_parameters(params) == 1_663_370 and not model.as_written


@pytest.mark.slow
def test_own_convolutions(repository):
  facts = run(
    repository,
    'experiments.benchmark.own_convolutions',
    *('--clients', '2', '--examples', 10, '--turns', 1),
  )
  *forms, environment = map(json.loads, facts.splitlines())
  names = ['layers', 'linen', 'linen_as_written']
  assert [row['form'] for row in forms] == names
  for row in forms:
    assert row['seconds'] == [row['seconds_per_round']]
    assert row['ratio_to_ours'] == pytest.approx(
      row['seconds_per_round'] / forms[0]['seconds_per_round']
    )
  assert environment['versions']['jax']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('--workloads', 'imagenet'), '--workloads imagenet: must be one of'),
    (('--peers', 'tff'), '--peers tff: must be one of torch'),
    (('--turns', '0'), '--turns 0: must be at least 1'),
    (('--starts', '-1'), '--starts -1: must be at least 0'),
  ],
)
def test_bad_arguments_of_the_benchmark(refusing, tmp_path, arguments, said):
  found = refusing.run(tmp_path, *arguments, module='experiments.benchmark')
  assert found.code == 2
  assert said in found.err and 'Traceback' not in found.err


@pytest.mark.slow
def test_the_engine_of_another_commit(clone, tmp_path):
  """The last commit and the plain form take turns with the working tree."""
  out = tmp_path / 'rows.jsonl'
  table = run(
    clone,
    'experiments.benchmark',
    *('--workloads', 'flute_lr', '--turns', 1, '--starts', 1, '--out', out),
    *('--peers', 'self@HEAD,reference'),
    environment=os.environ | {'TMPDIR': str(tmp_path)},
  )
  ours, before, plain = rows(out)
  commit = git(clone, 'rev-parse', 'HEAD')
  assert before['commit'] == commit and 'commit' not in ours
  assert before['system'].startswith('self@')
  assert commit.startswith(before['system'].removeprefix('self@'))
  assert plain['system'] == 'reference' and plain['devices'] == 1
  for row in (ours, before, plain):
    assert 0 < row['started_seconds'][0] < row['ready_seconds'][0]
    assert row['system'] in table.split('seconds from start')[1]
  assert before['ready_ratio_to_ours'] > 0 and before['ratio_to_ours'] > 0
  assert before['parameters'] == ours['parameters']
  assert not list(tmp_path.glob('fedavg_jax-*'))


@pytest.mark.slow
@pytest.mark.parametrize('commit', ['nowhere', '', '--all'])
def test_unknown_commits_are_refused(clone, tmp_path, commit):
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.benchmark'),
      *('--workloads', 'flute_lr', '--peers', f'self@HEAD,self@{commit}'),
    ],
    cwd=clone,
    env=os.environ | {'TMPDIR': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  (line,) = process.stderr.splitlines()
  assert line.startswith('error: --peers')
  assert line.endswith(f'{commit!r}: is not a commit of {clone}')
  assert not list(tmp_path.iterdir())


def test_a_commit_runs_its_own_package(clone):
  """It imports neither this tree nor an installation; its folder is removed."""
  with checkout.checked_out('HEAD') as tree:
    process = subprocess.run(
      [sys.executable, '-c', 'import fedavg_jax as fa; print(fa.__file__)'],
      cwd=tree.folder,
      env=tree.environment(),
      capture_output=True,
      text=True,
      check=True,
    )
    package = tree.folder / 'fedavg_jax' / '__init__.py'
    assert process.stdout.strip() == str(package)
    with pytest.raises(fa.InputError, match='has no module experiments.w or'):
      tree.first_module('experiments.w', 'experiments.v')
  assert not tree.folder.parent.exists()
  assert git(clone, 'worktree', 'list').count(str(tree.folder)) == 0


def test_a_commit_is_removed_where_a_signal_ends_the_process(clone, tmp_path):
  code = """
from experiments import checkout
import time
with checkout.checked_out('HEAD') as tree:
  print(tree.folder, flush=True)
  time.sleep(60)
"""
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=clone,
    env=os.environ | {'TMPDIR': str(tmp_path)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stdout.readline().strip()
  assert list(tmp_path.iterdir())
  process.terminate()
  assert process.wait(timeout=20) == 128 + signal.SIGTERM
  process.stdout.close()
  assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
  """A folder inside of another clone is refused too."""
  with pytest.raises(fa.InputError, match='is not a git clone'):
    with checkout.checked_out('HEAD', tmp_path):
      pass
  git(tmp_path, 'init', '--quiet')
  inside = tmp_path / 'copy'
  inside.mkdir()
  with pytest.raises(fa.InputError, match='is not a git clone, but part of'):
    with checkout.checked_out('HEAD', inside):
      pass
  with pytest.raises(fa.InputError, match="'HEAD': is not a commit of"):
    with checkout.checked_out('HEAD', tmp_path):
      pass


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(7, 30, 12, 1, 23), (20,) * 5])
def test_the_plain_form_computes_the_same(sizes):
  """Uneven clients are padded; the last minibatch of an epoch is short."""
  workload = workloads.Workload(
    about='', model='lr', sizes=sizes, cohort=3, epochs=2, tested=50
  )
  rounds = plain.PlainRounds(workload, {})
  assert 0 < rounds.facts['useful_share'] <= 1
  rounds.run(2)
  rounds.run(1)
  simulation, _ = worker.build(workload, {})
  *_, record = fa.simulate(simulation, rounds=3)
  for got, expected in zip(
    jax.tree.leaves(rounds.params),
    jax.tree.leaves(record.state.params),
    strict=True,
  ):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_plain_form_refuses_other_work():
  uneven = workloads.Workload(
    about='', model='lr', sizes=(7, 30), cohort=1, weighting='uniform'
  )
  with pytest.raises(fa.InputError, match='by their examples'):
    plain.PlainRounds(uneven, {})


@pytest.mark.slow
def test_a_peer_that_fails_is_reported(monkeypatch, capsys):
  def command(peer, workload, mode):
    del peer, workload, mode
    return [sys.executable, '-c', 'raise SystemExit("no such package")']

  monkeypatch.setattr(race, 'peer_command', command)
  racers = race.race('flute_lr', ['torch'], 1, {}, {})
  assert list(racers) == ['fedavg_jax']
  out = capsys.readouterr().out
  for name in race.PEER_MODES['torch']:
    assert f'{name}: does not start, left out: ended: no such package' in out


@pytest.mark.parametrize('peer', race.PEER_MODES)
def test_a_turn_of_each_peer_that_is_installed_here(repository, peer):
  """A benchmark with the peer installs it; elsewhere the test is skipped."""
  if not (repository / 'build' / 'peers' / peer / 'installed.txt').exists():
    pytest.skip(f'{peer} is not installed in build/peers')
  mode = next(iter(race.PEER_MODES[peer].values()))
  racer = race.Racer(race.peer_command(peer, 'flute_lr', mode))
  try:
    racer.turn(counts=True)
    assert racer.seconds[0] > 0 and racer.peak_kib > 50_000
    assert racer.facts['versions']
  finally:
    racer.close()


def test_every_peer_has_its_files():
  for peer in race.PEER_MODES:
    for name in ('requirements.txt', 'worker.py'):
      assert (race.PEERS / peer / name).exists()


@pytest.mark.parametrize('name', workloads.WORKLOADS)
def test_workloads_survive_json(name):
  workload = workloads.WORKLOADS[name]
  again = workloads.from_dict(json.loads(json.dumps(workload.as_dict())))
  assert again == workload
  assert 1 <= workload.cohort <= len(workload.sizes)
  assert min(workload.sizes) >= 1


@pytest.mark.slow
def test_the_engine_races_itself_on_devices_and_processes(capsys):
  """All devices and processes do the same rounds; rows have their numbers."""
  assert len(race.scaled([1, 2], [1, 2, 4])) == 8
  modes = race.scaled([2], [1, 2])
  modes.pop('2 devices, cohort x 2')
  racers = race.race('flute_lr', [], 1, {}, modes)
  assert list(racers) == ['fedavg_jax', *modes], capsys.readouterr().out
  found = race.rows('flute_lr', racers, {})
  show.scaling(found, modes)
  assert [row['devices'] for row in found[1:]] == [2, 1, 2, 2]
  assert [row['clients'] for row in found[1:]] == [10, 10, 10, 20]
  for row in found[2:]:  # The first row is the single device.
    assert row['num_processes'] == modes[row['system']].get('processes', 1)
    assert row['efficiency'] > 0 and row['reduce_seconds'] > 0
  assert '2 processes, cohort x 2' in capsys.readouterr().out


def test_the_package_has_the_workloads_of_its_command():
  for name, ours in (('2nn', '2nn'), ('lr', 'flute_lr'), ('cnn', 'cnn')):
    assert workloads.WORKLOADS[ours] is bench_workloads.WORKLOADS[name]
  assert workloads.WORKLOADS['cnn_e5'].epochs == 5
  assert 'E = 5' in workloads.WORKLOADS['cnn_e5'].about
  # A peer's worker and an older commit read the names of these fields.
  fields = workloads.WORKLOADS['2nn'].as_dict()
  assert {'model', 'shape', 'sizes', 'cohort', 'batch'} < fields.keys()


def test_pfls_model_has_its_parameters():
  workload = workloads.WORKLOADS['pfl_cifar10']
  zeros = fa.Examples(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
  data = fa.Dataset('zeros', zeros, zeros, 10, 255.0)
  model = workloads.make_model(workload, data)
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert num_parameters(params) == 1_626_442


@pytest.mark.slow
def test_accelerator_checks_pass_on_this_machine():
  """These are checks of small models; layers_test has those of the CNN."""
  for name in ('2nn, all devices, streamed', '2nn, graphs'):
    found = accelerator_checks.check(name)
    assert found['agrees'], (name, found)


@pytest.fixture
def script(tmp_path, monkeypatch):
  """Returns a function that runs the accelerator script with fake work."""
  out, calls = tmp_path / 'rows.jsonl', []

  def measure(cell, *, small):
    calls.append(cell)
    assert not small
    if cell[0] == 'cohort_300':
      raise ValueError('no such luck')
    return {'seconds_per_round': 1.0}

  monkeypatch.setattr(accelerator, 'measure', measure)
  monkeypatch.setattr(worker, 'peaks', lambda: {'peak_gflops_float32': 1.0})

  def run(*arguments, wrong='nothing'):
    monkeypatch.setattr(
      accelerator_checks, 'check', lambda name: {'agrees': name != wrong}
    )
    argv = ['accelerator', '--child', '--out', str(out), *arguments]
    monkeypatch.setattr(sys, 'argv', argv)
    calls.clear()
    accelerator.main()
    return {row['key']: row for row in accelerator.read(out)}, len(calls)

  return run, out


def test_accelerator_goes_on_after_a_failure_and_skips_what_it_has(script):
  run, out = script
  found, number = run(wrong='2nn')
  assert len(found) == len(rows(out))
  assert 'ValueError: no such' in found['measure cohort_300 {}']['failed']
  assert found['measure 2nn {}']['check_passed'] is False
  assert found['measure cnn_e5 {}']['check_passed'] is True
  assert {f'check {name}' for name in accelerator_checks.CHECKS} < found.keys()
  assert list(found)[:3] == ['check 2nn', 'measure 2nn {}', 'peaks']
  assert number > 30 and run()[1] == 0 and run('--again')[1] == 1
  lines = out.read_text().splitlines()
  out.write_text(
    '\n'.join([*lines[:-3], lines[-3][:20]]) + '\n'
  )  # A torn line.
  assert len(run()[0]) == len(found)


def test_accelerator_records_what_has_ended_the_process(script):
  run, out = script
  key = 'measure 2nn {}'
  accelerator.marker(out).write_text(key)
  found, _ = run('--cells', '2nn,words')
  assert found[key]['failed'] == 'the process ended in this cell'
  assert 'seconds_per_round' in found['measure words {}']
  assert not accelerator.marker(out).exists()
  assert 'failed' not in run('--cells', '2nn', '--again')[0][key]


def test_a_signal_ends_the_child_and_the_archive_is_written(
  tmp_path, monkeypatch
):
  class Child:
    returncode, killed = None, False

    def poll(self):
      os.kill(os.getpid(), signal.SIGTERM)

    def kill(self):
      self.killed = True

    def wait(self):
      assert self.killed

  child, cache = Child(), tmp_path / 'cache.tar.gz'
  monkeypatch.setattr(accelerator.subprocess, 'Popen', lambda *_, **__: child)
  argv = ['accelerator', '--out', str(tmp_path / 'rows'), '--cache', str(cache)]
  monkeypatch.setattr(sys, 'argv', argv)
  before = signal.getsignal(signal.SIGTERM)
  try:
    with pytest.raises(SystemExit) as error:
      accelerator.main()
  finally:
    signal.signal(signal.SIGTERM, before)
  assert error.value.code == 143 and child.killed
  assert [path.name for path in tmp_path.iterdir()] == ['cache.tar.gz']
  assert tarfile.is_tarfile(cache)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_cells_of_the_accelerator_can_be_built(platform):
  """Each has a check, a workload, lanes for its cohort and known options."""
  cells = accelerator.cells(platform, 4)
  assert len({accelerator.key_of(cell) for cell in cells}) == len(cells)
  assert ('words', {'lanes': 10}) in cells
  for cell in cells:
    name, options = cell
    workload = workloads.WORKLOADS[name]
    assert accelerator.check_of(cell, platform) in accelerator_checks.CHECKS
    assert options.get('lanes', 0) <= workload.cohort
    assert options.get('gpu_graphs', False) <= (platform == 'gpu')
    precision = options.get('precision', 'float32')
    arithmetic.check(arithmetic.Arithmetic(platform, precision))


def test_a_cohort_larger_than_the_population_has_more_clients():
  own = workloads.Workload(about='', model='lr', sizes=(3, 4), cohort=2)
  simulation, _ = worker.build(own, {'times': 3})
  assert simulation.planner.cohort_size == 6
  assert list(simulation.planner.num_examples) == [3, 4] * 3


@pytest.mark.slow
def test_the_accelerator_script_in_small(repository, tmp_path):
  """Children, checks, cells and the archive of programs are real."""
  out, cache = tmp_path / 'rows.jsonl', tmp_path / 'cache.tar.gz'
  arguments = (
    *('--out', out, '--cache', cache, '--small', '--cells', 'flute_lr'),
    *('--seconds', 250),
  )
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  module = 'experiments.benchmark.accelerator'
  run(repository, module, *arguments, environment=environment)
  found = rows(out)
  assert not [row for row in found if 'failed' in row]
  for row in found:
    if row['key'].startswith('measure'):
      assert row['check_passed'] and len(row['seconds']) == 5
      assert row['lane_bytes'] > 0 and row['gflops'] > 0
  keys = [row['key'] for row in found]
  assert 'peaks' in keys and 'measure flute_lr {}' in keys
  with tarfile.open(cache) as archive:
    assert len(archive.getnames()) > 5
  text = run(repository, module, *arguments, environment=environment)
  assert not text and len(rows(out)) == len(found)


@pytest.mark.slow
def test_a_peer_that_does_not_start_has_a_row(repository, tmp_path):
  out = tmp_path / 'rows.jsonl'
  run(
    repository,
    'experiments.benchmark.accelerator_peers',
    *('--out', out, '--python', sys.executable, '--workloads', '2nn'),
    *('--peers', 'fedjax'),
  )
  (row,) = rows(out)
  assert row['key'] == 'peer fedjax, jit 2nn'
  assert row['failed'].startswith('does not start: ended: ModuleNotFound')


def test_custom_algorithm_sends_the_largest_and_keeps_the_rest():
  plain = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  algorithm = custom_algorithm.send_largest(plain, 0.25)
  delta = {'w': jnp.array([[4.0, -1.0, 0.5, -3.0]] * 2)}
  memory = {'w': jnp.array([[0.0, -4.0, 0.0, 0.0]] * 2)}
  output = algorithm.client_finish(results.of_client(delta, state=memory))
  np.testing.assert_array_equal(output.message['w'], [[0, -5, 0, 0]] * 2)
  np.testing.assert_array_equal(output.state['w'], [[4, 0, 0.5, -3]] * 2)


@pytest.mark.slow
def test_custom_algorithm_learns():
  """A hundredth of the delta is almost as good as all of it."""
  fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  algorithm = custom_algorithm.send_largest(fedavg, 0.01)
  assert custom_algorithm.run(algorithm, rounds=15) > 0.4
