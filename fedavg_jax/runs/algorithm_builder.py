"""Builds the algorithm that a config names."""

import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs import compression_builder
from fedavg_jax.runs import own_parts
from fedavg_jax.runs.run_config import RunConfig


def build_algorithm(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm that a checked config names."""
  if own_parts.is_own(cfg, 'algorithm'):
    return own_parts.algorithm(cfg)
  algorithm = compression_builder.compressed(cfg, _of_family(cfg))
  if cfg.client.clip_norm:
    algorithm = algorithms.clip_delta(algorithm, cfg.client.clip_norm)
  return algorithm


def _of_family(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm without wrappers."""
  local, server = cfg.client, cfg.server
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
    return algorithms.fedprox(
      local.proximal, client_optimizer, server_optimizer
    )
  return algorithms.fedavg(client_optimizer, server_optimizer)


def build_client_optimizer(cfg: RunConfig) -> optax.GradientTransformation:
  """Returns the client optimizer of a checked config."""
  local = cfg.client
  return algorithms.decayed_sgd(
    local.learning_rate, local.decay, local.decay_rounds
  )
