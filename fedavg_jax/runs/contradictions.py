"""Checks that the options of a config do not contradict each other."""

from typing import TYPE_CHECKING

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import config_personal
from fedavg_jax.runs import loggers
from fedavg_jax.runs import metric_words
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.part_names import own_name
from fedavg_jax.schedule import draws
from fedavg_jax.schedule import sampling

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig


def check(cfg: 'RunConfig') -> None:
  """Raises InputError where two options contradict each other; names both."""
  if cfg.num_clients:
    _check_cohort(cfg)
  if cfg.partition == 'natural' and cfg.num_clients:
    raise InputError(
      f'num_clients = {cfg.num_clients}: must be 0 with partition ='
      " 'natural', whose clients are those of the data set"
    )
  if (
    cfg.straggler_fraction
    and cfg.straggler_work == 'epochs'
    and cfg.client.epochs == 1
  ):
    raise InputError(
      "straggler_work = 'epochs': must be 'minibatches' with client.epochs = 1,"
      ' or client.epochs at least 2'
    )
  if cfg.clock.deadline and not cfg.clock.examples_per_second:
    raise InputError(
      f'clock.deadline = {cfg.clock.deadline}: must be 0 with'
      ' clock.examples_per_second = 0, which simulates no clock'
    )
  if cfg.client_eval_every and not cfg.holdout_fraction:
    raise InputError(
      f'client_eval_every = {cfg.client_eval_every}: must be 0 with'
      ' holdout_fraction = 0, which holds out no examples to test on'
    )
  if cfg.finetune_epochs and not cfg.client_eval_every:
    raise InputError(
      f'finetune_epochs = {cfg.finetune_epochs}: must be 0 with'
      ' client_eval_every = 0, which runs no tests of clients'
    )
  for part in cfg.options:
    if part not in OWN_PARTS:
      raise InputError(
        f'options.{part}: must be below one of {", ".join(OWN_PARTS)}'
      )
    if not own_name(cfg, part):
      raise InputError(
        f'options.{part}: must be empty with {part} ='
        f' {getattr(cfg, part)!r}, which is not a user-defined function'
      )
  if cfg.target and cfg.target_accuracy:
    raise InputError(
      f'target = {cfg.target}: must be 0 with target_accuracy ='
      f' {cfg.target_accuracy}, which is a target too'
    )
  metric_words.check(cfg.metrics)
  _check_placement(cfg)
  loggers.check(cfg.log)
  if cfg.algorithm == 'scaffold':
    _check_scaffold(cfg)
  config_personal.check(cfg)


def _check_cohort(cfg: 'RunConfig') -> None:
  """Raises InputError where too few clients are available for a cohort."""
  clients = cfg.num_clients
  cohort = sampling.cohort_size(clients, cfg.client_fraction)
  away = draws.num_unavailable(clients, cfg.unavailable_fraction)
  if clients - away < cohort:
    raise InputError(
      f'unavailable_fraction = {cfg.unavailable_fraction}: leaves'
      f' {clients - away} of num_clients = {clients} available, fewer than the'
      f' cohort of {cohort} of client_fraction = {cfg.client_fraction}'
    )


def _check_placement(cfg: 'RunConfig') -> None:
  """Raises InputError where an option needs the data of all clients."""
  for key, most, place in (
    ('finetune_epochs', 0, 'examples_on'),
    ('rounds_per_call', 1, 'examples_on'),
    ('rounds_per_call', 1, 'client_states_on'),
  ):
    if getattr(cfg, place) != 'device' and getattr(cfg, key) > most:
      raise InputError(
        f'{key} = {getattr(cfg, key)}: must be at most {most} with {place} ='
        f" {getattr(cfg, place)!r}, where a device has only the cohort's data"
      )


def _check_scaffold(cfg: 'RunConfig') -> None:
  """Raises InputError where SCAFFOLD would not use plain SGD on both sides."""
  for key, value, plain in (
    ('server.optimizer', cfg.server.optimizer, 'sgd'),
    ('server.momentum', cfg.server.momentum, 0),
    ('client.clip_norm', cfg.client.clip_norm, 0),
    ('client.decay', cfg.client.decay, 1),
  ):
    if value != plain:
      raise InputError(
        f"{key} = {value!r}: must be {plain!r} with algorithm = 'scaffold'"
      )
