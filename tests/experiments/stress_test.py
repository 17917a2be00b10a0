"""The scripts of experiments/stress/, with less of everything."""

import os

import pytest

from experiments.stress import kill
from experiments.stress import long_run

pytestmark = pytest.mark.slow


def test_killed_runs_end_with_the_same_bits(capsys):
  told = kill.trials(3, seed=1, settings=['SCAFFOLD'])
  assert len(told) >= 3 and all(same for _, same in told)
  assert 'killed' in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='no /proc')
def test_a_longer_run_does_not_grow():
  samples = long_run.watch_process(240, 6, 'scaffold')
  early, late = samples[len(samples) // 3], samples[-1]
  assert late['round'] - early['round'] > 100
  # Between a save and none, orbax has some files open and some threads more.
  assert late['open_files'] < early['open_files'] + 30
  assert late['threads'] < early['threads'] + 20
  # What 50 clients keep is 10 MiB: one of it per call would be seen.
  assert late['resident_mib'] < early['resident_mib'] + 40


def test_nothing_stays_on_the_devices():
  before = long_run.live()[0]
  told = long_run.watch_devices(200)
  counts = [count - before for _, count, _ in told]
  # The data, the calls in line and the last one's model; never one per call.
  assert max(counts) - min(counts) < 100 and counts[-1] <= max(counts[:3])
  assert len(told) == 10
