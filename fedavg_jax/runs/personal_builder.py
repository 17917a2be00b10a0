"""Builds the personal models that a config names."""

import optax

from fedavg_jax.algorithms import experimental
from fedavg_jax.algorithms.experimental.roles import Shared
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.model import Model
from fedavg_jax.models import zoo
from fedavg_jax.runs.config_personal import TWO_MODELS
from fedavg_jax.runs.run_config import RunConfig


def build_model(cfg: RunConfig, model: Model) -> Model:
  """Returns the model of a checked config, with those that its method adds."""
  if cfg.personal.method in TWO_MODELS:
    return experimental.two_models(model)
  if cfg.personal.method == 'ifca':
    return experimental.clustered(model, cfg.personal.clusters)
  if cfg.personal.method == 'fedbn':  # The statistics stay with a client too.
    return model._replace(state_of='client')
  return model


def build_algorithm(
  cfg: RunConfig, algorithm: Algorithm, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Returns an algorithm with the personal models of a checked config.

  Args:
    cfg: the checked config.
    algorithm: the algorithm of what is shared.
    optimizer: the client optimizer of what is personal.
  """
  own = cfg.personal
  if not own.method:
    return algorithm
  if own.method == 'ditto':
    return experimental.ditto(algorithm, own.proximal, optimizer)
  if own.method == 'apfl':
    return experimental.apfl(algorithm, own.alpha, own.alpha_rate, optimizer)
  if own.method == 'ifca':
    return experimental.ifca(optimizer, own.clusters, cfg.client.batch_size)
  first = 0
  if own.method == 'fedrep':
    first = experimental.first_epochs(own.head_epochs, cfg.client.batch_size)
  roles = own.patterns or [
    '*Norm*' if own.method == 'fedbn' else zoo.HEADS[cfg.model]
  ]
  if own.method in ('lg', 'adapters'):
    return experimental.personal(
      algorithm,
      Shared(roles, 'personal' if own.method == 'lg' else 'frozen'),
      optimizer,
    )
  return experimental.personal(algorithm, roles, optimizer, first=first)
