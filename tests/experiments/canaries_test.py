"""Canaries find faulty mechanisms, and accept correct ones."""

import pytest

from experiments.stress import canaries
from tests.testing import rest_slow

NAMES = ['DP-FedAvg', 'reused key', *canaries.CASES]


@pytest.mark.parametrize('name', rest_slow(2, dict.fromkeys(NAMES)))
def test_the_bound_is_on_the_right_side(name):
  case = canaries.CASES[name]()
  scores = 16_000 if case.others is None else 64_000
  bound = canaries.measure(case, scores)
  assert (bound > case.proven) == case.faulty
  if not case.faulty:  # It measures something.
    assert bound > 0.5


@pytest.mark.slow
def test_the_command(capsys):
  assert canaries.main(['--scores', '64000', '--seed', '1']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 + len(canaries.CASES)
  assert not any('wrong' in line for line in lines)
