"""Reads runs and sweeps, and groups the runs that differ only in the seed."""

from collections.abc import Sequence
import json
import pathlib

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import grid_jobs
from fedavg_jax.runs import run_config
from fedavg_jax.runs.compare import Run
from fedavg_jax.runs.compare import read_run
from fedavg_jax.runs.run_dir import check_format


def read_groups(folders: Sequence[str]) -> dict[str, list[Run]]:
  """Returns the runs of each setting, by a name, in the order of the folders.

  Args:
    folders: folders of runs, which are grouped where only their seeds differ,
      and of sweeps, whose settings are groups.

  Raises:
    InputError: a folder is neither, a run has not ended, or a file is damaged.
  """
  sweeps = [name for name in folders if _mark(name).is_file()]
  groups = by_seed(
    [read_run(pathlib.Path(name)) for name in folders if name not in sweeps]
  )
  for name in sweeps:
    prefix = f'{name}: ' if len(folders) > 1 else ''
    for setting, runs in _read_sweep(pathlib.Path(name)).items():
      groups[f'{prefix}{setting}'] = runs
  return groups


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Groups runs whose settings and code are equal, and whose seeds differ.

  Returns:
    The name of the first run of each group -> its runs, in their order.
  """
  groups: list[tuple[str, list[Run]]] = []
  for run in runs:
    kind = _kind(run)
    for known, group in groups:
      if kind == known and run.seed not in (other.seed for other in group):
        group.append(run)
        break
    else:
      groups.append((kind, [run]))
  return {
    group[0].name + f' and {len(group) - 1} more' * (len(group) > 1): group
    for _, group in groups
  }


def _kind(run: Run) -> str:
  """Returns what runs that differ only in the seed have in common."""
  settings = {
    key: value
    for key, value in run_config.flatten(run.config)
    if key not in ('seed', *config_changes.MACHINE_KEYS)
  }
  return json.dumps([settings, run.code], sort_keys=True)


def _read_sweep(folder: pathlib.Path) -> dict[str, list[Run]]:
  """Returns the runs of each setting of a sweep."""
  mark = _mark(folder)
  groups: dict[str, list[Run]] = {}
  try:
    content = json.loads(mark.read_text(encoding='utf-8'))
    jobs = [(dict(setting), int(seed)) for setting, seed in content['runs']]
  except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
    raise InputError(f'{mark}: cannot be read ({error})') from error
  check_format(mark, content)
  if not jobs:
    raise InputError(f'{folder}: has no runs')
  for setting, seed in jobs:
    run = read_run(grid_jobs.run_folder(folder, setting, seed))
    groups.setdefault(grid_jobs.name_of(setting), []).append(run)
  return groups


def _mark(folder: str | pathlib.Path) -> pathlib.Path:
  return pathlib.Path(folder) / grid_jobs.MARK
