"""Identifies a run from Python, to resume only the same run in a folder."""

import pathlib
import platform
from typing import Any

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import given
from fedavg_jax.runs import provenance
from fedavg_jax.runs.fingerprint import check
from fedavg_jax.runs.fingerprint import fingerprint

# Hashes of functions are compared only if these versions are equal.
_CODE, _VERSIONS = 'code_sha256', 'versions'
_PACKAGES = 'jax', 'flax', 'optax'


def made_of(simulation: Simulation, *, keep_best: bool) -> dict[str, Any]:
  """Returns as JSON all that must be equal when a run resumes.

  Args:
    simulation: the simulation of the run.
    keep_best: whether the best model is saved.
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
  """Returns the versions on which the hashes of functions depend."""
  return {
    'python': '.'.join(platform.python_version_tuple()[:2]),
    **{name: provenance.version(name) for name in _PACKAGES},
  }


def check_same(before: Any, now: dict[str, Any], path: pathlib.Path) -> None:
  """Raises InputError where the run of a folder is another one.

  Args:
    before: the result of `made_of` when the run began.
    now: the present result of `made_of`.
    path: the path of the folder.
  """
  if not isinstance(before, dict):
    raise InputError(
      f'folder = {path}: contains a run of `train` or of the command,'
      ' which resume it; choose a new folder'
    )
  for name, value in now.items():
    if name in (_CODE, _VERSIONS) or before.get(name) == value:
      continue
    if name in ('clients', 'test'):
      raise InputError(
        f'{name}: their examples are not those of the run in folder = {path};'
        ' restore them, or choose a new folder'
      )
    raise InputError(
      f'{name} = {value!r}: was {before.get(name)!r} in folder = {path}; set it'
      ' back, or choose a new folder'
    )
  if before.get(_VERSIONS) != now[_VERSIONS]:
    return
  found = before.get(_CODE)
  # A missing hash differs.
  found = dict.fromkeys(now[_CODE]) | (found if isinstance(found, dict) else {})
  check(found, now[_CODE], f'of the run in folder = {path}', 'folder')
