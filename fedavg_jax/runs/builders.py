"""Builds what a config names: data, clients, model, algorithm, simulation."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedavg_jax import algorithms
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task import make_task
from fedavg_jax.contracts.task import results
from fedavg_jax.core import client_data
from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine import evaluation
from fedavg_jax.engine.options import Execution
from fedavg_jax.engine.options import Federation
from fedavg_jax.engine.options import Placement
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import build_simulation
from fedavg_jax.models import zoo
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import population
from fedavg_jax.runs.given import NOTHING
from fedavg_jax.runs.given import Given
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.targets import Measure


class Prepared(NamedTuple):
  """What a config's run is made of, before anything is compiled.

  Attributes:
    dataset: of the config.
    clients: those examples, back to back.
    held: what clients hold out, back to back.
    validation: what all clients have given to choose by, None for nothing.
    model: of the config.
    loss: of the config.
    metrics: of the config; None are those that go with the loss.
    algorithm: that was given from Python, None where the config names one.
  """

  dataset: Dataset
  clients: client_data.Clients
  held: client_data.Clients
  validation: client_data.Examples | None
  model: Model
  loss: Loss
  metrics: tuple[Metric, ...] | None
  algorithm: Algorithm | None

  @property
  def task(self) -> Task:
    """What is learned, and by what it is measured."""
    return make_task(self.model, self.loss, self.metrics)


def prepare(cfg: RunConfig, given: Given = NOTHING) -> Prepared:
  """The data, the clients and the task that a checked config names.

  Args:
    cfg: checked.
    given: what comes from Python in the place of names.
  """
  own_parts.import_all(cfg)
  dataset = given.dataset or own_parts.load_dataset(cfg)
  own = population.build_population(cfg, dataset)
  loss = given.loss or own_parts.loss(cfg, dataset)
  prepared = Prepared(
    dataset=dataset,
    clients=own.clients,
    held=own.held,
    validation=own.validation,
    model=given.model or build_model(cfg, dataset),
    loss=loss,
    metrics=given.metrics or own_parts.metrics(cfg, dataset, loss),
    algorithm=given.algorithm,
  )
  _check_targets(cfg, prepared)
  return prepared


def _check_targets(cfg: RunConfig, prepared: Prepared) -> None:
  """Raises InputError where labels, or a target value, do not fit the task."""
  task, labels = prepared.task, prepared.dataset.train.y
  if task.classifies and not (trees.is_tree(labels) or exact.are_whole(labels)):
    raise InputError(
      f'loss = {cfg.loss!r}: is cross entropy, which needs class numbers, but'
      f' {prepared.dataset.name} has other ones; must be another loss, such as'
      ' squared_error'
    )
  first = task.metrics[0]
  if cfg.target_accuracy and first.lower_is_better:
    raise InputError(
      f'target_accuracy = {cfg.target_accuracy}: must be 0 where smaller is'
      ' better, as of the first metric here; target is the value to come down'
      ' to'
    )
  if cfg.target and first.most == 1 and not 0 <= cfg.target <= 1:
    raise InputError(
      f'target = {cfg.target}: must be in [0, 1], as the first metric does'
    )


def build_model(cfg: RunConfig, dataset: Dataset) -> Model:
  """Returns the model that a checked config names."""
  if own_parts.is_own(cfg, 'model'):
    return own_parts.model(cfg, dataset)
  return zoo.build_model(
    cfg.model,
    dataset,
    pixels=cfg.pixels,
    augmentation=cfg.augmentation,
    convolution=cfg.convolution,
    precision=cfg.precision,
  )


def federate(cfg: RunConfig, prepared: Prepared) -> Federation:
  """Returns who trains on what, as a config says it."""
  clients, local = prepared.clients, cfg.client
  measured = prepared.validation or prepared.dataset.test
  return Federation(
    clients,
    measured,
    client_fraction=cfg.client_fraction,
    epochs=local.epochs,
    batch_size=local.batch_size,
    participation=population.build_participation(cfg, clients.num_examples),
    weighting=cfg.weighting,
    shuffle=local.shuffle,
    on_nan=cfg.on_nan,
    seed=cfg.seed,
  )


def execution(cfg: RunConfig, *, lanes: int) -> Execution:
  """Returns how a config is computed, with lanes of its own or a run's."""
  return Execution(
    lanes=lanes,
    micro_batch=cfg.micro_batch,
    rounds_per_call=cfg.rounds_per_call,
  )


def placement(cfg: RunConfig) -> Placement:
  """Returns where a config has the data of clients; disks are the host's."""
  states_on = 'device' if cfg.client_states_on == 'device' else 'host'
  return Placement(examples_on=cfg.examples_on, client_states_on=states_on)


def build(cfg: RunConfig, prepared: Prepared, *, lanes: int) -> Simulation:
  """Compiles what a config says."""
  return build_simulation(
    prepared.model,
    federate(cfg, prepared),
    prepared.algorithm or build_algorithm(cfg),
    loss=prepared.loss,
    metrics=prepared.metrics,
    execution=execution(cfg, lanes=lanes),
    placement=placement(cfg),
  )


def build_measure(
  cfg: RunConfig, prepared: Prepared, simulation: Simulation
) -> Measure:
  """Returns what a run is judged by: its first metric.

  Args:
    cfg: checked.
    prepared: of the config.
    simulation: compiled.
  """
  task = simulation.task
  if prepared.metrics is None and task.classifies:
    return Measure(on=cfg.measured_on)  # Without a trace: this is the usual.
  variables = jax.eval_shape(simulation.init)[0].variables
  if simulation.sweep is not None:
    variables = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), variables
    )
  shapes = jax.eval_shape(
    lambda variables, test: evaluation.no_sums(task, variables, test),
    variables,
    simulation.test,
  )
  nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
  (name, *_) = results(task, nothing)
  return Measure(name, task.metrics[0].lower_is_better, cfg.measured_on)


def build_algorithm(cfg: RunConfig) -> Algorithm:
  """The algorithm that a checked config names."""
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
  """The optimizer of a checked config's clients."""
  local = cfg.client
  return algorithms.decayed_sgd(
    local.learning_rate, local.decay, local.decay_rounds
  )


def build_client_tests(
  cfg: RunConfig, prepared: Prepared, simulation: Simulation
) -> Callable[[Any], client_evaluation.ClientTests] | None:
  """Builds the tests on what clients hold out, None where there are none."""
  if not cfg.client_eval_every:
    return None
  return client_evaluation.build_client_tests(
    simulation,
    prepared.held,
    finetune=build_client_optimizer(cfg),
    epochs=cfg.finetune_epochs,
  )


def build_last_test(
  prepared: Prepared, simulation: Simulation
) -> Callable[[Any], dict[str, float]] | None:
  """Builds the test of the last model, None where each was tested on that set.

  Returns:
    Variables -> results on the test set, which a validation set kept unused.
  """
  if prepared.validation is None:
    return None
  task, mesh = simulation.task, simulation.mesh
  evaluate = evaluation.build_evaluate(task, mesh)

  def last_test(variables):
    test = evaluation.place_test_set(prepared.dataset.test, mesh)
    return results(task, jax.device_get(evaluate(variables, test)))

  return last_test
