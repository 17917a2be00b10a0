"""Defines algorithms that have not yet reproduced a published result.

Each is tested against its equations in NumPy and against the limit in which it
is FedAvg. An algorithm leaves this folder once a result is reproduced.
"""

from fedavg_jax.algorithms.experimental.clusters import clustered
from fedavg_jax.algorithms.experimental.clusters import ifca
from fedavg_jax.algorithms.experimental.feddyn import feddyn
from fedavg_jax.algorithms.experimental.fedexp import fedexp
from fedavg_jax.algorithms.experimental.fednova import fednova
from fedavg_jax.algorithms.experimental.personal import first_epochs
from fedavg_jax.algorithms.experimental.personal import personal
from fedavg_jax.algorithms.experimental.qfedavg import qfedavg
from fedavg_jax.algorithms.experimental.two_models import apfl
from fedavg_jax.algorithms.experimental.two_models import ditto
from fedavg_jax.algorithms.experimental.two_models import two_models

__all__ = [
  'apfl',
  'clustered',
  'ditto',
  'feddyn',
  'fedexp',
  'fednova',
  'first_epochs',
  'ifca',
  'personal',
  'qfedavg',
  'two_models',
]
