"""Summarizes a run: lines of metrics.jsonl, summary.json, curves.png."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.core import client_data
from fedavg_jax.data import statistics
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import plots
from fedavg_jax.runs.builders import Prepared
from fedavg_jax.runs.privacy_builder import Spending
from fedavg_jax.runs.private_parts_builder import LocalSpending
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.targets import Measure
from fedavg_jax.runs.targets import from_json
from fedavg_jax.runs.titles import describe
from fedavg_jax.schedule import planning


def draw_population(
  cfg: RunConfig, prepared: Prepared, folder: Workdir
) -> None:
  """Writes partition.png, if the config enables pictures."""
  if not cfg.pictures:
    return
  with folder.replacing('partition.png') as path:
    plots.draw_partition(
      path,
      title=describe(cfg),
      counts=statistics.label_counts(
        client_data.first(prepared.clients, plots.MOST_CLIENTS),
        prepared.dataset.num_classes,
      ),
      num_clients=prepared.clients.num_clients,
    )


def finish(
  cfg: RunConfig,
  simulation: Simulation,
  folder: Workdir,
  lines: list[dict[str, Any]],
  status: str,
  lanes: int,
  measure: Measure,
  test: Callable[[], dict[str, float]] | None = None,
  start_seconds: float | None = None,
  spending: Spending | LocalSpending | None = None,
) -> dict[str, Any]:
  """Writes curves.png, then summary.json; returns the summary.

  The summary is written last: a run that has one has all its files.

  Args:
    cfg: the config of the run.
    simulation: the compiled simulation.
    folder: the folder of the run.
    lines: the lines of its metrics.jsonl.
    status: the reason of its end, see `end_status`.
    lanes: the number of lanes in the last round.
    measure: the measure of the run.
    test: a function that tests the last model on the test set, None if every
      evaluation used the test set.
    start_seconds: the seconds until the first record of this process; None if
      several runs had one start.
    spending: the report of the run's privacy, None if it has none.
  """
  summary = summarize(cfg, simulation, lines, status, lanes, measure)
  summary['start_seconds'] = start_seconds
  if spending is not None:
    ended = status in ('finished', 'target reached')
    summary |= spending.summary(lines[-1]['round'], ended=ended)
  if test is not None:
    for name, value in test().items():
      summary[f'final_test_{name}'] = float(value)
  if cfg.pictures:
    with folder.replacing('curves.png') as path:
      plots.draw_curves(
        path,
        title=describe(cfg),
        records=lines,
        measure=measure,
        target=cfg.ends_at,
        loss='cross entropy' if simulation.task.classifies else 'loss',
      )
  folder.summary(summary)
  return summary


def end_status(
  cfg: RunConfig, last: dict[str, Any], finite: bool, measure: Measure
) -> str:
  """Returns why a run ended after the last line of its metrics.jsonl."""
  if not finite:
    return 'diverged'
  if measure.reached(last, cfg.ends_at):
    return 'target reached'
  return 'finished' if last['round'] == cfg.rounds else 'interrupted'


def is_over(summary: dict[str, Any], cfg: RunConfig) -> bool:
  """Returns whether a run with this summary is finished."""
  measure = from_json(summary, cfg.measured_on)
  numbers = (f'final_test_{measure.name}', 'rounds_per_second')
  numbers += (f'best_{measure.key}',)
  if not all(isinstance(summary.get(key), float) for key in numbers):
    return False  # A damaged summary is written again.
  status, rounds = summary.get('status'), summary.get('rounds')
  return status == 'target reached' or (
    status == 'finished' and rounds == cfg.rounds
  )


def summarize(
  cfg: RunConfig,
  simulation: Simulation,
  records: list[dict[str, Any]],
  status: str,
  lanes: int,
  measure: Measure,
) -> dict[str, Any]:
  """Returns summary.json of a run from the lines of its metrics.jsonl."""
  values = [measure.of(r) for r in records if measure.key in r]
  target = cfg.ends_at
  reached, on_paper_grid = measure.crossings(records, target)
  seconds = sum(r['seconds'] for r in records)
  planner = simulation.planner
  mean_examples = float(np.mean(planner.num_examples))
  return {
    'status': status,
    'rounds': records[-1]['round'],
    **measure.to_json(),
    f'final_{measure.key}': values[-1],
    f'best_{measure.key}': measure.best([v for v in values if v is not None]),
    f'target_{measure.name}': target,
    'rounds_to_target': reached,
    'rounds_to_target_paper_grid': on_paper_grid,
    **_spent('', records),
    **_spent('_to_target', _until(records, reached)),
    'rounds_per_second': (records[-1]['round'] / seconds if seconds else None),
    'compile_seconds': simulation.compile_seconds,
    # u = E n / (K B), the paper's measure of local work.
    'updates_per_round': planner.epochs
    * (mean_examples / planner.batch_size if planner.batch_size else 1.0),
    'skipped_clients': sum(r.get('skipped', 0) for r in records),
    # The states of a sweep have the parameters of all values.
    'parameters': num_parameters(jax.eval_shape(simulation.init)[0].params)
    // len(simulation.sweep or (0,)),
    'devices': planner.num_devices,
    'lanes': lanes,
  }


def _until(records, number: int | None) -> list[dict[str, Any]] | None:
  """Returns the records up to a round, None without a round."""
  if number is None:
    return None
  return [record for record in records if record['round'] <= number]


def _spent(suffix: str, records) -> dict[str, Any]:
  """Returns the summed bytes and simulated seconds; None where unknown."""
  spent = {}
  for name in ('bytes_down', 'bytes_up', 'simulated_seconds'):
    spent[f'{name}{suffix}'] = None
    if records is not None and (
      name != 'simulated_seconds' or name in records[-1]
    ):
      values = [record.get(name, 0) for record in records]
      # A round of infinite duration is null in the lines.
      spent[f'{name}{suffix}'] = None if None in values else sum(values)
  return spent


def to_line(
  record: Record,
  planner: planning.Planner,
  measured_on: str = 'test',
  spending: Spending | LocalSpending | None = None,
) -> dict[str, Any]:
  """Returns a line of metrics.jsonl.

  Args:
    record: the record of the round.
    planner: the planner of the simulation.
    measured_on: the set of examples of the evaluation, 'test' or 'validation'.
    spending: the report of the run's privacy, None if it has none.
  """
  line = {
    'round': record.round,
    'train_loss': record.train_loss,
    'seconds': record.seconds,
    'examples': record.examples,
  }
  if record.round:
    account = planner.cost(record.round)
    line |= {
      'clients': account.reported - (record.skipped or 0),
      'bytes_down': account.bytes_down,
      'bytes_up': int(record.coded) or account.bytes_up,
    }
    line |= {f'info_{name}': value for name, value in record.info.items()}
    if account.seconds is not None:
      line['simulated_seconds'] = account.seconds
  if record.skipped:
    line['skipped'] = record.skipped
  if spending is not None:
    line |= spending.line(record.round)
  return line | {
    f'{measured_on}_{name}': value for name, value in record.test.items()
  }
