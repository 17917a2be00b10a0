"""Clipped deltas, around any other algorithm."""

import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.core import rules


def clip_delta(algorithm: Algorithm, max_norm: float) -> Algorithm:
  """Scales a client's delta down to a Euclidean norm of at most `max_norm`.

  The norm is over all arrays together. What the algorithm sends, it makes of
  the clipped delta.

  Raises:
    InputError: `max_norm` is not above 0.
  """
  rules.check_positive('max_norm', max_norm, 1e30)
  clip = optax.clip_by_global_norm(max_norm)

  def client_finish(result: ClientResult):
    delta, _ = clip.update(result.delta, optax.EmptyState())
    return algorithm.client_finish(result._replace(delta=delta))

  return algorithm._replace(client_finish=client_finish)
