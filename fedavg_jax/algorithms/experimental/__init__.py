"""Defines algorithms that have not yet reproduced a published result.

Each is tested against its equations in NumPy and against the limit in which it
is FedAvg. An algorithm leaves this folder once a result is reproduced.
"""

from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.algorithms.experimental.compression import compress
from fedavg_jax.algorithms.experimental.feddyn import feddyn
from fedavg_jax.algorithms.experimental.fedexp import fedexp
from fedavg_jax.algorithms.experimental.fednova import fednova
from fedavg_jax.algorithms.experimental.qfedavg import qfedavg
from fedavg_jax.algorithms.experimental.quantizers import qsgd
from fedavg_jax.algorithms.experimental.quantizers import scaled_sign
from fedavg_jax.algorithms.experimental.rotation import drive
from fedavg_jax.algorithms.experimental.rotation import eden
from fedavg_jax.algorithms.experimental.sparsifiers import random_k
from fedavg_jax.algorithms.experimental.sparsifiers import top_k

__all__ = [
  'Compressor',
  'compress',
  'drive',
  'eden',
  'feddyn',
  'fedexp',
  'fednova',
  'qfedavg',
  'qsgd',
  'random_k',
  'scaled_sign',
  'top_k',
]
