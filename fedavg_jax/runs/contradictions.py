"""Checks that the options of a config do not contradict each other."""

from typing import TYPE_CHECKING

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import tables
from fedavg_jax.runs import config_compression
from fedavg_jax.runs import config_personal
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs import config_private_parts
from fedavg_jax.runs import config_robust
from fedavg_jax.runs import loggers
from fedavg_jax.runs import metric_words
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.part_names import own_name
from fedavg_jax.schedule import draws
from fedavg_jax.schedule import sampling

if TYPE_CHECKING:
  from fedavg_jax.runs.run_config import RunConfig

# Algorithms whose message may be scaled by its staleness.
_SCALABLE = 'fedavg', 'fedprox'
# The values that an algorithm needs, because its equations have no such term.
_PLAIN_SERVER = {'server.optimizer': 'sgd', 'server.momentum': 0}
_FIXED_SERVER = _PLAIN_SERVER | {'server.learning_rate': 1}
_NEEDS = {
  'scaffold': _PLAIN_SERVER | {'client.clip_norm': 0, 'client.decay': 1},
  'feddyn': _FIXED_SERVER | {'client.clip_norm': 0},
  'fedexp': _FIXED_SERVER,
  'qfedavg': _FIXED_SERVER
  | {'client.clip_norm': 0, 'client.decay': 1, 'client.momentum': 0},
  'mimelite': {'client.decay': 1, 'client.momentum': 0},
}


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
    if part == 'dataset' and choices.is_of_library(cfg.dataset):
      tables.check(cfg.options[part])
    elif not own_name(cfg, part):
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
  if cfg.asynchronous.buffer:
    _check_asynchronous(cfg)
  if cfg.sampling == 'poisson':
    _check_poisson(cfg)
  _check_placement(cfg)
  loggers.check(cfg.log)
  _check_algorithm(cfg)
  config_robust.check(cfg)
  config_compression.check(cfg)
  config_personal.check(cfg)
  config_privacy.check(cfg)
  config_private_parts.check(cfg)


def _check_poisson(cfg: 'RunConfig') -> None:
  """Raises InputError for options by which draws would not be independent."""
  for key, value, neutral in (
    ('unavailable_fraction', cfg.unavailable_fraction, 0),
    ('availability_trace', cfg.availability_trace, ''),
  ):
    if value != neutral:
      raise InputError(
        f"{key} = {value!r}: must be {neutral!r} with sampling = 'poisson',"
        ' which draws every client with the same probability'
      )


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


def _check_asynchronous(cfg: 'RunConfig') -> None:
  """Raises InputError where an option needs rounds with whole cohorts."""
  buffer = cfg.asynchronous.buffer
  if not cfg.clock.examples_per_second:
    raise InputError(
      f'asynchronous.buffer = {buffer}: must be 0 with'
      ' clock.examples_per_second = 0, since a clock decides when updates'
      ' arrive'
    )
  if cfg.num_clients:
    cohort = sampling.cohort_size(cfg.num_clients, cfg.client_fraction)
    if buffer > cohort:
      raise InputError(
        f'asynchronous.buffer = {buffer}: must be at most {cohort}, the clients'
        ' that train at the same time by client_fraction ='
        f' {cfg.client_fraction}'
      )
  for key, value, neutral in (
    ('clock.deadline', cfg.clock.deadline, 0),
    ('straggler_fraction', cfg.straggler_fraction, 0),
    ('unavailable_fraction', cfg.unavailable_fraction, 0),
    ('availability_trace', cfg.availability_trace, ''),
    ('sampling', cfg.sampling, 'uniform'),
  ):
    if value != neutral:
      raise InputError(
        f'{key} = {value!r}: must be {neutral!r} with asynchronous.buffer ='
        f' {buffer}, where idle clients are drawn and complete all work'
      )
  if cfg.algorithm in choices.ALGORITHMS and cfg.algorithm not in _SCALABLE:
    raise InputError(
      f'asynchronous.buffer = {buffer}: must be 0 with algorithm ='
      f' {cfg.algorithm!r}, whose messages cannot be scaled by staleness; those'
      f' of {" and ".join(_SCALABLE)} can'
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


def _check_algorithm(cfg: 'RunConfig') -> None:
  """Raises InputError where an algorithm would ignore or contradict a number.

  A run that leaves an option out has the value that the algorithm needs.
  """
  values = {
    'client.clip_norm': cfg.client.clip_norm,
    'client.decay': cfg.client.decay,
    'client.momentum': cfg.client.momentum,
    'server.learning_rate': cfg.server.learning_rate,
    'server.momentum': cfg.server.momentum,
    'server.optimizer': cfg.server.optimizer,
  }
  for key, needed in _NEEDS.get(cfg.algorithm, {}).items():
    if values[key] != needed:
      raise InputError(
        f'{key} = {values[key]!r}: must be {needed!r} with algorithm ='
        f' {cfg.algorithm!r}'
      )
  if cfg.client.schedule != 'step' and cfg.client.decay == 1:
    raise InputError(
      f"client.schedule = {cfg.client.schedule!r}: must be 'step' with"
      ' client.decay = 1.0, a learning rate that does not decay'
    )
  if cfg.server.nesterov and (
    cfg.server.optimizer != 'sgd' or not cfg.server.momentum
  ):
    raise InputError(
      'server.nesterov = True: must be False with server.optimizer ='
      f' {cfg.server.optimizer!r} and server.momentum = {cfg.server.momentum}'
    )
