"""Computes the sizes of clients by a law, or parses given ones."""

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
  """Returns the sizes of K clients by a law; each is at least one.

  Args:
    law: the law of the shares of clients i = 1 ... K, which are in proportion
      to 1 ('equal'), i ('linear'), i^2 ('square'), e^i ('exponential'), i^-skew
      ('power_law') or exp(skew z), z ~ N(0, 1) ('log_normal'); or the sizes
      themselves, separated by commas.
    num_examples: n, the sum of the sizes.
    num_clients: K, the number of clients.
    skew: the exponent or scale in 'power_law' and 'log_normal', in [0, 100].
    min_size: the examples of each client before a law divides the others.
    rest: whether given sizes may add up to less than n.
    seed: the seed of 'log_normal'.

  Returns:
    [K] int64.

  Raises:
    InputError: a value breaks its rule.

  >>> import fedavg_jax as fa
  >>> fa.partition.sizes('linear', 100, num_clients=4, seed=0).tolist()
  [10, 20, 30, 40]
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
  # A client without examples gets one of the largest client's.
  for k in np.flatnonzero(found == 0):
    found[found.argmax()] -= 1
    found[k] = 1
  return found
