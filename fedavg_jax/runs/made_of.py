"""What a run from Python is made of, so that a folder knows it again."""

import pathlib
import platform
from typing import Any

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import given
from fedavg_jax.runs import provenance
from fedavg_jax.runs.fingerprint import check
from fedavg_jax.runs.fingerprint import fingerprint

# Of functions, where nothing else has changed: their forms are each version's.
_CODE, _VERSIONS = 'code_sha256', 'versions'
_PACKAGES = 'jax', 'flax', 'optax'


def made_of(simulation: Simulation, *, keep_best: bool) -> dict[str, Any]:
  """Returns as JSON what must be the same where a run continues.

  Args:
    simulation: that is run.
    keep_best: whether the best model is kept.
  """
  task, federation, trained, _, _ = simulation.parts
  sweep = simulation.sweep
  code = {
    'model': task.model,
    'algorithm': trained,
    'loss': task.loss,
    'metrics': task.metrics,
    'participation': federation.participation,
  }
  return {
    'model': task.model.name,
    'algorithm': given.name_of(trained.first),
    'loss': given.name_of(task.loss),
    'metrics': given.name_of(task.metrics),
    'seed': federation.seed,
    'epochs': federation.epochs,
    'batch_size': federation.batch_size,
    'cohort_size': simulation.planner.cohort_size,
    'shuffle': federation.shuffle,
    'weighting': federation.weighting,
    'on_nan': federation.on_nan,
    'num_clients': federation.clients.num_clients,
    'sweep': None if sweep is None else list(sweep),
    'keep_best': keep_best,
    'clients': fingerprint(federation.clients),
    'test': fingerprint(federation.test),
    _CODE: {name: fingerprint(part) for name, part in code.items()},
    _VERSIONS: _versions(),
  }


def _versions() -> dict[str, str]:
  return {
    'python': '.'.join(platform.python_version_tuple()[:2]),
    **{name: provenance.version(name) for name in _PACKAGES},
  }


def check_same(before: Any, now: dict[str, Any], path: pathlib.Path) -> None:
  """Raises InputError where a folder is of a run that was made otherwise.

  Args:
    before: of `made_of`, when the run began.
    now: of `made_of`, here.
    path: of the folder.
  """
  if not isinstance(before, dict):
    raise InputError(
      f'folder = {path}: has a run of `train` or of the command, which'
      ' continue it; choose a new folder'
    )
  for name, value in now.items():
    if name in (_CODE, _VERSIONS) or before.get(name) == value:
      continue
    if name in ('clients', 'test'):
      raise InputError(
        f'{name}: their examples are not those of the run in folder = {path};'
        ' bring them back, or choose a new folder'
      )
    raise InputError(
      f'{name} = {value!r}: was {before.get(name)!r} in folder = {path}; set it'
      ' back, or choose a new folder'
    )
  if before.get(_VERSIONS) != now[_VERSIONS]:
    return
  found = before.get(_CODE)
  # One that is missing is another one.
  found = dict.fromkeys(now[_CODE]) | (found if isinstance(found, dict) else {})
  check(found, now[_CODE], f'of the run in folder = {path}', 'folder')
