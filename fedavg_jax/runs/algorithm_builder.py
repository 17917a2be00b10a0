"""Builds the algorithm that a config names."""

import optax

from fedavg_jax import algorithms
from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs import compression_builder
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import personal_builder
from fedavg_jax.runs import privacy_builder
from fedavg_jax.runs import private_parts_builder
from fedavg_jax.runs import robust_builder
from fedavg_jax.runs.run_config import RunConfig


def build_algorithm(
  cfg: RunConfig,
  num_clients: int = 0,
  num_classes: int = 0,
  given: Algorithm | None = None,
) -> Algorithm:
  """Returns the algorithm of a checked config, with the wrappers that it names.

  Args:
    cfg: the checked config.
    num_clients: K, the number of clients, some of which may attack.
    num_classes: the number of classes, for flips of labels.
    given: the algorithm given from Python; None if the config names it.
  """
  algorithm = given or _named(cfg)
  algorithm = personal_builder.build_algorithm(
    cfg, algorithm, build_client_optimizer(cfg)
  )
  algorithm = private_parts_builder.noisy(cfg, algorithm)
  algorithm = compression_builder.compressed(cfg, algorithm)
  if cfg.asynchronous.buffer:
    algorithm = experimental.fedbuff(
      algorithm, cfg.asynchronous.staleness_exponent
    )
  algorithm = robust_builder.defended(cfg, algorithm)
  algorithm = robust_builder.attacked(cfg, algorithm, num_clients, num_classes)
  algorithm = private_parts_builder.summed(cfg, algorithm)
  return privacy_builder.privatized(cfg, algorithm, num_clients)


def _named(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm without wrappers, but for the clipping of deltas."""
  if own_parts.is_own(cfg, 'algorithm'):
    return own_parts.algorithm(cfg)
  algorithm = _of_family(cfg)
  if cfg.client.clip_norm:
    return algorithms.clip_delta(algorithm, cfg.client.clip_norm)
  return algorithm


def _of_family(cfg: RunConfig) -> Algorithm:
  """Returns the algorithm without wrappers; one line per word."""
  local, server = cfg.client, cfg.server
  sgd = build_client_optimizer(cfg)
  with_proximal = optax.chain(algorithms.proximal(local.proximal), sgd)
  of_server = _optimizer(cfg, server.learning_rate)
  match cfg.algorithm:
    case 'fedprox':
      return algorithms.fedprox(local.proximal, sgd, of_server)
    case 'scaffold':
      return algorithms.scaffold(
        local.learning_rate,
        server.learning_rate,
        momentum=local.momentum or None,
        control=local.control,
      )
    case 'fednova':
      return experimental.fednova(sgd, of_server)
    case 'fednova_prox':
      return experimental.fednova(with_proximal, of_server)
    case 'feddyn':
      return experimental.feddyn(local.regularization, sgd)
    case 'fedexp':
      return experimental.fedexp(sgd, server.epsilon)
    case 'qfedavg':
      return experimental.qfedavg(server.fairness, local.learning_rate)
    case 'mimelite':
      return experimental.mimelite(
        _optimizer(cfg, local.learning_rate), optax.sgd(server.learning_rate)
      )
  return algorithms.fedavg(sgd, of_server)


def _optimizer(
  cfg: RunConfig, learning_rate: float
) -> optax.GradientTransformation:
  """Returns the optimizer of the section `server`, with a learning rate."""
  server = cfg.server
  if server.optimizer == 'sgd':
    return optax.sgd(
      learning_rate,
      momentum=server.momentum or None,
      nesterov=server.nesterov,
    )
  return algorithms.adaptive(
    server.optimizer,
    learning_rate,
    b1=server.momentum,
    b2=server.second_momentum,
    tau=server.adaptivity,
  )


def build_client_optimizer(cfg: RunConfig) -> optax.GradientTransformation:
  """Returns the client optimizer of a checked config."""
  local = cfg.client
  rate, rounds = local.learning_rate, local.decay_rounds
  match local.schedule:
    case 'cosine':
      sgd = algorithms.scheduled_sgd(
        optax.cosine_decay_schedule(rate, rounds, alpha=local.decay)
      )
    case 'linear':
      sgd = algorithms.scheduled_sgd(
        optax.linear_schedule(rate, local.decay * rate, rounds)
      )
    case _:
      sgd = algorithms.decayed_sgd(rate, local.decay, rounds)
  if local.momentum:
    return optax.chain(optax.trace(local.momentum), sgd)
  return sgd
