"""Runs of several seeds are one group, and so are the settings of a sweep."""

import json

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import grid_jobs
from fedavg_jax.runs import run_groups
from fedavg_jax.runs.run_dir import FORMAT
from tests.testing.run_folders import write_run


def names(groups):
  return {name: [run.seed for run in runs] for name, runs in groups.items()}


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, config in {
    'a': {'seed': 3},
    'b': {'seed': 4, 'lanes': 7},  # It computes the same.
    'c': {'seed': 3},
    'd': {'seed': 4, 'client': {'epochs': 9}},
  }.items():
    write_run(tmp_path / name, [0.1, 0.5], **config)
  found = run_groups.read_groups(['d', 'a', 'b'])
  assert [*names(found).items()] == [('d', [4]), ('a and 1 more', [3, 4])]
  # A second run of one seed is not a seed more.
  for again, first in (('c', 'a'), ('./a', 'a')):
    words = f'{again}: has the settings and the seed 3 of {first}; must have'
    with pytest.raises(InputError, match=words):
      run_groups.read_groups(['a', 'd', again])
  # Other code of the user is another setting.
  path = tmp_path / 'b' / 'config.json'
  began = json.loads(path.read_text()) | {'own_code_sha256': {'mine': 'x'}}
  path.write_text(json.dumps(began))
  assert names(run_groups.read_groups(['a', 'b'])) == {'a': [3], 'b': [4]}


def test_settings_of_a_sweep(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  settings = [{'algorithm': 'fedprox', 'client.proximal': 0.1}, {}]
  keys = [[setting, seed] for setting in settings for seed in (0, 1)]
  for folder, seed in (
    ('algorithm=fedprox,client.proximal=0.1', 0),
    ('algorithm=fedprox,client.proximal=0.1', 1),
    ('as it is', 0),
    ('as it is', 1),
  ):
    write_run(tmp_path / 'grid' / folder / f'seed_{seed}', [0.5], seed=seed)
  mark = tmp_path / 'grid' / 'sweep.json'
  mark.write_text(json.dumps({'format': FORMAT, 'config': {}, 'runs': keys}))
  first, second = 'algorithm=fedprox, client.proximal=0.1', 'as it is'
  found = run_groups.read_groups(['grid'])
  assert names(found) == {first: [0, 1], second: [0, 1]}
  write_run(tmp_path / 'own', [0.5])
  found = run_groups.read_groups(['grid', 'own'])
  assert [*found] == [f'grid: {first}', f'grid: {second}', 'own']
  found = run_groups.read_groups(['own', 'grid'])
  assert next(iter(found)) == 'own'  # The first folder is the baseline.
  for text, words in (
    ('{', 'sweep.json: cannot be read'),
    ('{"runs": [[1, 2]]}', 'sweep.json: cannot be read'),
    ('{"runs": []}', 'sweep.json: has format 1'),
    (json.dumps({'format': FORMAT, 'runs': []}), 'grid: has no runs'),
    (
      json.dumps({'format': FORMAT, 'runs': keys[:1] * 2}),
      'has seed 0 of one setting twice',
    ),
  ):
    mark.write_text(text)
    with pytest.raises(InputError, match=words):
      run_groups.read_groups(['grid'])


@pytest.mark.parametrize(
  ('status', 'config'),
  [
    ('interrupted', {}),
    ('', {}),
    ('finished', {'rounds': 9}),  # It is extended, to 9 rounds.
  ],
)
def test_runs_that_have_not_ended_are_refused(tmp_path, status, config):
  path = write_run(tmp_path / 'a', [0.1, 0.5], status=status, **config)
  with pytest.raises(InputError, match='a: has not ended .*round 1'):
    run_groups.read_groups([str(path)])
  # A summary of fewer rounds than there are lines is that of an earlier end.
  path = write_run(tmp_path / 'b', [0.1, 0.5])
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"round": 2, "test_accuracy": 0.6}\n')
  with pytest.raises(InputError, match="b: has not ended .*'interrupted'"):
    run_groups.read_groups([str(path)])


def test_a_sweep_that_is_half_extended_is_refused(tmp_path):
  def sweep(name, *jobs):
    for setting, seed, accuracies, status in jobs:
      folder = grid_jobs.run_folder(tmp_path / name, setting, seed)
      write_run(folder, accuracies, status=status, seed=seed)
    keys = [[setting, seed] for setting, seed, *_ in jobs]
    content = {'format': FORMAT, 'config': {}, 'runs': keys}
    (tmp_path / name / 'sweep.json').write_text(json.dumps(content))
    return [str(tmp_path / name)]

  one, other = {'lr': 1}, {'lr': 2}
  early = other, 1, [0.1, 0.5], 'diverged'
  for name, last in (('seeds', (one, 1)), ('settings', (other, 0))):
    folders = sweep(
      name,
      early,
      (one, 0, [0.1, 0.2, 0.3], 'finished'),
      (*last, [0.1, 0.2], 'finished'),
    )
    words = f'complete the sweep first: .* --workdir {folders[0]} .*rounds=2$'
    with pytest.raises(InputError, match=words):
      run_groups.read_groups(folders)
  # A sweep may be one of rounds, and runs may end early.
  folders = sweep(
    'rounds',
    ({'rounds': 1}, 0, [0.1, 0.2], 'finished'),
    ({'rounds': 2}, 0, [0.1, 0.2, 0.3], 'finished'),
    ({'rounds': 2}, 1, [0.1, 0.2], 'target reached'),
  )
  assert [len(runs) for runs in run_groups.read_groups(folders).values()] == [
    1,
    2,
  ]
