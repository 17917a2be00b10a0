"""Reads runs and sweeps, and groups the runs that differ only in the seed."""

from collections.abc import Sequence
import json
import pathlib

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import grid_jobs
from fedavg_jax.runs import run_config
from fedavg_jax.runs.compare import Run
from fedavg_jax.runs.compare import check_ended
from fedavg_jax.runs.compare import read_run
from fedavg_jax.runs.run_dir import check_format


def read_groups(folders: Sequence[str]) -> dict[str, list[Run]]:
  """Returns the runs of each setting, by a name, in the order of the folders.

  Args:
    folders: folders of runs, which are grouped where only their seeds differ,
      and of sweeps, whose settings are groups.

  Raises:
    InputError: a folder is neither, a run has not ended, a sweep has trained
      some runs for fewer rounds, a seed of a setting is given twice, or a file
      is damaged.
  """
  sweeps = [name for name in folders if _mark(name).is_file()]
  alone = by_seed(
    [
      _read_ended(pathlib.Path(name), name)
      for name in folders
      if name not in sweeps
    ]
  )
  found: dict[str, list[Run]] = {}
  for name in folders:
    if name in sweeps:
      prefix = f'{name}: ' if len(folders) > 1 else ''
      for setting, runs in _read_sweep(pathlib.Path(name)).items():
        found[f'{prefix}{setting}'] = runs
    else:  # A group stands where its first run does.
      found |= {k: runs for k, runs in alone.items() if runs[0].name == name}
  return found


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Groups runs whose settings and code are equal, and whose seeds differ.

  Returns:
    The name of the first run of each group -> its runs, in their order.

  Raises:
    InputError: two runs have the same settings, code and seed.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    group = groups.setdefault(_kind(run), [])
    for other in group:
      if run.seed == other.seed:
        raise InputError(
          f'{run.name}: has the settings and the seed {run.seed} of'
          f' {other.name}; must have another seed, or be left out'
        )
    group.append(run)
  return {
    group[0].name + f' and {len(group) - 1} more' * (len(group) > 1): group
    for group in groups.values()
  }


def _read_ended(folder: pathlib.Path, name: str | None = None) -> Run:
  run = read_run(folder, name)
  check_ended(run)
  return run


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
  finished: dict[str, Run] = {}  # The first of each value of rounds.
  for setting, seed in jobs:
    run = _read_ended(grid_jobs.run_folder(folder, setting, seed))
    if run.status == 'finished':
      first = finished.setdefault(str(setting.get('rounds', '')), run)
      _check_same_end(first, run, folder)
    group = groups.setdefault(grid_jobs.name_of(setting), [])
    if any(run.seed == other.seed for other in group):
      raise InputError(f'{mark}: has seed {seed} of one setting twice')
    group.append(run)
  return groups


def _check_same_end(one: Run, other: Run, folder: pathlib.Path) -> None:
  """Raises InputError where two finished runs of a sweep have other rounds.

  This is a sweep that was stopped while more rounds were added.
  """
  rounds = one.records[-1]['round'], other.records[-1]['round']
  if rounds[0] != rounds[1]:
    raise InputError(
      f'{folder}: the finished run {other.name} ends with round {rounds[1]},'
      f' {one.name} with round {rounds[0]}; complete the sweep first:'
      f' fedavg-jax sweep ... --workdir {folder} --config.rounds={max(rounds)}'
    )


def _mark(folder: str | pathlib.Path) -> pathlib.Path:
  return pathlib.Path(folder) / grid_jobs.MARK
