"""Trains runs together that differ only in numbers of the algorithm."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import functools
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.core.files import write_text
from fedavg_jax.engine.devices import numerics
from fedavg_jax.engine.devices import use_cpu_devices
from fedavg_jax.engine.driver import simulate
from fedavg_jax.engine.simulation import build_sweep
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import loggers
from fedavg_jax.runs import own_code
from fedavg_jax.runs import provenance
from fedavg_jax.runs import resume
from fedavg_jax.runs import run_config
from fedavg_jax.runs import summary
from fedavg_jax.runs.grid_jobs import MARK
from fedavg_jax.runs.grid_jobs import TOGETHER
from fedavg_jax.runs.grid_jobs import Job
from fedavg_jax.runs.grid_jobs import is_over
from fedavg_jax.runs.grid_jobs import parts_of
from fedavg_jax.runs.privacy_builder import spending
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.signals import stop_on_signals
from fedavg_jax.runs.snapshots import Snapshot
from fedavg_jax.runs.snapshots import Snapshots
from fedavg_jax.runs.snapshots import load
from fedavg_jax.runs.snapshots import of

_SECONDS_BETWEEN_SAVES, _SECONDS_BETWEEN_LINES = 60.0, 10.0


def _algorithm(jobs: Sequence[Job], prepared: builders.Prepared):
  """Returns the function from the index of a run, traced, to its algorithm."""
  columns = {
    key: jnp.array(
      [dict(run_config.flatten(job.cfg))[key] for job in jobs], jnp.float32
    )
    for key in TOGETHER
  }

  def algorithm(number):
    numbers = {
      key: column[number.astype(jnp.int32)] for key, column in columns.items()
    }
    return builders.algorithm_of(jobs[0].cfg.replace(numbers), prepared)

  return algorithm


def train_together(
  jobs: Sequence[Job], workdir: pathlib.Path, check: Callable[[], None]
) -> None:
  """Trains runs that differ in numbers of the algorithm, in the same calls.

  Their progress is saved under `parts` until all have ended and have folders.

  Args:
    jobs: the runs of one group.
    workdir: the folder of the sweep.
    check: a function that raises InputError where the folder was replaced.

  Raises:
    InputError: the folder was replaced, or the group resumes with other data.
    InterruptedRunError: a signal stopped the group; the same call resumes it.
  """
  folder = parts_of(jobs[0], workdir)
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / MARK, json.dumps([job.key for job in jobs]) + '\n')
  cfg = jobs[0].cfg
  use_cpu_devices(cfg.cpu_devices)
  with (
    stop_on_signals() as stop,
    contextlib.closing(checkpoint.Checkpoints(folder, keep=1)) as saved,
  ):
    prepared = builders.prepare(cfg)
    began = provenance.to_begin(cfg, prepared)
    data_sha256 = began['data_sha256']
    code_sha256 = began.get('own_code_sha256', {})
    newest = saved.newest()
    lanes = newest.metadata.get('lanes', cfg.lanes) if newest else cfg.lanes
    simulation = build_sweep(
      prepared.model,
      builders.federate(cfg, prepared),
      _algorithm(jobs, prepared),
      range(len(jobs)),
      execution=builders.execution(cfg, lanes=lanes),
      placement=builders.placement(cfg),
      loss=prepared.loss,
      metrics=prepared.metrics,
    )
    measure = builders.build_measure(cfg, prepared, simulation)
    spent = [spending(job.cfg, simulation, g) for g, job in enumerate(jobs)]
    # Per run: the lines of its metrics.jsonl, and why it ended.
    history: dict[str, Any] = {
      'round': 0,
      'lines': [[] for _ in jobs],
      'status': [''] * len(jobs),
      'numerics': numerics(),
      'data_sha256': data_sha256,
      'own_code_sha256': code_sha256,
      'lanes': simulation.planner.lanes,
    }
    start = None
    if newest is not None:
      resume.check_data(
        newest.metadata.get('data_sha256', data_sha256), data_sha256, workdir
      )
      resume.check_numerics(
        newest.metadata.get('numerics'), history['numerics']
      )
      own_code.check(newest.metadata.get('own_code_sha256'), code_sha256)
      start = load(newest, simulation)
      history = newest.metadata
      say(f'  resumes after round {history["round"]}')
    snapshots = Snapshots(
      saved,
      seconds=_SECONDS_BETWEEN_SAVES,
      saved_round=history['round'],
      before=check,
    )
    last = _simulate(
      cfg, simulation, history, snapshots, start, stop, measure, spent
    )
    if '' in history['status']:
      raise InterruptedRunError(
        f'round {history["round"]} is saved', signum=stop.signum
      )
    for g, job in enumerate(jobs):
      check()
      if not is_over(job):  # An earlier process may have been killed here.
        _write_run(
          job, prepared, simulation, history, last, g, measure, spent[g]
        )
  check()
  shutil.rmtree(folder)
  with contextlib.suppress(OSError):  # Other groups may use it.
    folder.parent.rmdir()


def _simulate(
  cfg, simulation, history, snapshots, start, stopping, measure, spent
):
  """Trains to the end, or until `stopping`; returns the last states."""
  printed_at = time.monotonic()
  if '' not in history['status']:
    return start
  for record in simulate(
    simulation,
    rounds=cfg.rounds,
    eval_every=cfg.eval_every,
    target=cfg.ends_at,
    start=start,
    needs_state=lambda number: snapshots.due(),
    should_stop=stopping,
  ):
    history['round'] = record.round
    for g, status in enumerate(history['status']):
      if not status:
        history['status'][g] = _add_line(
          cfg, simulation, record, g, history['lines'][g], measure, spent[g]
        )
    now = time.monotonic()
    if now - printed_at > _SECONDS_BETWEEN_LINES and record.round:
      printed_at = now
      values = [measure.of(lines[-1]) for lines in history['lines']]
      best = measure.best([value for value in values if value is not None])
      say(f'  round {record.round}/{cfg.rounds}  best {measure.show(best)}')
    snapshots.hold(of(record, lambda: history))
  snapshots.save()
  last = snapshots.held
  assert last is not None  # Every call ends with a record.
  return last.state, last.client_states


def _add_line(cfg, simulation, record, g, lines, measure, spent) -> str:
  """Appends the line of run g; returns why the run ended, '' if it has not."""
  finite = bool(record.finite[g])

  def of_run(value):
    return None if value is None else np.asarray(value)[g].item()

  run_record = record._replace(
    **{
      name: of_run(getattr(record, name))
      for name in ('train_loss', 'examples', 'skipped', 'finite')
    },
    info={name: of_run(value) for name, value in record.info.items()},
    coded=of_run(record.coded),
    # A round that is not finite did not change the model.
    test={n: of_run(value) for n, value in record.test.items() if finite},
    seconds=record.seconds / len(record.finite),
  )
  lines.append(
    summary.to_line(run_record, simulation.planner, cfg.measured_on, spent)
  )
  if not finite:
    return 'diverged'
  if measure.reached(lines[-1], cfg.ends_at):
    return 'target reached'
  return 'finished' if record.round == cfg.rounds else ''


def _write_run(
  job, prepared, simulation, history, last, g, measure, spent
) -> None:
  """Writes the folder of run g, as if it had been trained alone.

  The folder is renamed to its name once it is complete.
  """
  *before, line = history['lines'][g]
  status = history['status'][g]
  state, client_states = jax.tree.map(lambda leaf: leaf[g], last)
  part = job.folder.with_name(f'.part.{job.folder.name}')
  shutil.rmtree(part, ignore_errors=True)  # A killed process may have left it.
  with Workdir(part) as folder:
    folder.begin(room=checkpoint.bytes_needed((state, client_states), 2))
    folder.config(provenance.to_begin(job.cfg, prepared))
    summary.draw_population(job.cfg, prepared, folder)
    folder.open_metrics()
    for earlier in before:
      folder.line(earlier)
    seal = folder.seal()
    folder.line(line)
    diverged = status == 'diverged'
    value = None if diverged else measure.of(line)
    metadata = {
      'round': line['round'] - diverged,
      'lanes': simulation.planner.lanes,
      'metrics': seal if diverged else folder.seal(),
    }
    snapshot = Snapshot(
      round=line['round'] - diverged,
      state=state,
      client_states=client_states,
      beside=lambda: metadata,
      score=None if value is None else measure.score(value),
    )
    with contextlib.closing(
      checkpoint.Checkpoints(folder.path, keep=1)
    ) as checkpoints:
      folder.sync()
      snapshot.save(checkpoints)
    folder.mark_saved()
    last_test = None
    if status in ('finished', 'target reached'):
      last_test = builders.build_last_test(prepared, simulation)
    for logger in loggers.open_loggers(
      job.cfg.log, part, job.cfg.to_dict(), []
    ):
      for each in (*before, line):
        logger.line(each)
      logger.close()
    summary.finish(
      job.cfg,
      simulation,
      folder,
      [*before, line],
      status,
      simulation.planner.lanes,
      measure,
      functools.partial(last_test, state.variables) if last_test else None,
      spending=spent,
    )
  job.folder.parent.mkdir(exist_ok=True)
  part.rename(job.folder)
