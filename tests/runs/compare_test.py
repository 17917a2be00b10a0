import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import compare


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
