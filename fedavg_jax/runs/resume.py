"""Checks that a run can resume, and from which checkpoint."""

import contextlib
import pathlib
from typing import Any

from absl import logging

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import fingerprint
from fedavg_jax.runs import own_code
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.run_dir import Workdir

# Keys in config.json that must be equal for the same bits.
_SAME_BITS = (
  *('versions', 'machine', 'processor'),
  *('platform', 'device', 'num_devices', 'num_processes'),
)


def newest(
  folder: Workdir, now: dict[str, Any]
) -> checkpoint.Checkpoint | None:
  """Returns the checkpoint that a run resumes from, None to start again.

  Args:
    folder: the folder of the run.
    now: the config.json of a run that would start here and now.

  Raises:
    InputError: the data or the code differ, all checkpoints are damaged or
      missing, or metrics.jsonl differs from that of the checkpoint.
  """
  assert folder.began is not None
  check_data(folder.began.get('data_sha256'), now['data_sha256'], folder.path)
  check_numerics(folder.began.get('numerics'), now['numerics'])
  own_code.check(
    folder.began.get('own_code_sha256'), now.get('own_code_sha256', {})
  )
  check_from_python(folder.began, now)
  saved = newest_intact(folder)
  if saved is not None:
    say(f'{folder.path}: resumes after round {saved.metadata["round"]}')
  else:
    say(f'{folder.path}: ended before its first checkpoint, starts again')
  return saved


def newest_intact(folder: Workdir) -> checkpoint.Checkpoint | None:
  """Returns the newest intact checkpoint of a run, None if it has saved none.

  Raises:
    InputError: all checkpoints are damaged or missing, or metrics.jsonl differs
      from that of the checkpoint.
  """
  with contextlib.closing(
    checkpoint.Checkpoints(folder.path, keep=1)  # It only reads.
  ) as checkpoints:
    saved = checkpoints.newest()
  if saved is not None:
    folder.check_metrics(saved.metadata['metrics'])
  elif folder.has_saved():
    raise InputError(
      f'{folder.path / checkpoint.FOLDER}: the checkpoints are missing; restore'
      ' them, or choose a new workdir'
    )
  return saved


def check_data(before: Any, now: str, path: pathlib.Path) -> None:
  """Raises InputError if the SHA-256 of the clients' data has changed."""
  if before != now:
    raise InputError(
      f'workdir = {path}: the data of its clients, or their partition, have'
      f' changed: SHA-256 expected {str(before)[:12]}..., got {now[:12]}...;'
      ' restore the files, or choose a new workdir'
    )


def check_numerics(before: Any, now: dict[str, Any]) -> None:
  """Raises InputError if a setting of JAX that affects results has changed."""
  before = before if isinstance(before, dict) else {}
  for name, value in now.items():
    if before.get(name, value) != value:
      raise InputError(
        f'{name} = {value!r}: was {before[name]!r} when the run started, and'
        ' changes what is computed; set it back, or choose a new workdir'
      )


def check_from_python(began: dict[str, Any], now: dict[str, Any]) -> None:
  """Raises InputError if objects given from Python compute something else.

  Nothing is compared after a change of Python, packages or platform, with
  which the same functions may be other programs.
  """
  made_by = 'python', 'versions', 'platform'
  if any(began.get(name) != now[name] for name in made_by):
    return
  before = began.get('from_python_sha256')
  fingerprint.check(
    before if isinstance(before, dict) else {},
    now.get('from_python_sha256', {}),
    'when the run began',
    'workdir',
  )


def continued(
  began: dict[str, Any],
  now: dict[str, Any],
  saved: checkpoint.Checkpoint | None,
) -> tuple[dict[str, Any], bool]:
  """Returns config.json of a run that resumes, and whether to the same bits.

  A run records every machine that it was on: `resumed` lists the later ones.

  Args:
    began: the content of config.json.
    now: the config.json of a run that would start here and now.
    saved: the checkpoint that the run resumes from, None to start again.

  Raises:
    InputError: `resumed` in config.json is not a list of machines.
  """
  resumed = began.get('resumed', [])
  if not isinstance(resumed, list) or not all(
    isinstance(machine, dict) for machine in resumed
  ):
    raise InputError('config.json: resumed must be a list of objects')
  last = [began, *resumed][-1]
  changed = [key for key in _SAME_BITS if last.get(key) != now[key]]
  continued = began | {'config': now['config']}
  if changed:
    number = saved.metadata['round'] if saved else 0
    logging.warning(
      'the device or the versions (%s) differ from those of round %d: results'
      ' are equal up to rounding, not to the bit',
      ', '.join(changed),
      number,
    )
    here = {key: now[key] for key in _SAME_BITS}
    continued['resumed'] = [*resumed, {'round': number, **here}]
  return continued, not changed
