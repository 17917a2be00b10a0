"""The scripts of experiments/stress/ run at a small size."""

import json
import os
import subprocess
import sys

import pytest

from experiments import checkout
from experiments.stress import compare_commits
from experiments.stress import kills
from experiments.stress import long_run

# One worker of the tests: several processes need all cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('processes')]


def test_killed_commands_end_with_the_same_bits(capsys, tmp_path):
  names = ['scaffold, uneven clients', 'convert arrays']
  lines = kills.trials(names, 2, seed=1, out=tmp_path / 'kills.jsonl')
  assert sum(len(line['kills']) for line in lines) >= 2
  assert all(line['equal'] and not line['wrong'] for line in lines)
  assert {line['setting'] for line in lines} == set(names)
  # Finished trials are not run again.
  again = kills.trials(names, 2, seed=1, out=tmp_path / 'kills.jsonl')
  assert again == lines
  assert ': equal' in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='no /proc')
def test_a_longer_run_does_not_grow():
  samples = long_run.watch_process(240, 6, 'scaffold')
  early, late = samples[len(samples) // 3], samples[-1]
  assert late['round'] - early['round'] > 100
  # During a save, orbax has more files and threads open.
  assert late['open_files'] < early['open_files'] + 30
  assert late['threads'] < early['threads'] + 20
  # The states of 50 clients are 10 MiB, which would show once per call.
  assert late['resident_mib'] < early['resident_mib'] + 40


def test_nothing_stays_on_the_devices():
  before = long_run.live()[0]
  samples = long_run.watch_devices(200)
  counts = [count - before for _, count, _ in samples]
  # The data, queued calls and the last call's model; never one per call.
  assert max(counts) - min(counts) < 100 and counts[-1] <= max(counts[:3])
  assert len(samples) == 10


@pytest.mark.slow
def test_the_last_commit_computes_what_is_here(clone, tmp_path):
  """If not, the first line, array or run that differs is reported."""
  setting = compare_commits.SETTINGS['quickstart']
  with checkout.checked_out('HEAD', clone) as tree:
    trees = [tree, checkout.here()]
    folders = [tmp_path / 'a', tmp_path / 'b']
    for each, folder in zip(trees, folders, strict=True):
      compare_commits.run(setting, each, folder, '')
    names = [each.name for each in trees]
    assert compare_commits.first_difference(folders, names) is None
    bad = setting._replace(options=('client.epochs=0',))
    with pytest.raises(RuntimeError, match=f'fails in {tree.name} with code 2'):
      compare_commits.run(bad, tree, tmp_path / 'c', '')
    other = setting._replace(options=(*setting.options, 'rounds=39'))
    compare_commits.run(other, trees[1], tmp_path / 'd', '')
  folders[1] = tmp_path / 'd'
  assert compare_commits.first_difference(folders, names) == (
    f'lines of metrics.jsonl: 41 in {names[0]}, 40 in the working tree'
  )
  (folders[1] / 'metrics.jsonl').write_bytes(
    (folders[0] / 'metrics.jsonl').read_bytes()
  )
  said = compare_commits.first_difference(folders, names)
  assert said and said.startswith('params.') and 'of the checkpoint at' in said


def test_the_first_difference_is_named(tmp_path):
  pair = [tmp_path / 'a', tmp_path / 'b']
  for folder, loss in zip(pair, (0.5, 0.25), strict=True):
    folder.mkdir()
    lines = [
      {'round': 0, 'seconds': loss},
      {'round': 1, 'loss': loss, **({'skipped': 0} if loss == 0.5 else {})},
    ]
    text = '\n'.join(map(json.dumps, lines))
    (folder / 'metrics.jsonl').write_text(text)
  said = compare_commits.first_difference(pair, ['one', 'two'])
  assert said == 'line 2 of metrics.jsonl, loss: 0.5 in one, 0.25 in two'
  (pair[1] / 'metrics.jsonl').rename(tmp_path / 'metrics.jsonl')
  said = compare_commits.first_difference(pair, ['one', 'two'])
  assert said == "runs: ['.'] in one, [] in two"


def test_settings_without_their_data_are_skipped(capsys, monkeypatch):
  monkeypatch.setattr(compare_commits, 'compare', lambda *given: None)
  tree = checkout.here()
  code = compare_commits.compare_all(['cnn', 'sweep'], [tree, tree], '')
  first, second, last = capsys.readouterr().out.splitlines()
  assert code == 0 and second == 'sweep: equal'
  assert first.startswith('cnn: skipped: neither --data nor FEDAVG_DATA')
  assert last.endswith(', 1 skipped without MNIST')
  monkeypatch.setattr(compare_commits, 'compare', lambda *given: 'line 2')
  assert compare_commits.compare_all(['sweep'], [tree, tree], '') == 1
  assert 'sweep: DIFFERS: line 2' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('nowhere',), "'nowhere': is not a commit of"),
    (('HEAD', '--settings', 'mnist'), '--settings mnist: must be one of quick'),
    (('HEAD', '--data', '/nowhere'), '--data /nowhere: has no folder mnist/'),
  ],
)
def test_bad_arguments_of_compare_commits(clone, tmp_path, arguments, said):
  process = subprocess.run(
    [sys.executable, '-m', 'experiments.stress.compare_commits', *arguments],
    cwd=clone,
    env=os.environ | {'TMPDIR': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  (line,) = process.stderr.splitlines()
  assert line.startswith('error: ') and said in line
  assert not list(tmp_path.iterdir())
