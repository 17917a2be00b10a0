"""Algorithms that have not yet reproduced a published number.

Each is tested against its equations in NumPy and against the limit in which it
is FedAvg. One leaves this folder when a published result is reproduced.
"""

from fedavg_jax.algorithms.experimental.feddyn import FedDynServer
from fedavg_jax.algorithms.experimental.feddyn import feddyn
from fedavg_jax.algorithms.experimental.fedexp import fedexp
from fedavg_jax.algorithms.experimental.fednova import fednova
from fedavg_jax.algorithms.experimental.qfedavg import qfedavg

__all__ = ['FedDynServer', 'feddyn', 'fedexp', 'fednova', 'qfedavg']
