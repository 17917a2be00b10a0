"""Builds the clients that a config describes; uses NumPy only."""

import dataclasses
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.client_data import build_clients
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import partition
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.dataset import in_memory
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.schedule import availability
from fedavg_jax.schedule import clock as clock_lib
from fedavg_jax.schedule.participation import Participation

# These partitions need one label per example; a sequence has many.
_BY_LABEL = (
  *('shards', 'dirichlet', 'inner_dirichlet', 'pathological', 'few_labels'),
)


class Population(NamedTuple):
  """Holds the examples of all clients, by their use.

  Attributes:
    clients: the training examples of each client.
    held: the held-out examples of each client, for its own tests.
    validation: the validation set, pooled from all clients; None without one.
  """

  clients: Clients
  held: Clients
  validation: Examples | None


def build_population(cfg: RunConfig, dataset: Dataset) -> Population:
  """Returns the examples of every client of a config, by their use.

  Raises:
    InputError: as for `divide`, or the validation set is empty.
  """
  taken_out = cfg.holdout_fraction or cfg.validation_fraction
  if dataset.clients is not None and cfg.partition == 'natural':
    if not taken_out:
      nothing = Clients(
        dataset.clients.x[:0],
        dataset.clients.y[:0],
        np.zeros_like(dataset.clients.offsets),
      )
      return Population(dataset.clients, nothing, None)
  dataset = in_memory(dataset)
  parts, validation = divide(cfg, dataset), None
  if cfg.validation_fraction:
    parts, moved = partition.hold_out(
      parts, fraction=cfg.validation_fraction, seed=cfg.seed
    )
    rows = np.concatenate(moved)
    if not rows.size:
      raise InputError(
        f'validation_fraction = {cfg.validation_fraction}: the validation set'
        ' is empty; clients have too few examples'
      )
    validation = Examples(*(trees.take(a, rows) for a in dataset.train))
  parts, held = partition.hold_out(
    parts, fraction=cfg.holdout_fraction, seed=cfg.seed
  )
  return Population(
    build_clients(dataset.train, parts),
    build_clients(dataset.train, held),
    validation,
  )


def divide(cfg: RunConfig, dataset: Dataset) -> list[np.ndarray]:
  """Returns the partition of a checked config: indices of training examples.

  Returns:
    One array of indices per client, [n_k].

  Raises:
    InputError: the data set has no natural clients, or a value breaks a rule
      that depends on the data.
  """
  labels, owners, seed = dataset.train.y, dataset.owners, cfg.seed
  natural = [] if owners is None else partition.by_owner(owners)
  number = cfg.num_clients or len(natural)
  kind, size = cfg.partition, trees.num_rows(labels)
  if not number:
    raise InputError(
      f'num_clients = 0: {dataset.name} has no natural clients; must be at'
      " least 1, with another partition than 'natural'"
    )
  if kind in _BY_LABEL and (trees.is_tree(labels) or labels.ndim > 1):
    raise InputError(
      f'partition = {kind!r}: needs one label per example; {dataset.name} has'
      " several; must be 'iid' or 'natural'"
    )
  if kind in _BY_LABEL and not exact.are_whole(labels):
    raise InputError(
      f'partition = {kind!r}: needs integer labels; those of {dataset.name}'
      " are not; must be 'iid' or 'natural'"
    )
  if kind == 'natural':
    return natural
  if kind == 'shards':
    return partition.shards(
      labels,
      num_clients=number,
      shards_per_client=cfg.shards_per_client,
      seed=seed,
    )
  if kind == 'dirichlet':
    return partition.dirichlet(
      labels,
      num_clients=number,
      alpha=cfg.alpha,
      min_size=cfg.min_size,
      self_balancing=cfg.self_balancing,
      seed=seed,
    )
  if kind == 'pathological':
    return partition.pathological(
      labels,
      num_clients=number,
      classes_per_client=cfg.classes_per_client,
      assignment=cfg.class_assignment,
      seed=seed,
    )
  few = kind == 'few_labels'
  sizes = partition.sizes(
    cfg.sizes,
    size,
    num_clients=number,
    skew=cfg.size_skew,
    min_size=cfg.min_size if few else 0,
    rest=few,
    seed=seed,
  )
  if few:
    return partition.few_labels(
      labels,
      sizes=sizes,
      classes_per_client=cfg.classes_per_client,
      assignment=cfg.class_assignment,
      seed=seed,
    )
  if kind == 'inner_dirichlet':
    return partition.inner_dirichlet(
      labels, sizes=sizes, alpha=cfg.alpha, seed=seed
    )
  return partition.iid(size, num_clients=number, seed=seed, sizes=sizes)


def build_participation(
  cfg: RunConfig, num_examples: np.ndarray
) -> Participation:
  """Returns the rules of participation of a checked config.

  Args:
    cfg: the config.
    num_examples: the number of examples of each client, [K].

  Raises:
    InputError: the trace cannot be read, or names unknown clients.
  """
  clock, trace = cfg.clock, cfg.availability_trace
  return Participation(
    unavailable_fraction=cfg.unavailable_fraction,
    sampling_weights=num_examples if cfg.sampling == 'examples' else None,
    poisson=cfg.sampling == 'poisson',
    trace=(
      availability.read_trace(trace, len(num_examples)) if trace else None
    ),
    straggler_fraction=cfg.straggler_fraction,
    straggler_work=cfg.straggler_work,
    stragglers=cfg.stragglers,
    clock=(
      clock_lib.draw_clock(
        len(num_examples), **dataclasses.asdict(clock), seed=cfg.seed
      )
      if clock.examples_per_second
      else None
    ),
    buffer=cfg.asynchronous.buffer,
    most_staleness=cfg.asynchronous.most_staleness,
  )
