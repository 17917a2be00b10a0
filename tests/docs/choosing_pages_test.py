"""The programs of the pages about other frameworks and about limits run."""

import numpy as np
import pytest

from tests.testing.pages import python_of


@pytest.mark.slow
def test_coming_from(repository, capsys):
  """FedJAX's example has 6 steps here; messages and converted weights agree."""
  names = {}
  exec(python_of(repository / 'docs' / 'coming_from.md'), names)
  pytorch, flower, steps, first, second, third, pfl = (
    capsys.readouterr().out.splitlines()
  )
  assert float(pytorch) > 0.7 and float(flower) > 0.7
  assert (steps, first, pfl) == ('[6]', '0 {}', '3')
  for number, line in enumerate((second, third), 1):
    assert line.startswith(f"{number} {{'delta_norm':")
  # The rule of the page is the uniform mean of those that are present.
  messages = {'w': np.float32([[1, 2], [3, 4], [np.inf, 9]])}
  mean = names['mean_of_messages'](messages, np.float32([0.2, 0.8, 0]))
  np.testing.assert_array_equal(mean['w'], [2, 3])


@pytest.mark.slow
def test_when_not(repository, capsys):
  exec(python_of(repository / 'docs' / 'when_not.md'), {})
  assert 'a lane needs about' in capsys.readouterr().out
