"""Folders of runs are read, and only tests on the same data compared."""

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import compare
from tests.testing.run_folders import write_run


def run(name, **data):
  same = {
    'dataset': 'digits',
    'test_sha256': 'a',
    'measured_on': 'test',
    'loss': None,
  }
  return compare.Run(name, {}, same | data, [], 'finished')


@pytest.mark.parametrize(
  ('data', 'words'),
  [
    ({'measured_on': 'validation'}, "measured_on = 'validation', not 'test'"),
    ({'test_sha256': 'b'}, "test_sha256 = 'b', not 'a'"),
    ({'dataset': 'mnist'}, "dataset = 'mnist', not 'digits'"),
  ],
)
def test_accuracies_on_other_data_are_not_compared(data, words):
  compare.check_same_data([run('one'), run('two')])
  with pytest.raises(InputError, match=f'two: has another test.*{words}'):
    compare.check_same_data([run('one'), run('two', **data)])


def test_a_run_that_has_diverged_has_no_best_value(tmp_path):
  folder = write_run(tmp_path / 'a', [0.9, 0.1], status='diverged')
  row = compare.row(compare.read_run(folder, 'a'), 0.0)
  table = compare.table([row], 0.0)
  assert '| a | 1 | — | 0.1000 |' in table and '| diverged |' in table


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    ('{"round": 2', 'line 3: Expecting'),
    ('{"round": true, "test_accuracy": 0.5}', 'line 3 is not a round'),
    ('{"round": 2.0, "test_accuracy": 0.5}', 'line 3 is not a round'),
    ('{"round": 1, "test_accuracy": 0.5}', 'line 3: round 1 after round 1'),
    ('{"round": 0, "test_accuracy": 0.5}', 'line 3: round 0 after round 1'),
  ],
)
def test_the_number_of_a_damaged_line_is_named(tmp_path, line, words):
  folder = write_run(tmp_path / 'a', [0.1, 0.5])
  path = folder / 'metrics.jsonl'
  path.write_text(path.read_text() + line + '\n')
  with pytest.raises(InputError, match=f'metrics.jsonl: cannot.*{words}'):
    compare.read_run(folder)
