"""Builds the algorithm that a config names."""

import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import robust_builder
from fedavg_jax.runs.run_config import RunConfig


def build_algorithm(
  cfg: RunConfig, num_clients: int = 0, num_classes: int = 0
) -> Algorithm:
  """Returns the algorithm that a checked config names.

  Args:
    cfg: the checked config.
    num_clients: K, the number of clients, for an attack of some of them.
    num_classes: the number of classes, for flips of labels.
  """
  local, server = cfg.client, cfg.server
  if own_parts.is_own(cfg, 'algorithm'):
    return own_parts.algorithm(cfg)
  if cfg.algorithm == 'scaffold':
    return algorithms.scaffold(local.learning_rate, server.learning_rate)
  if server.optimizer == 'sgd':
    server_optimizer = optax.sgd(
      server.learning_rate, momentum=server.momentum or None
    )
  else:
    server_optimizer = algorithms.adaptive(
      server.optimizer,
      server.learning_rate,
      b1=server.momentum,
      b2=server.second_momentum,
      tau=server.adaptivity,
    )
  client_optimizer = build_client_optimizer(cfg)
  if cfg.algorithm == 'fedprox':
    algorithm = algorithms.fedprox(
      local.proximal, client_optimizer, server_optimizer
    )
  else:
    algorithm = algorithms.fedavg(client_optimizer, server_optimizer)
  if local.clip_norm:
    algorithm = algorithms.clip_delta(algorithm, local.clip_norm)
  algorithm = robust_builder.defended(cfg, algorithm)
  return robust_builder.attacked(cfg, algorithm, num_clients, num_classes)


def build_client_optimizer(cfg: RunConfig) -> optax.GradientTransformation:
  """Returns the client optimizer of a checked config."""
  local = cfg.client
  return algorithms.decayed_sgd(
    local.learning_rate, local.decay, local.decay_rounds
  )
