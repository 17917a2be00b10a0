"""What a run resumes from: its checkpoint, its lines, its machine."""

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

# In config.json, what must be the same for the same bits.
_SAME_BITS = (
  *('versions', 'machine', 'processor'),
  *('platform', 'device', 'num_devices', 'num_processes'),
)


def newest(
  folder: Workdir, now: dict[str, Any]
) -> checkpoint.Checkpoint | None:
  """Returns the checkpoint that a run resumes from, None to begin again.

  Args:
    folder: of the run.
    now: config.json of a run that would begin here and now.

  Raises:
    InputError: the data are others, all checkpoints are damaged or gone, or
      metrics.jsonl is not what the checkpoint has seen.
  """
  assert folder.began is not None
  check_data(folder.began.get('data_sha256'), now['data_sha256'], folder.path)
  check_numerics(folder.began.get('numerics'), now['numerics'])
  own_code.check(folder.began.get('own_code_sha256'), now)
  check_from_python(folder.began, now)
  saved = newest_intact(folder)
  if saved is not None:
    say(f'{folder.path}: resumes after round {saved.metadata["round"]}')
  else:
    say(f'{folder.path}: ended before its first checkpoint, begins again')
  return saved


def newest_intact(folder: Workdir) -> checkpoint.Checkpoint | None:
  """Returns the newest checkpoint of a run, None where it has had none.

  Raises:
    InputError: all are damaged or gone, or metrics.jsonl is not what the
      checkpoint has seen.
  """
  with contextlib.closing(
    checkpoint.Checkpoints(folder.path, keep=1)  # It saves none.
  ) as checkpoints:
    saved = checkpoints.newest()
  if saved is not None:
    folder.check_metrics(saved.metadata['metrics'])
  elif folder.has_saved():
    raise InputError(
      f'{folder.path / checkpoint.FOLDER}: the checkpoints are gone; put them'
      ' back, or name a new workdir'
    )
  return saved


def check_data(before: Any, now: str, path: pathlib.Path) -> None:
  """Raises InputError where the SHA-256 of the clients' data is another."""
  if before != now:
    raise InputError(
      f'workdir = {path}: the data of its clients, or their division, are not'
      f' those it began with: SHA-256 was {str(before)[:12]}..., is'
      f' {now[:12]}...; bring the files back, or name a new workdir'
    )


def check_numerics(before: Any, now: dict[str, Any]) -> None:
  """Raises InputError where JAX is set to compute something else."""
  before = before if isinstance(before, dict) else {}
  for name, value in now.items():
    if before.get(name, value) != value:
      raise InputError(
        f'{name} = {value!r}: was {before[name]!r} when the run began, and'
        ' decides what is computed; set it back, or choose a new workdir'
      )


def check_from_python(began: dict[str, Any], now: dict[str, Any]) -> None:
  """Raises InputError where what was given from Python is made otherwise.

  Not with other versions of Python or of packages, which have other functions.
  """
  if any(began.get(name) != now[name] for name in ('python', 'versions')):
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
    began: what config.json holds.
    now: config.json of a run that would begin here and now.
    saved: that the run resumes from.
  """
  resumed = began.get('resumed', [])
  if not isinstance(resumed, list) or not all(
    isinstance(machine, dict) for machine in resumed
  ):
    raise InputError('config.json: resumed must list the machines of the run')
  last = [began, *resumed][-1]
  changed = [key for key in _SAME_BITS if last.get(key) != now[key]]
  continued = began | {'config': now['config']}
  if changed:
    number = saved.metadata['round'] if saved else 0
    logging.warning(
      'not the device or the versions (%s) that trained round %d: the same up'
      ' to rounding, not to the bit',
      ', '.join(changed),
      number,
    )
    here = {key: now[key] for key in _SAME_BITS}
    continued['resumed'] = [*resumed, {'round': number, **here}]
  return continued, not changed
