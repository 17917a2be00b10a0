"""Clips the deltas of any other algorithm."""

import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.core import rules


def clip_delta(algorithm: Algorithm, max_norm: float) -> Algorithm:
  """Clips each client's delta to a Euclidean norm of at most `max_norm`.

  The norm is over all leaves together. The algorithm's `client_finish` receives
  the clipped delta. McMahan et al. 2018, "Learning Differentially Private
  Recurrent Language Models", call this flat clipping.

  Args:
    algorithm: the algorithm to wrap.
    max_norm: the largest norm, in (0, 1e30].

  Returns:
    The algorithm with clipped deltas.

  Raises:
    InputError: `max_norm` is out of range.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> clipped = fa.clip_delta(fedavg, max_norm=1.0)
  >>> delta = jnp.array([3.0, 4.0])
  >>> context = fa.ClientContext(delta, (), (), 0, 9, 1, key=None)
  >>> result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
  >>> message = clipped.client_finish(result).message
  >>> bool(jnp.allclose(message, delta / 5))
  True
  """
  rules.check_positive('max_norm', max_norm, 1e30)
  clip = optax.clip_by_global_norm(max_norm)

  def client_finish(result: ClientResult):
    delta, _ = clip.update(result.delta, optax.EmptyState())
    return algorithm.client_finish(result._replace(delta=delta))

  return algorithm._replace(client_finish=client_finish)
