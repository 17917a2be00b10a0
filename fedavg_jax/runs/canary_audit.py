"""Measures the epsilon of a round of the algorithm that a run has trained."""

import math

import jax
import numpy as np

from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.core.errors import InputError

# The measured round: N canaries, P other clients, messages of d numbers.
_CANARIES, _OTHERS, _SIZE = 16, 16, 32
# Canaries are longer than the clip, to find one that does not clip.
_TIMES_THE_CLIP = 8.0


def check(algorithm: Algorithm) -> None:
  """Raises InputError if an algorithm cannot run the measured round.

  Its model is one array, of which a user-defined algorithm may know nothing.
  """
  shape = jax.ShapeDtypeStruct
  try:
    jax.eval_shape(
      experimental.algorithm_round(algorithm, _SIZE, _CANARIES + _OTHERS),
      shape((_CANARIES + _OTHERS, _SIZE), np.float32),
      shape((_CANARIES + _OTHERS,), bool),
      jax.eval_shape(lambda: jax.random.key(0)),
    )
  except Exception as error:
    raise InputError(
      'privacy.canary_scores: must be 0 with an algorithm that does not train a'
      f' model of one array ({type(error).__name__})'
    ) from error


def measured_epsilon(
  algorithm: Algorithm, *, scores: int, delta: float
) -> float:
  """Measures a lower bound on the epsilon of one round, at 99.9 % confidence.

  Canaries join the cohort of a round by fair coins. Their messages go through
  the algorithm's own clip, sum, noise and server step; how well the new model
  tells who was there bounds epsilon from below, whatever is proven. The seeds
  are fixed.

  Args:
    algorithm: the private algorithm.
    scores: the number of scores of canaries, at least 64.
    delta: delta, in [0, 1).

  >>> import optax
  >>> import fedavg_jax as fa
  >>> private = fa.experimental.privatize(
  ...     fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  ...     clip=0.5, noise_multiplier=1.0, denominator=10)
  >>> bound = measured_epsilon(private, scores=1600, delta=1e-3)
  >>> 0.0 < bound < fa.experimental.gaussian_epsilon(1.0, delta=1e-3)
  True
  """
  assert algorithm.mechanism is not None
  canaries = experimental.orthogonal_canaries(
    jax.random.key(1), _CANARIES, _SIZE
  )
  found = experimental.canary_scores(
    experimental.algorithm_round(algorithm, _SIZE, _CANARIES + _OTHERS),
    canaries * (_TIMES_THE_CLIP * algorithm.mechanism.clip),
    jax.random.normal(jax.random.key(2), (_OTHERS, _SIZE)),
    runs=math.ceil(scores / _CANARIES),
    key=jax.random.key(0),
  )
  return experimental.epsilon_lower_bound(found, delta)
