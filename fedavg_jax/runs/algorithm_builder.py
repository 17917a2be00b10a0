"""Builds the algorithm that a config names."""

import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import personal_builder
from fedavg_jax.runs.run_config import RunConfig


def build_algorithm(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm that a checked config names, with its wrappers."""
  return personal_builder.build_algorithm(
    cfg, _named(cfg), build_client_optimizer(cfg)
  )


def _named(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm without wrappers, but for the clipping of deltas."""
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
  return algorithm


def build_client_optimizer(cfg: RunConfig) -> optax.GradientTransformation:
  """Returns the client optimizer of a checked config."""
  local = cfg.client
  return algorithms.decayed_sgd(
    local.learning_rate, local.decay, local.decay_rounds
  )
