"""Builds the parts that a config names, from data to simulation."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

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
from fedavg_jax.engine import arithmetic
from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine import evaluation
from fedavg_jax.engine.options import Execution
from fedavg_jax.engine.options import Federation
from fedavg_jax.engine.options import Placement
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import build_simulation
from fedavg_jax.models import zoo
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import personal_builder
from fedavg_jax.runs import population
from fedavg_jax.runs.algorithm_builder import build_algorithm
from fedavg_jax.runs.algorithm_builder import build_client_optimizer
from fedavg_jax.runs.given import NOTHING
from fedavg_jax.runs.given import Given
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.targets import Measure


class Prepared(NamedTuple):
  """Holds the parts of a run before anything is compiled.

  Attributes:
    dataset: the data set.
    clients: the clients' training examples, concatenated.
    held: the clients' held-out examples, concatenated.
    validation: the validation set taken from all clients, or None.
    model: the model.
    loss: the training loss.
    metrics: the metrics of evaluations; None for the default of the loss.
    algorithm: an algorithm given from Python; None where the config names one.
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
    """Returns the task: model, loss and metrics."""
    return make_task(self.model, self.loss, self.metrics)


def prepare(cfg: RunConfig, given: Given = NOTHING) -> Prepared:
  """Loads or builds the data, the clients and the task that a config names.

  Args:
    cfg: the checked config.
    given: objects from Python that replace names of the config.

  Raises:
    InputError: the data do not fit the partition, the loss or the target.
  """
  own_parts.import_all(cfg)
  dataset = given.dataset or own_parts.load_dataset(cfg)
  divided = population.build_population(cfg, dataset)
  loss = given.loss or own_parts.loss(cfg, dataset)
  prepared = Prepared(
    dataset=dataset,
    clients=divided.clients,
    held=divided.held,
    validation=divided.validation,
    model=personal_builder.build_model(
      cfg, given.model or build_model(cfg, dataset)
    ),
    loss=loss,
    metrics=given.metrics or own_parts.metrics(cfg, dataset, loss),
    algorithm=given.algorithm,
  )
  _check_targets(cfg, prepared)
  return prepared


def _check_targets(cfg: RunConfig, prepared: Prepared) -> None:
  """Raises InputError where the labels or the target do not fit the task."""
  task, labels = prepared.task, prepared.dataset.train.y
  if task.classifies and not (trees.is_tree(labels) or exact.are_whole(labels)):
    raise InputError(
      f'loss = {cfg.loss!r}: is cross entropy, which needs class numbers, but'
      f' the labels of {prepared.dataset.name} are other numbers; must be'
      ' another loss, such as squared_error'
    )
  first = task.metrics[0]
  if cfg.target_accuracy and first.lower_is_better:
    raise InputError(
      f'target_accuracy = {cfg.target_accuracy}: must be 0 where smaller is'
      ' better, as in the first metric here; set target instead'
    )
  if cfg.target and first.most == 1 and not 0 <= cfg.target <= 1:
    raise InputError(
      f'target = {cfg.target}: must be in [0, 1], as the first metric is'
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


def algorithm_of(cfg: RunConfig, prepared: Prepared) -> Algorithm:
  """Returns the algorithm given from Python or named by a config, wrapped."""
  return build_algorithm(
    cfg,
    prepared.clients.num_clients,
    prepared.dataset.num_classes,
    prepared.algorithm,
  )


def federate(cfg: RunConfig, prepared: Prepared) -> Federation:
  """Returns the clients of a config and their local training."""
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
  """Returns how the rounds of a config are computed, in `lanes` lanes."""
  return Execution(
    lanes=lanes,
    micro_batch=cfg.micro_batch,
    rounds_per_call=cfg.rounds_per_call,
    precision=cfg.precision,
    gpu_graphs=cfg.gpu_graphs,
    deterministic=cfg.deterministic,
  )


def placement(cfg: RunConfig) -> Placement:
  """Returns where a config places examples and client states."""
  # States on disk are loaded through the host's memory.
  states_on = 'device' if cfg.client_states_on == 'device' else 'host'
  return Placement(examples_on=cfg.examples_on, client_states_on=states_on)


def build(cfg: RunConfig, prepared: Prepared, *, lanes: int) -> Simulation:
  """Compiles the simulation of a config, in `lanes` lanes."""
  return build_simulation(
    prepared.model,
    federate(cfg, prepared),
    algorithm_of(cfg, prepared),
    loss=prepared.loss,
    metrics=prepared.metrics,
    execution=execution(cfg, lanes=lanes),
    placement=placement(cfg),
  )


def build_measure(
  cfg: RunConfig, prepared: Prepared, simulation: Simulation
) -> Measure:
  """Returns the measure that decides target and best model: the first metric.

  Args:
    cfg: the checked config.
    prepared: the parts of the run.
    simulation: the compiled simulation of the run.
  """
  task = simulation.task
  if prepared.metrics is None and task.classifies:
    return Measure(on=cfg.measured_on)  # Usual; needs no tracing.
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


def build_client_tests(
  cfg: RunConfig, prepared: Prepared, simulation: Simulation
) -> Callable[..., client_evaluation.ClientTests] | None:
  """Builds the tests on the clients' held-out examples; None without tests."""
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
  """Builds the final test of a run that evaluates on a validation set.

  Returns:
    A function from variables to results on the test set, which is used only
    here; None without a validation set, where every evaluation uses the test
    set. One of several processes calls it, with its own devices.
  """
  if prepared.validation is None:
    return None
  task, own = simulation.task, simulation.arithmetic
  mesh, given = simulation.mesh.local_mesh, prepared.dataset.test
  evaluate = evaluation.build_evaluate(task, mesh)
  with own.tracing():
    batch = evaluation.batch_size(task, given, mesh)  # On every process.

  def last_test(variables):
    variables = jax.device_get(variables)  # Of the devices of all processes.
    with own.tracing():
      test = evaluation.place_test_set(given, mesh, batch)
      lowered = evaluate.lower(variables, test)
    sums = arithmetic.compiled(lowered, own.options())(variables, test)
    return results(task, jax.device_get(sums))

  return last_test
