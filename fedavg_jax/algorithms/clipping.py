"""Clipped deltas, around any other algorithm."""

import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import Ended
from fedavg_jax.core import rules


def clip_delta(algorithm: Algorithm, max_norm: float) -> Algorithm:
  """Scales a client's delta down to a Euclidean norm of at most `max_norm`.

  The norm is over all arrays together. The algorithm then makes its message of
  the clipped delta.

  Raises:
    InputError: `max_norm` is not above 0.
  """
  rules.check_positive('max_norm', max_norm, 1e30)
  clip = optax.clip_by_global_norm(max_norm)

  def message(ended: Ended):
    delta, _ = clip.update(ended.delta, optax.EmptyState())
    return algorithm.message(ended._replace(delta=delta))

  return algorithm._replace(message=message)
