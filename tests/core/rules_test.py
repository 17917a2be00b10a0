"""A number that breaks a rule is refused in one line."""

import re

import jax
import numpy as np
import pytest

from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError


@pytest.mark.parametrize('value', [0, 7, np.int8(7), np.uint64(7), 2**31 - 1])
def test_seeds(value):
  assert rules.check_seed(value) == int(value)


@pytest.mark.parametrize(
  ('check', 'words'),
  [
    (lambda: rules.check_seed(-1), 'seed = -1: must be at least 0'),
    (lambda: rules.check_seed(2**32), 'seed = 4294967296: must be in'),
    (lambda: rules.check_seed(10**30), 'seed = 1000000'),
    (lambda: rules.check_seed(1.0), 'seed = 1.0: must be a whole number'),
    (lambda: rules.check_seed(True), 'seed = True: must be a whole number'),
    (lambda: rules.check_seed(None), 'seed = None: must be a whole number'),
    (lambda: rules.check_whole('rounds', 0, 1), 'rounds = 0: must be at least'),
    (
      lambda: rules.check_real('mu', -1.0, 0, 5),
      'mu = -1.0: must be in [0, 5]',
    ),
    (lambda: rules.check_real('mu', float('nan'), 0, 5), 'must be finite'),
    (lambda: rules.check_real('mu', 'a', 0, 5), "mu = 'a': must be a number"),
    (lambda: rules.check_real('mu', True, 0, 5), 'mu = True: must be a number'),
    (lambda: rules.check_real('mu', np.ones(2), 0, 5), 'must be a number'),
    (lambda: rules.check_real('mu', 10**400, 0, 5), 'mu = inf: must be finite'),
    (lambda: rules.check_real('mu', np.float32(6), 0, 5), 'must be in [0, 5]'),
    (lambda: rules.check_rate('eta', 0.0), 'eta = 0.0: must be in [1e-30'),
    (lambda: rules.check_fraction('b1', 1.0), 'b1 = 1.0: must be below 1'),
  ],
)
def test_refusals(check, words):
  with pytest.raises(InputError, match=re.escape(words)):
    check()


def test_traced_values_are_not_checked():
  """A sweep traces its values, so that they have none yet."""
  traced = jax.eval_shape(
    lambda eta: [
      check('eta', eta) or eta
      for check in (
        rules.check_rate,
        rules.check_fraction,
        lambda name, value: rules.check_positive(name, value, 1),
      )
    ],
    np.float32(-1),
  )
  assert len(traced) == 3
