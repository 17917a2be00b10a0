"""Defines algorithms that have not yet reproduced a published result.

Each is tested against its equations in NumPy and against the limit in which it
is FedAvg. An algorithm leaves this folder once a result is reproduced.
"""

from fedavg_jax.algorithms.experimental.attack import attack
from fedavg_jax.algorithms.experimental.attack import draw_attackers
from fedavg_jax.algorithms.experimental.attack_kinds import Attack
from fedavg_jax.algorithms.experimental.attack_kinds import gaussian_noise
from fedavg_jax.algorithms.experimental.attack_kinds import inner_product
from fedavg_jax.algorithms.experimental.attack_kinds import label_flip
from fedavg_jax.algorithms.experimental.attack_kinds import little_is_enough
from fedavg_jax.algorithms.experimental.attack_kinds import scaling
from fedavg_jax.algorithms.experimental.attack_kinds import sign_flip
from fedavg_jax.algorithms.experimental.clusters import clustered
from fedavg_jax.algorithms.experimental.clusters import ifca
from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.algorithms.experimental.compression import compress
from fedavg_jax.algorithms.experimental.fedbuff import fedbuff
from fedavg_jax.algorithms.experimental.feddyn import feddyn
from fedavg_jax.algorithms.experimental.fedexp import fedexp
from fedavg_jax.algorithms.experimental.fednova import fednova
from fedavg_jax.algorithms.experimental.mimelite import mimelite
from fedavg_jax.algorithms.experimental.personal import first_epochs
from fedavg_jax.algorithms.experimental.personal import personal
from fedavg_jax.algorithms.experimental.privatize import AdaptiveClip
from fedavg_jax.algorithms.experimental.privatize import privatize
from fedavg_jax.algorithms.experimental.qfedavg import qfedavg
from fedavg_jax.algorithms.experimental.quantizers import qsgd
from fedavg_jax.algorithms.experimental.quantizers import scaled_sign
from fedavg_jax.algorithms.experimental.robust import bound_norms
from fedavg_jax.algorithms.experimental.robust import robust
from fedavg_jax.algorithms.experimental.robust_rules import Rule
from fedavg_jax.algorithms.experimental.robust_rules import centred_clipping
from fedavg_jax.algorithms.experimental.robust_rules import coordinate_median
from fedavg_jax.algorithms.experimental.robust_rules import geometric_median
from fedavg_jax.algorithms.experimental.robust_rules import krum
from fedavg_jax.algorithms.experimental.robust_rules import trimmed_mean
from fedavg_jax.algorithms.experimental.roles import Shared
from fedavg_jax.algorithms.experimental.rotation import drive
from fedavg_jax.algorithms.experimental.rotation import eden
from fedavg_jax.algorithms.experimental.sparsifiers import random_k
from fedavg_jax.algorithms.experimental.sparsifiers import top_k
from fedavg_jax.algorithms.experimental.two_models import apfl
from fedavg_jax.algorithms.experimental.two_models import ditto
from fedavg_jax.algorithms.experimental.two_models import two_models

__all__ = [
  'AdaptiveClip',
  'Attack',
  'Compressor',
  'Rule',
  'Shared',
  'apfl',
  'attack',
  'bound_norms',
  'centred_clipping',
  'clustered',
  'compress',
  'coordinate_median',
  'ditto',
  'draw_attackers',
  'drive',
  'eden',
  'fedbuff',
  'feddyn',
  'fedexp',
  'fednova',
  'first_epochs',
  'gaussian_noise',
  'geometric_median',
  'ifca',
  'inner_product',
  'krum',
  'label_flip',
  'little_is_enough',
  'mimelite',
  'personal',
  'privatize',
  'qfedavg',
  'qsgd',
  'random_k',
  'robust',
  'scaled_sign',
  'scaling',
  'sign_flip',
  'top_k',
  'trimmed_mean',
  'two_models',
]
