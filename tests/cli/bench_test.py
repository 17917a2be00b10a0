"""`fedavg-jax bench` counts work and rounds; its clock is replaced here."""

import itertools
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from fedavg_jax.cli import bench
from fedavg_jax.cli import bench_rounds
from fedavg_jax.cli import workloads
from fedavg_jax.contracts.model import num_parameters


@pytest.fixture
def clock(monkeypatch):
  """Replaces the clock by one on which every turn takes a quarter second."""
  ticks = itertools.count(0, 0.25)
  fake = types.SimpleNamespace(perf_counter=lambda: next(ticks))
  monkeypatch.setattr(bench_rounds, 'time', fake)


@pytest.fixture
def trained(monkeypatch):
  """Returns the numbers of the rounds that the command trains, in order."""
  numbers, run_calls = [], bench_rounds.fa.engine.run_calls

  def recording(simulation, state, client_states, rounds, **others):
    numbers.extend(rounds)
    return run_calls(simulation, state, client_states, rounds, **others)

  monkeypatch.setattr(bench_rounds.fa.engine, 'run_calls', recording)
  return numbers


def test_turns_of_uneven_clients(clock, trained):
  """Clients have 7, 1 and 12 examples; 2 of them train 3 epochs with B = 5."""
  workload = workloads.Workload(
    about='', model='lr', shape=(3, 2), sizes=(7, 1, 12), cohort=2, epochs=3,
    batch=5,
  )  # fmt: skip
  row = bench_rounds.measure('tiny', workload, 2)
  # Two warm-ups, of 1 round and of 1 / 0.25, set 4 * 4 rounds per turn.
  assert row['rounds_per_turn'] == 16
  assert trained == list(range(1, 1 + 1 + 4 + 2 * 16))
  assert row['seconds'] == [0.25 / 16] * 2
  per_round = {
    'rounds': 1,
    'clients': 2,
    'steps': 2 * 3 * (2 + 1 + 3) / 3,
    'examples': 2 * 3 * (7 + 1 + 12) / 3,
  }
  for name, number in per_round.items():
    assert row[f'{name}_per_second'] == pytest.approx(number * 16 / 0.25)
  assert json.loads(json.dumps(row)) == row


def test_the_median_and_the_range(monkeypatch):
  turns = lambda simulation, turns: ([3.0, 1.0, 2.0, 5.0], 1)  # noqa: E731
  monkeypatch.setattr(bench_rounds, 'timed_turns', turns)
  workload = workloads.Workload(
    about='', model='lr', shape=(2, 2), sizes=(1, 1), cohort=1, batch=0
  )
  row = bench_rounds.measure('tiny', workload, 4)
  assert row['seconds_per_round'] == 2.5
  assert (row['fastest_seconds'], row['slowest_seconds']) == (1.0, 5.0)
  assert row['steps_per_second'] == row['examples_per_second'] == 1 / 2.5


def test_logistic_regression_is_affine():
  workload = workloads.WORKLOADS['lr']
  model = bench_rounds.make_model(workload, None)
  params = model.init(jax.random.key(0))
  assert num_parameters(params) == 784 * 10 + 10
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda w: rng.normal(size=w.shape).astype(np.float32), params
  )
  x = rng.integers(0, 256, (3, 28, 28, 1), np.uint8)
  expected = x.reshape(3, 784) / 255.0 @ params['kernel'] + params['bias']
  np.testing.assert_allclose(model.apply(params, x), expected, atol=1e-4)


def test_lines_fit_a_terminal():
  versions = {'fedavg_jax': '10.20.30', 'jax': '0.12.10'}
  environment = {
    'versions': versions,
    'python': '3.14.10',
    'platform': 'cpu',
    'device': 'cpu',
    'processor': 'A processor with the longest of all names ' * 3,
    'num_devices': 128,
  }
  row = dict.fromkeys(
    ('seconds_per_round', 'fastest_seconds', 'slowest_seconds'), 1.234567e-5
  )
  row |= {
    'workload': 'cnn',
    'rounds_per_second': 81_000.4,
    'clients_per_second': 1_234_567.89,
    'examples_per_second': 987_654_321.0,
  }
  lines = bench.heading(environment, 100).splitlines()
  lines.append(bench.table_row(row))
  assert len(lines) > 3 and max(map(len, lines)) <= 80
  assert len(lines[-2].split()) == len(lines[-1].split()) - 1
  assert '987,654,321' in lines[-1]


@pytest.mark.slow
def test_the_command(tmp_path):
  process = subprocess.run(
    [sys.executable, '-m', 'fedavg_jax', 'bench']
    + ['--workloads=lr,2nn', '--turns=1'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  rows = [json.loads(line) for line in process.stdout.splitlines()]
  assert [row['workload'] for row in rows] == ['lr', '2nn']
  for row in rows:
    assert row['rounds_per_turn'] >= 1
    assert row['versions']['jax'] == jax.__version__ and row['device']
    assert len(row['seconds']) == 1 and row['clients_per_second'] > 0
  assert max(map(len, process.stderr.splitlines())) <= 80
  assert not list(tmp_path.iterdir())
