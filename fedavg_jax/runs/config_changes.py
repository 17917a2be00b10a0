"""Decides which settings may change when a run resumes."""

from collections.abc import Mapping
from typing import Any

from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs import run_config
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.run_config import RunConfig

# Paths of files, which may differ between hosts.
PLACES = ('data_dir', 'availability_trace')
# Options that change where, how fast and how safely rounds are computed, but
# neither cohorts nor orders, nor models other than by rounding.
MACHINE_KEYS = (
  'data_dir',
  'lanes',
  'micro_batch',
  'rounds_per_call',
  'cpu_devices',
  'gpu_graphs',
  'deterministic',
  'examples_on',
  'log',
  'pictures',
  'checkpoint.rounds',
  'checkpoint.minutes',
  'checkpoint.keep',
)
# The most differences that a message lists.
_MOST_KEYS = 8


def differences(now: RunConfig, began: Any) -> dict[str, str]:
  """Returns the keys that differ, each with a text that has both values.

  Args:
    now: the settings of a command.
    began: the settings of an earlier one, from its JSON; options that did not
      exist then had their defaults.

  Raises:
    InputError: `began` is not a JSON object.
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
  """Lists the first few of the differences, and the number of others."""
  some, more = list(differ.values())[:_MOST_KEYS], len(differ) - _MOST_KEYS
  return ', '.join(some + [f'{more} more'] * (more > 0))


def check_same(now: RunConfig, began: Any, *, extend: bool) -> None:
  """Checks that a command resumes the run with the config it began with.

  Args:
    now: the settings of the command.
    began: the settings that the run began with, from its config.json.
    extend: whether more rounds and changes of `MACHINE_KEYS` are allowed.

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
      f' use those values, or choose a new workdir{hint}'
    )
  rounds = began.get('rounds')
  if not isinstance(rounds, int) or now.rounds < rounds:
    raise InputError(
      f'rounds = {now.rounds}: must be at least the {rounds!r} that the run'
      ' began with'
    )
  config_privacy.check_resume(now, rounds)
