"""Which settings a run that resumes may change, and which it may not."""

from collections.abc import Mapping
from typing import Any

from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import run_config
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.run_config import RunConfig

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
  'pictures',
  'checkpoint.rounds',
  'checkpoint.minutes',
  'checkpoint.keep',
)
# Names of a message, at most.
_MOST_KEYS = 8


def differences(now: RunConfig, began: Any) -> dict[str, str]:
  """Returns the names that differ, with a few words about both values.

  Args:
    now: the settings of a command.
    began: those of an earlier one, as its JSON has them; options that did not
      exist then had their defaults.

  Raises:
    InputError: `began` is no JSON object.
  """
  if not isinstance(began, Mapping):
    raise InputError('config.json: must hold the config of a run')
  new = dict(run_config.flatten(now))
  old = dict(run_config.flatten(RunConfig())) | dict(run_config.flatten(began))
  return {
    key: f'{key} = {new.get(key)!r} (was {old[key]!r})'
    for key in old
    if key not in new or new[key] != old[key]
  }


def listed(differ: Mapping[str, str]) -> str:
  """Returns the first few of the differences, and how many more there are."""
  some, more = list(differ.values())[:_MOST_KEYS], len(differ) - _MOST_KEYS
  return ', '.join(some + [f'{more} more'] * (more > 0))


def check_same(now: RunConfig, began: Any, *, extend: bool) -> None:
  """Makes sure that a run which resumes is the one that began.

  Args:
    now: the settings of the command.
    began: those that the run began with, as its config.json has them.
    extend: allows more rounds and other `MACHINE_KEYS`.

  Raises:
    InputError: names the keys that differ, with both values.
  """
  differ, may_differ = differences(now, began), {'rounds', *MACHINE_KEYS}
  missing = [
    part
    for part in OWN_PARTS
    if references.is_from_python(began.get(part))
    and not references.is_from_python(getattr(now, part))
  ]
  if missing:
    raise InputError(
      f'config: the run in the workdir was given its {", ".join(missing)} from'
      ' Python; no command can resume it, must be the same call of'
      f' fedavg_jax.train(config, workdir, {missing[0]}=...)'
    )
  wrong = {
    key: text
    for key, text in differ.items()
    if not (extend and key in may_differ)
  }
  if wrong:
    hint = '; --resume=extend allows it' if wrong.keys() <= may_differ else ''
    raise InputError(
      f'config: differs from that of the run in the workdir: {listed(wrong)};'
      f' take those values, or name a new workdir{hint}'
    )
  rounds = began.get('rounds')
  if not isinstance(rounds, int) or now.rounds < rounds:
    raise InputError(
      f'rounds = {now.rounds}: must be at least the {rounds!r} that the run'
      ' began with'
    )
