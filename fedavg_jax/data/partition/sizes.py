"""Sizes of clients, after a law or as they are given."""

import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.choices import SIZE_LAWS
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.partition.checks import check_clients
from fedavg_jax.data.partition.checks import check_sizes
from fedavg_jax.data.partition.checks import cut

# A stream of random numbers; client_data.py has 3, participation.py 5 and 6.
_SIZES = 4


def sizes(
  law: str,
  num_examples: int,
  *,
  num_clients: int,
  skew: float = 1.0,
  min_size: int = 0,
  rest: bool = False,
  seed: int,
) -> np.ndarray:
  """Sizes of K clients after a law; each has at least one example.

  Args:
    law: client i = 1 ... K has a share in proportion to 1 ('equal'), i
      ('linear'), i^2 ('square'), e^i ('exponential'), i^-skew ('power_law') or
      exp(skew z), z ~ N(0, 1) ('log_normal'); or the sizes themselves, with
      commas between them.
    num_examples: n, what they add up to.
    num_clients: K.
    skew: of 'power_law' and 'log_normal'.
    min_size: examples that each client has before a law shares out the others.
    rest: whether sizes that are given may add up to less than n.
    seed: of 'log_normal'.

  Returns:
    [K] int64.

  >>> sizes('linear', 100, num_clients=4, seed=0)
  array([10, 20, 30, 40])
  """
  check_clients(num_examples, num_clients)
  if law not in SIZE_LAWS:
    try:
      given = np.array([int(text) for text in law.split(',')], np.int64)
    except (ValueError, OverflowError):
      raise InputError(
        f'sizes = {law!r}: must be one of {", ".join(SIZE_LAWS)}, or whole'
        ' numbers with commas between them'
      ) from None
    return check_sizes(given, num_examples, num_clients, rest=rest)
  rules.check_seed(seed)
  rules.check_real('skew', skew, 0, 100)
  rules.check_whole('min_size', min_size, 0, num_examples // num_clients)
  i = np.arange(1, num_clients + 1, dtype=np.float64)
  if law == 'log_normal':
    rng = np.random.default_rng([seed, _SIZES])
    logs = skew * rng.standard_normal(num_clients)
  else:
    logs = {
      'equal': np.zeros(num_clients),
      'linear': np.log(i),
      'square': 2 * np.log(i),
      'exponential': i,
      'power_law': -skew * np.log(i),
    }[law]
  shares = np.exp(logs - logs.max())
  shared_out = num_examples - min_size * num_clients
  found = min_size + cut(shared_out, shares / shares.sum())
  # Who would have nothing gets one from who has the most.
  for k in np.flatnonzero(found == 0):
    found[found.argmax()] -= 1
    found[k] = 1
  return found
