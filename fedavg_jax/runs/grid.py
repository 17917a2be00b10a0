"""Runs a sweep: a grid of settings with several seeds each, in one folder.

Settings that differ only in numbers such as the learning rate are trained
together, in the same compiled calls; the others one after another. Every run
has its own folder, as from `train`; the sweep has a table and a picture. The
same call resumes a stopped sweep; with further values or seeds it runs what is
missing, and the tables have all of them. With more rounds, finished runs
continue.
"""

from collections.abc import Sequence
import contextlib
import json
import pathlib

import filelock
import ml_collections

from fedavg_jax.core import choices
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.core.files import write_text
from fedavg_jax.core.folders import HeldFile
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine.devices import use_cpu_devices
from fedavg_jax.engine.simulation import lower_simulation
from fedavg_jax.runs import builders
from fedavg_jax.runs import run_config
from fedavg_jax.runs import train
from fedavg_jax.runs.given import Given
from fedavg_jax.runs.grid_jobs import MARK
from fedavg_jax.runs.grid_jobs import Grid
from fedavg_jax.runs.grid_jobs import Job
from fedavg_jax.runs.grid_jobs import check_data
from fedavg_jax.runs.grid_jobs import earlier_jobs
from fedavg_jax.runs.grid_jobs import is_over
from fedavg_jax.runs.grid_jobs import next_group
from fedavg_jax.runs.grid_jobs import parts_of
from fedavg_jax.runs.grid_jobs import plan_jobs
from fedavg_jax.runs.grid_report import report
from fedavg_jax.runs.grid_training import train_together
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import FORMAT
from fedavg_jax.runs.signals import stop_on_signals


def run_sweep(
  config: ml_collections.ConfigDict | RunConfig,
  grid: Grid | Sequence[Grid],
  seeds: int,
  workdir: pathlib.Path,
  *,
  choose_on: str = 'validation',
) -> list[Job]:
  """Trains the missing runs of a sweep, then writes its tables and picture.

  Args:
    config: the config of all runs, except for the keys of the grid and the
      seed.
    grid: the values of each key, as text; a setting has one value of every key.
      Several grids are alternatives: the sweep has the settings of each.
    seeds: the number of seeds per setting, from that of the config on.
    workdir: a new folder, or that of a sweep with the same config; `rounds` may
      be larger than they were.
    choose_on: the set on which the best setting is chosen, 'validation' or
      'test'; without a validation set none is chosen on it.

  Returns:
    All runs of the folder, those of earlier commands first.

  Raises:
    InputError: a key, a value, the data or a folder is refused; no run began.
    InterruptedRunError: a signal stopped the sweep; the same call resumes it.
  """
  base = run_config.read(config)
  choices.check_choice('--choose_on', choose_on, choices.CHOOSE_ON)
  planned = plan_jobs(base, grid, seeds, workdir)
  if choose_on == 'test' and planned[0].cfg.measured_on == 'validation':
    raise InputError(
      '--choose_on test: the runs of the sweep are tested on a validation set;'
      ' must be validation, or validation_fraction 0'
    )
  check_data(_with_earlier(planned, workdir, base), _check_model)
  workdir.mkdir(parents=True, exist_ok=True)
  try:
    lock = filelock.FileLock(workdir.resolve() / '.lock').acquire(timeout=0)
  except filelock.Timeout:
    raise InputError(
      f'workdir = {workdir}: is in use by another process'
    ) from None
  with (
    lock,
    contextlib.closing(
      HeldFile(workdir.resolve() / '.lock', f'workdir = {workdir}')
    ) as lock_file,
  ):
    # Another command may have changed the folder before the lock.
    jobs = _with_earlier(planned, workdir, base)
    content = {
      'format': FORMAT,
      'config': base.to_dict(),
      'runs': [job.key for job in jobs],
    }
    write_text(workdir / MARK, json.dumps(content, indent=1) + '\n')
    _run_all(jobs, workdir, lock_file)
    report(jobs, workdir, choose_on)
  return jobs


def _run_all(
  jobs: list[Job], workdir: pathlib.Path, lock_file: HeldFile
) -> None:
  """Trains the runs that have not ended, one group after another.

  Raises:
    InterruptedRunError: a signal came, during a run or between two.
  """
  with stop_on_signals() as stop:
    while group := next_group(jobs, workdir):
      lock_file.check()
      done = sum(map(is_over, jobs))
      say(
        f'{done} of {len(jobs)} runs are finished; next: seed'
        f' {group[0].seed}, {"; ".join(job.name for job in group)}'
      )
      # Raised below, for the sweep.
      with contextlib.suppress(InterruptedRunError):
        if len(group) > 1 or parts_of(group[0], workdir).exists():
          train_together(group, workdir, lock_file.check)
        else:
          # Divergence of one setting is a result of the sweep.
          with contextlib.suppress(DivergedError):
            folder = group[0].folder
            began = (folder / 'config.json').is_file()
            train.train(group[0].cfg, folder, extend=began)
      lock_file.check()
      if stop():
        raise InterruptedRunError(
          f'{sum(map(is_over, jobs))} of {len(jobs)} runs are finished, the'
          ' progress of others is saved; rerun the same command with --workdir'
          f' {workdir} to resume',
          signum=stop.signum,
        )


def _check_model(cfg: RunConfig, dataset: Dataset) -> None:
  """Raises InputError where a model or an algorithm does not fit its data."""
  use_cpu_devices(cfg.cpu_devices)
  prepared = builders.prepare(cfg, Given(dataset=dataset))
  lower_simulation(
    prepared.model,
    builders.federate(cfg, prepared),
    builders.algorithm_of(cfg, prepared),
    loss=prepared.loss,
    metrics=prepared.metrics,
    execution=builders.execution(cfg, lanes=cfg.lanes),
    placement=builders.placement(cfg),
  )


def _with_earlier(
  planned: list[Job], workdir: pathlib.Path, base: RunConfig
) -> list[Job]:
  """Returns the runs of earlier commands in a folder, then the planned ones."""
  if not workdir.exists():
    return planned
  earlier = earlier_jobs(workdir, base)
  known = [job.key for job in earlier]
  return earlier + [job for job in planned if job.key not in known]
