"""Runs of several seeds are one group, and so are the settings of a sweep."""

import json

import pytest

from fedavg_jax.core.errors import InputError
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
    'c': {'seed': 3},  # A second run of one seed is not a seed more.
    'd': {'seed': 4, 'client': {'epochs': 9}},
  }.items():
    write_run(tmp_path / name, [0.1, 0.5], **config)
  found = run_groups.read_groups(['a', 'b', 'c', 'd'])
  assert names(found) == {'a and 1 more': [3, 4], 'c': [3], 'd': [4]}
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
  assert [*found] == ['own', f'grid: {first}', f'grid: {second}']
  for text, words in (
    ('{', 'sweep.json: cannot be read'),
    ('{"runs": [[1, 2]]}', 'sweep.json: cannot be read'),
    ('{"runs": []}', 'sweep.json: has format 1'),
    (json.dumps({'format': FORMAT, 'runs': []}), 'grid: has no runs'),
  ):
    mark.write_text(text)
    with pytest.raises(InputError, match=words):
      run_groups.read_groups(['grid'])
