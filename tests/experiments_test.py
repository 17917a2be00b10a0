"""The scripts of experiments/ run from end to end, at a small size."""

import json
import pathlib
import subprocess
import sys

from experiments import accelerator
from experiments import benchmark


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
  out = tmp_path / 'rows.jsonl'
  args = ('--workloads', '2nn', '--rounds', '3', '--out', out)
  table = run(repository, 'experiments.benchmark', *args)
  assert 'fedavg_jax' in table and '600 client steps' in table
  (row,) = rows(out)
  assert len(row['seconds']) == 3 and row['parameters'] == 199_210
  assert row['ratio_to_ours'] == 1.0 and row['versions']['jax']


def test_every_peer_has_its_files():
  for peer in benchmark.PEER_MODES:
    for name in ('requirements.txt', 'worker.py'):
      assert (pathlib.Path(benchmark.PEERS) / peer / name).exists()


def test_accelerator_checks_pass_on_this_machine():
  for method in accelerator.METHODS:
    found = accelerator.check('2nn', method)
    assert found['agrees'], found


def test_accelerator_skips_what_it_has(repository, tmp_path, monkeypatch):
  """A second start measures nothing again and keeps every line."""
  out = tmp_path / 'rows.jsonl'
  asked = []
  monkeypatch.setattr(
    accelerator, 'check', lambda *args: asked.append(args) or {'agrees': True}
  )
  monkeypatch.setattr(
    accelerator, 'measure', lambda *args: asked.append(args) or {'seconds': []}
  )
  monkeypatch.setattr(sys, 'argv', ['accelerator', '--out', str(out)])
  accelerator.main()
  first, number = rows(out), len(asked)
  assert len(first) == number == len({row['key'] for row in first})
  out.write_text('\n'.join(json.dumps(row) for row in first[:-2]) + '\n')
  accelerator.main()
  assert len(asked) == number + 2
  assert [row['key'] for row in rows(out)] == [row['key'] for row in first]
