"""Builds what a config names: data, clients, model, algorithm, simulation."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import client_data
from fedavg_jax.data import catalog
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import build_simulation
from fedavg_jax.models import zoo
from fedavg_jax.runs import population
from fedavg_jax.runs.run_config import RunConfig


class Federation(NamedTuple):
  """What a config's run is made of, before anything is compiled.

  Attributes:
    dataset: of the config.
    clients: those examples, back to back.
    held: what clients hold out, back to back.
    model: of the config.
  """

  dataset: Dataset
  clients: client_data.Clients
  held: client_data.Clients
  model: Model


def prepare(cfg: RunConfig) -> Federation:
  """The data, the clients and the model that a checked config names."""
  dataset = catalog.load_dataset(cfg.dataset, cfg.data_dir)
  clients, held = population.build_population(cfg, dataset)
  return Federation(
    dataset=dataset,
    clients=clients,
    held=held,
    model=zoo.build_model(
      cfg.model,
      dataset,
      pixels=cfg.pixels,
      augmentation=cfg.augmentation,
      convolution=cfg.convolution,
      precision=cfg.precision,
    ),
  )


def build(
  cfg: RunConfig,
  federation: Federation,
  algorithm: Any,
  *,
  lanes: int,
  sweep: Sequence[float] | None = None,
) -> Simulation:
  """Compiles what a checked config says; the rest as `build_simulation`."""
  local, clients = cfg.client, federation.clients
  return build_simulation(
    federation.model,
    clients,
    federation.dataset.test,
    client_fraction=cfg.client_fraction,
    participation=population.build_participation(cfg, clients.num_examples),
    weighting=cfg.weighting,
    epochs=local.epochs,
    batch_size=local.batch_size,
    algorithm=algorithm,
    sweep=sweep,
    on_nan=cfg.on_nan,
    shuffle=local.shuffle,
    seed=cfg.seed,
    lanes=lanes,
    micro_batch=cfg.micro_batch,
    stream=cfg.examples_on == 'host',
    keep_on_host=cfg.client_states_on != 'device',
    rounds_per_call=cfg.rounds_per_call,
  )


def build_algorithm(cfg: RunConfig) -> Algorithm:
  """The algorithm that a checked config names."""
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
    algorithm = algorithms.fedprox(
      local.proximal, client_optimizer, server_optimizer
    )
  else:
    algorithm = algorithms.fedavg(client_optimizer, server_optimizer)
  if local.clip_norm:
    algorithm = algorithms.clip_delta(algorithm, local.clip_norm)
  return algorithm


def build_client_optimizer(cfg: RunConfig) -> optax.GradientTransformation:
  """The optimizer of a checked config's clients."""
  local = cfg.client
  return algorithms.decayed_sgd(
    local.learning_rate, local.decay, local.decay_rounds
  )


def build_client_tests(
  cfg: RunConfig, federation: Federation, simulation: Simulation
) -> Callable[[Any], client_evaluation.ClientTests] | None:
  """Builds the tests on what clients hold out, None where there are none."""
  if not cfg.client_eval_every:
    return None
  return client_evaluation.build_client_tests(
    federation.model,
    simulation,
    federation.held,
    finetune=build_client_optimizer(cfg),
    epochs=cfg.finetune_epochs,
  )
