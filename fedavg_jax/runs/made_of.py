"""Records what a run from Python consists of, to compare it on resume."""

import pathlib
import platform
from typing import Any

from absl import logging
import jax
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import devices
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import fingerprint
from fedavg_jax.runs import given
from fedavg_jax.runs import provenance

# Programs are compared only if they were made by the same versions.
_PARTS, _CALL, _MADE_BY = 'parts_sha256', 'call', 'made_by'
_PACKAGES = 'jax', 'flax', 'optax'
# Entries whose values are hashes, which messages do not show.
_CONTENTS = {
  'clients': 'their examples are',
  'test': 'its examples are',
  'participation': 'its cohorts, or the work that they complete, are',
}
# Participation is a function of the round; this number of rounds is hashed.
_ROUNDS = 8


def made_of(simulation: Simulation, *, keep_best: bool) -> dict[str, Any]:
  """Returns as JSON all that must be equal when a run resumes.

  Args:
    simulation: the simulation of the run.
    keep_best: whether the best model is saved.
  """
  task, federation, trained, _, _ = simulation.parts
  sweep = simulation.sweep
  return {
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
    **devices.numerics(),
    'clients': fingerprint.of_arrays(tuple(federation.clients)),
    'test': fingerprint.of_arrays(tuple(federation.test)),
    # Checked in this order: the program of the algorithm contains the others.
    'model': task.model.name,
    'loss': given.name_of(task.loss),
    'metrics': given.name_of(task.metrics),
    'algorithm': given.name_of(trained.first),
    'participation': _participation(simulation),
    _PARTS: fingerprint.of_parts(
      task, trained, federation.clients, simulation.planner.cohort_size
    ),
    _CALL: _call(simulation),
    _MADE_BY: {
      'python': '.'.join(platform.python_version_tuple()[:2]),
      'platform': jax.devices()[0].platform,
      **{name: provenance.version(name) for name in _PACKAGES},
    },
  }


def _participation(simulation: Simulation) -> str:
  """Returns the SHA-256 of the cohorts, their work and its costs."""
  planner = simulation.planner
  found = []
  for number in range(1, _ROUNDS + 1):
    found += [*planner.work(number), np.array(repr(planner.cost(number)))]
  return fingerprint.of_arrays(tuple(found))


def _call(simulation: Simulation) -> dict[str, Any]:
  """Returns the SHA-256 of the compiled call, and the layout that it has."""
  planner = simulation.planner
  return {
    'layout': [
      *(planner.lanes, planner.num_devices, list(planner.widths)),
      *(simulation.rounds_per_call, planner.streamed, planner.gathers),
    ],
    'sha256': fingerprint.of_program(simulation.lowered.as_text()),
  }


def check_same(before: Any, now: dict[str, Any], path: pathlib.Path) -> None:
  """Raises InputError if the run of a folder is another one.

  Args:
    before: the result of `made_of` when the run began, from JSON.
    now: the present result of `made_of`.
    path: the path of the folder.
  """
  if not isinstance(before, dict):
    raise InputError(
      f'folder = {path}: contains a run of `train` or of the command,'
      ' which resume it; choose a new folder'
    )
  comparable = before.get(_MADE_BY) == now[_MADE_BY]
  if not comparable:
    logging.warning(
      'folder = %s: programs of model, loss, metrics and algorithm are not'
      ' compared, because Python, JAX, flax, optax or the device has changed',
      path,
    )
  for name, value in now.items():
    if name in (_PARTS, _CALL, _MADE_BY):
      continue
    if comparable and name in now[_PARTS]:
      _check_part(name, before, now, path)
    elif before.get(name) != value:
      raise InputError(_other_value(name, before, value, path))
  if comparable:
    _check_call(before.get(_CALL), now[_CALL], path)


def _check_part(
  name: str, before: dict[str, Any], now: dict[str, Any], path: pathlib.Path
) -> None:
  """Raises InputError if a part computes something else, whatever its name."""
  parts = before.get(_PARTS)
  if isinstance(parts, dict) and parts.get(name) == now[_PARTS][name]:
    return
  if before.get(name) != now[name]:
    raise InputError(_other_value(name, before, now[name], path))
  of = f'the run in folder = {path}'
  raise InputError(fingerprint.differs(name, of, 'folder'))


def _other_value(
  name: str, before: dict[str, Any], value: Any, path: pathlib.Path
) -> str:
  if name in _CONTENTS:
    return (
      f'{name}: {_CONTENTS[name]} not those of the run in folder = {path};'
      ' restore them, or choose a new folder'
    )
  return (
    f'{name} = {value!r}: was {before.get(name)!r} in folder = {path}; set it'
    ' back, or choose a new folder'
  )


def _check_call(before: Any, now: dict[str, Any], path: pathlib.Path) -> None:
  """Raises InputError if a simulation of the same layout was compiled anew.

  Parts are compared as they are now. A simulation that was built before one of
  its functions, or a number that they use, has changed is another one.
  """
  if not isinstance(before, dict) or before.get('layout') != now['layout']:
    return
  if before.get('sha256') != now['sha256']:
    raise InputError(
      'simulation: was compiled with other functions or numbers than the run'
      f' in folder = {path}; build it again, or choose a new folder'
    )
