"""Checks a config, once, before anything runs.

Every knob stands in the config file; none is hidden in a default here.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import math
import re
from typing import Any
from typing import NamedTuple

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import loggers
from fedavg_jax.schedule import participation
from fedavg_jax.schedule import planning


class _Rule(NamedTuple):
  kind: type
  holds: Callable[[Any], bool]
  text: str


def _one_of(names):
  return _Rule(str, lambda v: v in names, f'must be one of {", ".join(names)}')


def _between(low, high, kind=float):
  return _Rule(kind, lambda v: low <= v <= high, f'must lie in [{low}, {high}]')


def _zero_or(low, high):
  return _Rule(
    float,
    lambda v: v == 0 or low <= v <= high,
    f'must be 0, or in [{low:g}, {high:g}]',
  )


def _from(low, high=2**31 - 1):
  return _between(low, high, int)


_NUMBERS = re.compile(r'\s*\d+(\s*,\s*\d+)*\s*')
_boolean = _Rule(bool, lambda v: True, '')
_below_one = _Rule(float, lambda v: 0 <= v < 1, 'must lie in [0, 1)')
# Wide, and well inside the normal numbers of float32.
_rate = _between(1e-30, 1e30)

_RULES: dict[str, _Rule] = {
  'dataset': _one_of(choices.DATASETS),
  'data_dir': _Rule(str, lambda v: True, ''),
  'pixels': _one_of(choices.PIXELS),
  'augmentation': _one_of(choices.AUGMENTATIONS),
  'model': _one_of(choices.MODELS),
  'convolution': _one_of(choices.CONVOLUTIONS),
  'precision': _one_of(choices.PRECISIONS),
  'partition': _one_of(choices.PARTITIONS),
  'shards_per_client': _from(1),
  'alpha': _between(1e-30, 1e30),
  'min_size': _from(0),
  'self_balancing': _boolean,
  'classes_per_client': _from(1),
  'class_assignment': _one_of(choices.CLASS_ASSIGNMENTS),
  'sizes': _Rule(
    str,
    lambda v: v in choices.SIZE_LAWS or bool(_NUMBERS.fullmatch(v)),
    f'must be one of {", ".join(choices.SIZE_LAWS)}, or whole numbers with'
    ' commas between them',
  ),
  'size_skew': _between(0, 100),
  'num_clients': _from(0),
  'holdout_fraction': _below_one,
  'client_fraction': _between(0, 1),
  'unavailable_fraction': _below_one,
  'availability_trace': _Rule(str, lambda v: True, ''),
  'sampling': _one_of(choices.SAMPLINGS),
  'straggler_fraction': _between(0, 1),
  'stragglers': _one_of(choices.STRAGGLERS),
  'weighting': _one_of(choices.WEIGHTINGS),
  'algorithm': _one_of(choices.ALGORITHMS),
  'client.epochs': _from(1),
  'client.batch_size': _from(0),
  'client.learning_rate': _rate,
  'client.decay': _Rule(float, lambda v: 0 < v <= 1, 'must lie in (0, 1]'),
  'client.decay_rounds': _from(1),
  'client.shuffle': _one_of(choices.SHUFFLES),
  'client.proximal': _between(0, 1e30),
  'client.clip_norm': _between(0, 1e30),
  'server.optimizer': _one_of(choices.SERVER_OPTIMIZERS),
  'server.learning_rate': _rate,
  'server.momentum': _below_one,
  'server.second_momentum': _below_one,
  'server.adaptivity': _between(1e-15, 1e15),
  'clock.examples_per_second': _zero_or(1e-12, 1e12),
  'clock.speed_spread': _between(0, 10),
  'clock.megabits_down': _zero_or(1e-12, 1e9),
  'clock.megabits_up': _zero_or(1e-12, 1e9),
  'clock.bandwidth_spread': _between(0, 10),
  'clock.deadline': _between(0, 1e9),
  'on_nan': _one_of(choices.ON_NAN),
  'rounds': _from(1),
  'eval_every': _from(1),
  'client_eval_every': _from(0),
  'finetune_epochs': _from(0, 1000),
  'target_accuracy': _between(0, 1),
  'seed': _from(0),
  'lanes': _from(0),
  'micro_batch': _from(0),
  'rounds_per_call': _from(0, 4096),
  'cpu_devices': _from(0, 1024),
  'examples_on': _one_of(choices.EXAMPLES_ON),
  'client_states_on': _one_of(choices.CLIENT_STATES_ON),
  'log': _Rule(str, lambda v: True, ''),
  'checkpoint.rounds': _from(0),
  'checkpoint.minutes': _between(0, 1e6),
  'checkpoint.keep': _from(1, 1000),
}

# That are told of two configs that differ.
_MOST_KEYS = 8

# Where files are: hosts may keep them in different places.
PLACES = ('data_dir', 'availability_trace')
# Where, how fast and how safely it is computed: the cohorts, the orders and,
# but for rounding, the models stay the same.
MACHINE_KEYS = (
  'data_dir',
  'lanes',
  'micro_batch',
  'rounds_per_call',
  'cpu_devices',
  'examples_on',
  'log',
  'checkpoint.rounds',
  'checkpoint.minutes',
  'checkpoint.keep',
)


def read(config: Any) -> dict[str, Any]:
  """A ConfigDict as a plain nested dict; raises as `check` does."""
  try:
    return check(config.to_dict())
  except RecursionError:
    raise InputError('config: contains itself; must end') from None


def check(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as a plain nested dict, if every key keeps its rule.

  Args:
    config: nested, such as `ConfigDict.to_dict()`.

  Raises:
    InputError: a key is unknown or missing, or a value breaks its rule.
  """
  flat = dict(flatten(config))
  for key in flat:
    if key not in _RULES:
      raise InputError(f'{key}: unknown key; known are {", ".join(_RULES)}')
  for key, rule in _RULES.items():
    if key not in flat:
      raise InputError(f'{key}: missing in the config')
    flat[key] = _checked(key, flat[key], rule)
  if flat['num_clients']:
    _check_cohort(flat)
  if flat['partition'] == 'natural' and flat['num_clients']:
    raise InputError(
      f'num_clients = {flat["num_clients"]}: must be 0 with partition ='
      " 'natural', where the data say how many there are"
    )
  if flat['clock.deadline'] and not flat['clock.examples_per_second']:
    raise InputError(
      f'clock.deadline = {flat["clock.deadline"]}: must be 0 without a clock,'
      ' which clock.examples_per_second = 0 leaves out'
    )
  if flat['client_eval_every'] and not flat['holdout_fraction']:
    raise InputError(
      f'client_eval_every = {flat["client_eval_every"]}: tests on what clients'
      ' hold out; holdout_fraction must be above 0'
    )
  if flat['finetune_epochs'] and not flat['client_eval_every']:
    raise InputError(
      f'finetune_epochs = {flat["finetune_epochs"]}: must be 0 without tests of'
      ' clients, which client_eval_every = 0 leaves out'
    )
  for key, most, place in (
    ('finetune_epochs', 0, 'examples_on'),
    ('rounds_per_call', 1, 'examples_on'),
    ('rounds_per_call', 1, 'client_states_on'),
  ):
    if flat[place] != 'device' and flat[key] > most:
      raise InputError(
        f'{key} = {flat[key]}: must be at most {most} with {place} ='
        f" {flat[place]!r}, where a device has the cohort's alone"
      )
  loggers.check(flat['log'])
  _check_scaffold(flat)
  nested: dict[str, Any] = {}
  for key, value in flat.items():
    *parents, name = key.split('.')
    inner = nested
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[name] = value
  return nested


def compare(now: Mapping[str, Any], began: Any, *, extend: bool) -> None:
  """Makes sure that a run which goes on is the one that began.

  Args:
    now: a checked config.
    began: the config that the run began with.
    extend: allows more rounds and other `MACHINE_KEYS`.

  Raises:
    InputError: names the keys that differ, with both values.
  """
  if not isinstance(began, Mapping):
    raise InputError('config.json: must hold the config of a run')
  new, old = dict(flatten(now)), dict(flatten(began))
  may_differ = ('rounds', *MACHINE_KEYS)
  differ = {
    key: f'{key} = {new.get(key)!r} (was {old.get(key)!r})'
    for key in {**new, **old}
    if (key not in new or key not in old or new[key] != old[key])
    and not (extend and key in may_differ)
  }
  if differ:
    told, more = list(differ.values()), len(differ) - _MOST_KEYS
    raise InputError(
      'config: differs from that of the run in the workdir: '
      + ', '.join(told[:_MOST_KEYS] + [f'{more} more'] * (more > 0))
      + '; take those values, or name a new workdir'
      + (
        '; --resume=extend allows it' if differ.keys() <= {*may_differ} else ''
      )
    )
  rounds = old.get('rounds')
  if not isinstance(rounds, int) or new['rounds'] < rounds:
    raise InputError(
      f'rounds = {new["rounds"]}: must be at least the {rounds!r} that the run'
      ' began with'
    )


def flatten(
  config: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Keys with dots between their parts, and their values."""
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _checked(key, value, rule):
  fits = isinstance(value, rule.kind) or (
    rule.kind is float and isinstance(value, int)
  )
  if not fits or (isinstance(value, bool) and rule.kind is not bool):
    raise InputError(f'{key} = {value!r}: must be of type {rule.kind.__name__}')
  value = rule.kind(value)
  if rule.kind is float and not math.isfinite(value):
    raise InputError(f'{key} = {value}: must be finite')
  if not rule.holds(value):
    raise InputError(f'{key} = {value!r}: {rule.text}')
  return value


def _check_cohort(flat) -> None:
  clients = flat['num_clients']
  cohort = planning.cohort_size(clients, flat['client_fraction'])
  away = participation.num_unavailable(clients, flat['unavailable_fraction'])
  if clients - away < cohort:
    raise InputError(
      f'unavailable_fraction = {flat["unavailable_fraction"]}: leaves'
      f' {clients - away} of num_clients = {clients} in reach, fewer than the'
      f' cohort of {cohort} that client_fraction ='
      f' {flat["client_fraction"]} asks for'
    )


def _check_scaffold(flat) -> None:
  """SCAFFOLD is defined with plain SGD on both sides."""
  if flat['algorithm'] != 'scaffold':
    return
  for key, plain in (
    ('server.optimizer', 'sgd'),
    ('server.momentum', 0),
    ('client.clip_norm', 0),
    ('client.decay', 1),
  ):
    if flat[key] != plain:
      raise InputError(
        f"{key} = {flat[key]!r}: must be {plain!r} with algorithm = 'scaffold'"
      )
