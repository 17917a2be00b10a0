"""Defines FedAvg and related algorithms, one file with equations each."""

from fedavg_jax.algorithms.clipping import clip_delta
from fedavg_jax.algorithms.fedavg import decayed_sgd
from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.algorithms.fedavg import scheduled_sgd
from fedavg_jax.algorithms.fedopt import adaptive
from fedavg_jax.algorithms.fedprox import fedprox
from fedavg_jax.algorithms.fedprox import proximal
from fedavg_jax.algorithms.scaffold import scaffold

__all__ = [
  'adaptive',
  'clip_delta',
  'decayed_sgd',
  'fedavg',
  'fedprox',
  'proximal',
  'scaffold',
  'scheduled_sgd',
]
