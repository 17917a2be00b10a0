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
from fedavg_jax.algorithms.experimental.canaries import CanaryScores
from fedavg_jax.algorithms.experimental.canaries import algorithm_round
from fedavg_jax.algorithms.experimental.canaries import canary_scores
from fedavg_jax.algorithms.experimental.canaries import epsilon_lower_bound
from fedavg_jax.algorithms.experimental.canaries import orthogonal_canaries
from fedavg_jax.algorithms.experimental.clusters import clustered
from fedavg_jax.algorithms.experimental.clusters import ifca
from fedavg_jax.algorithms.experimental.compression import Compressor
from fedavg_jax.algorithms.experimental.compression import compress
from fedavg_jax.algorithms.experimental.correlated_noise import Strategy
from fedavg_jax.algorithms.experimental.correlated_noise import banded_strategy
from fedavg_jax.algorithms.experimental.correlated_noise import check_separation
from fedavg_jax.algorithms.experimental.correlated_noise import correlated_noise
from fedavg_jax.algorithms.experimental.correlated_noise import rotating_draw
from fedavg_jax.algorithms.experimental.example_dp import example_dp
from fedavg_jax.algorithms.experimental.example_dp import example_epsilon
from fedavg_jax.algorithms.experimental.fedbuff import fedbuff
from fedavg_jax.algorithms.experimental.feddyn import feddyn
from fedavg_jax.algorithms.experimental.fedexp import fedexp
from fedavg_jax.algorithms.experimental.fednova import fednova
from fedavg_jax.algorithms.experimental.gaussian import gaussian_epsilon
from fedavg_jax.algorithms.experimental.local_dp import local_dp
from fedavg_jax.algorithms.experimental.local_dp import local_epsilon
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
from fedavg_jax.algorithms.experimental.secure_sums import pairwise_masks
from fedavg_jax.algorithms.experimental.secure_sums import secure_aggregation
from fedavg_jax.algorithms.experimental.sparsifiers import random_k
from fedavg_jax.algorithms.experimental.sparsifiers import top_k
from fedavg_jax.algorithms.experimental.two_models import apfl
from fedavg_jax.algorithms.experimental.two_models import ditto
from fedavg_jax.algorithms.experimental.two_models import two_models

__all__ = [
  'AdaptiveClip',
  'Attack',
  'CanaryScores',
  'Compressor',
  'Rule',
  'Shared',
  'Strategy',
  'algorithm_round',
  'apfl',
  'attack',
  'banded_strategy',
  'bound_norms',
  'canary_scores',
  'centred_clipping',
  'check_separation',
  'clustered',
  'compress',
  'coordinate_median',
  'correlated_noise',
  'ditto',
  'draw_attackers',
  'drive',
  'eden',
  'epsilon_lower_bound',
  'example_dp',
  'example_epsilon',
  'fedbuff',
  'feddyn',
  'fedexp',
  'fednova',
  'first_epochs',
  'gaussian_epsilon',
  'gaussian_noise',
  'geometric_median',
  'ifca',
  'inner_product',
  'krum',
  'label_flip',
  'little_is_enough',
  'local_dp',
  'local_epsilon',
  'mimelite',
  'orthogonal_canaries',
  'pairwise_masks',
  'personal',
  'privatize',
  'qfedavg',
  'qsgd',
  'random_k',
  'robust',
  'rotating_draw',
  'scaled_sign',
  'scaling',
  'secure_aggregation',
  'sign_flip',
  'top_k',
  'trimmed_mean',
  'two_models',
]
