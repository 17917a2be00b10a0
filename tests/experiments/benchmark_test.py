"""The scripts of experiments/ run from end to end, at a small size."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmark import accelerator
from experiments.benchmark import race
from experiments.benchmark import workloads
from experiments.gallery import custom_algorithm
import fedavg_jax as fa
from fedavg_jax.contracts.model import num_parameters


def run(repository, module, *args):
  process = subprocess.run(
    [sys.executable, '-m', module, *map(str, args)],
    cwd=repository,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  return process.stdout


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmark(repository, tmp_path):
  out, picture = tmp_path / 'rows.jsonl', tmp_path / 'cohorts.png'
  table = run(
    repository,
    'experiments.benchmark',
    *('--workloads', 'cohort_10,flute_lr', '--turns', 1),
    *('--out', out, '--picture', picture),
  )
  assert 'fedavg_jax' in table and 'client steps' in table
  first, second = rows(out)
  assert first['parameters'] == 199_210 and second['parameters'] == 7850
  assert first['client_steps'] == 60 and first['clients'] == 10
  assert first['useful_share'] == 1.0 and first['ratio_to_ours'] == 1.0
  # 2 * 3 products a layer, less the first layer's gradient of the data.
  assert second['flops_per_example'] == 2 * 2 * 7840
  assert first['gflops'] == pytest.approx(
    1e-9 * 879_200 * 600 / first['seconds_per_round']
  )
  assert first['peak_gflops_float32'] > 0 and first['versions']['jax']
  assert picture.stat().st_size > 10_000


def test_profile(repository, tmp_path):
  run(
    repository,
    'experiments.benchmark',
    *('--workloads', 'flute_lr', '--turns', 1, '--profile', tmp_path),
  )
  assert list(tmp_path.glob('**/perfetto_trace.json.gz'))


def test_a_padded_lane_per_client_is_the_same_work(tmp_path):
  """The engine's own rival: every lane to the end of the longest client."""
  from experiments.benchmark import worker

  workload = workloads.WORKLOADS['flute_lr']
  padded, _ = worker.build(workload, {'lanes': 'cohort'})
  plain, _ = worker.build(workload, {})
  assert padded.planner.lanes == 10
  one, other = (fa.run(s, rounds=2)['train_loss'][1:] for s in (padded, plain))
  np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('--workloads', 'imagenet'), '--workloads imagenet: must be one of'),
    (('--peers', 'tff'), '--peers tff: must be one of torch'),
    (('--turns', '0'), '--turns 0: must be at least 1'),
  ],
)
def test_bad_arguments_of_the_benchmark(repository, arguments, said):
  process = subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark', *arguments],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  assert said in process.stderr and 'Traceback' not in process.stderr


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
  """As after a benchmark with that peer; elsewhere it is skipped."""
  if not (repository / 'build' / 'peers' / peer / 'installed.txt').exists():
    pytest.skip(f'{peer} is not installed in build/peers')
  mode = next(iter(race.PEER_MODES[peer].values()))
  racer = race.Racer(race.peer_command(peer, 'flute_lr', mode))
  try:
    racer.turn(counts=True)
    assert racer.seconds[0] > 0 and racer.peak_kib > 50_000
    assert racer.told['versions']
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


def test_the_engine_races_itself_on_devices_and_processes(capsys):
  """Every way does the same rounds; their rows say what the paper would."""
  assert len(race.scaled([1, 2], [1, 2, 4])) == 8
  modes = race.scaled([2], [1, 2])
  modes.pop('2 devices, cohort x 2')
  racers = race.race('flute_lr', [], 1, {}, modes)
  assert list(racers) == ['fedavg_jax', *modes], capsys.readouterr().out
  found = race.rows('flute_lr', racers, {})
  race.show_scaling(found, modes)
  assert [row['devices'] for row in found[1:]] == [2, 1, 2, 2]
  assert [row['clients'] for row in found[1:]] == [10, 10, 10, 20]
  for row in found[2:]:  # The first has no single device beside it.
    assert row['num_processes'] == modes[row['system']].get('processes', 1)
    assert row['efficiency'] > 0 and row['reduce_seconds'] > 0
  assert '2 processes, cohort x 2' in capsys.readouterr().out


def test_pfls_model_has_its_parameters():
  workload = workloads.WORKLOADS['pfl_cifar10']
  zeros = fa.Examples(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
  data = fa.Dataset('zeros', zeros, zeros, 10, 255.0)
  model = workloads.make_model(workload, data)
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert num_parameters(params) == 1_626_442


def test_accelerator_checks_pass_on_this_machine():
  """The checks of small models; those of the CNN are layers_test's."""
  for name in accelerator.CHECKS:
    if name.startswith('2nn'):
      found = accelerator.check(name)
      assert found['agrees'], (name, found)


def test_accelerator_skips_what_it_has(tmp_path, monkeypatch):
  """A second start measures nothing again and keeps every line."""
  out = tmp_path / 'rows.jsonl'
  asked = []

  def stand_in(*args):
    asked.append(args)
    return {'agrees': True}

  monkeypatch.setattr(accelerator, 'check', stand_in)
  monkeypatch.setattr(accelerator, 'measure', stand_in)
  monkeypatch.setattr(accelerator.worker, 'peaks', stand_in)
  monkeypatch.setattr(sys, 'argv', ['accelerator', '--out', str(out)])
  accelerator.main()
  first, number = rows(out), len(asked)
  assert len(first) == number == len({row['key'] for row in first})
  out.write_text('\n'.join(json.dumps(row) for row in first[:-2]) + '\n')
  accelerator.main()
  assert len(asked) == number + 2
  assert [row['key'] for row in rows(out)] == [row['key'] for row in first]
  monkeypatch.setattr(
    accelerator,
    'check',
    lambda name: {'agrees': False, 'largest_difference': 1.0},
  )
  out.unlink()
  with pytest.raises(SystemExit, match='wrong by 1.0; no timing'):
    accelerator.main()
  assert not out.exists()


def test_accelerator_measures(monkeypatch):
  monkeypatch.setattr(accelerator, 'round', lambda seconds: 1, raising=False)
  found = accelerator.measure('flute_lr', {'lanes': 2})
  assert len(found['seconds']) == 7 and found['gflops'] > 0


def test_own_algorithm_sends_the_largest_and_keeps_the_rest():
  plain = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  algorithm = custom_algorithm.send_largest(plain, 0.25)
  delta = {'w': jnp.array([[4.0, -1.0, 0.5, -3.0]] * 2)}
  memory = {'w': jnp.array([[0.0, -4.0, 0.0, 0.0]] * 2)}
  sent, kept = algorithm.message(fa.Ended(delta, delta, (), memory, 1, 1))
  np.testing.assert_array_equal(sent['w'], [[0, -5, 0, 0]] * 2)
  np.testing.assert_array_equal(kept['w'], [[4, 0, 0.5, -3]] * 2)


def test_own_algorithm_learns(repository):
  """With a hundredth of the delta almost as well as with all of it."""
  out = run(repository, 'experiments.gallery.custom_algorithm')
  accuracies = [float(line.split()[-1]) for line in out.splitlines()]
  assert len(accuracies) == 3
  assert accuracies[0] > 0.95 and accuracies[1] > 0.9 and accuracies[2] > 0.5
