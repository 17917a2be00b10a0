"""The narrative: data, clients, model, rounds, evaluation, what is kept.

`train(config, workdir)` is what `main.py` calls; a ConfigDict ends here.
"""

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from fedavg_jax import algorithms
from fedavg_jax import checkpoint
from fedavg_jax import clients as clients_lib
from fedavg_jax import config as config_lib
from fedavg_jax import datasets
from fedavg_jax import metrics
from fedavg_jax import models
from fedavg_jax import paper
from fedavg_jax import partition
from fedavg_jax import plots
from fedavg_jax import round as round_lib
from fedavg_jax.errors import DivergedError
from fedavg_jax.lanes import use_cpu_devices
from fedavg_jax.progress import Progress
from fedavg_jax.simulation import DIVERGED
from fedavg_jax.simulation import Record
from fedavg_jax.simulation import Simulation
from fedavg_jax.simulation import build_simulation
from fedavg_jax.simulation import simulate


def train(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Runs the federation that a config describes and keeps what it tells.

  Args:
    config: see `configs/`.
    workdir: a new folder.

  Returns:
    The content of summary.json.

  Raises:
    InputError: bad config, data or workdir; nothing was written over.
    DivergedError: the loss or the model is not finite any more.
  """
  cfg = config_lib.check(config.to_dict())
  metrics.refuse_existing(workdir)
  use_cpu_devices(cfg['cpu_devices'])

  # Data, divided among the clients.
  dataset = datasets.load_dataset(cfg['dataset'], cfg['data_dir'])
  parts = divide(cfg, dataset.train.y)
  clients = clients_lib.build_clients(dataset.train, parts)

  # Model, optimizers, compiled round.
  local, server = cfg['client'], cfg['server']
  simulation = build_simulation(
    models.build_model(
      cfg['model'],
      dataset,
      pixels=cfg['pixels'],
      convolution=cfg['convolution'],
      precision=cfg['precision'],
    ),
    clients,
    dataset.test,
    client_fraction=cfg['client_fraction'],
    unavailable_fraction=cfg['unavailable_fraction'],
    weighting=cfg['weighting'],
    epochs=local['epochs'],
    batch_size=local['batch_size'],
    algorithm=build_algorithm(cfg),
    shuffle=local['shuffle'],
    seed=cfg['seed'],
    lanes=cfg['lanes'],
    micro_batch=cfg['micro_batch'],
    rounds_per_call=cfg['rounds_per_call'],
  )
  planner = simulation.planner
  print(
    f'{describe(cfg)}\n{planner.cohort_size} of {clients.num_clients} clients a'
    f' round in {planner.lanes} lane(s) on {planner.num_devices}'
    f' {jax.default_backend()} device(s): {simulation.why_lanes}\ncompiled in'
    f' {simulation.compile_seconds:.1f} s',
    flush=True,
  )

  # The folder: nothing of what is wrong above has left one.
  params = jax.eval_shape(simulation.init)[0].params
  writer = metrics.RunWriter(workdir, room=checkpoint.bytes_needed(params))
  print(f'workdir: {workdir}', flush=True)
  writer.json('config.json', {'config': cfg, **metrics.environment()})
  plots.draw_partition(
    workdir / 'partition.png',
    title=describe(cfg),
    counts=partition.label_counts(dataset.train.y, parts, dataset.num_classes),
  )

  # The rounds.
  summary = _run_and_keep(cfg, simulation, writer)
  if summary['status'] == 'diverged':
    raise DivergedError(
      f'round {summary["rounds"]}: {DIVERGED} (they are'
      f' {local["learning_rate"]} and {server["learning_rate"]}); the model and'
      f' metrics before it are kept in {workdir}'
    )
  return summary


def _run_and_keep(
  cfg: dict[str, Any], simulation: Simulation, writer: metrics.RunWriter
) -> dict[str, Any]:
  """Runs until an end; however it ends, what was done is written."""
  records: list[dict[str, Any]] = []
  state: Any = None
  lanes = simulation.planner.lanes
  summary: dict[str, Any] = {}
  status = 'failed'
  progress = Progress(cfg['rounds'], may_end_sooner=cfg['target_accuracy'] > 0)
  try:
    for record in simulate(
      simulation,
      rounds=cfg['rounds'],
      eval_every=cfg['eval_every'],
      target_accuracy=cfg['target_accuracy'],
    ):
      if record.state is not None:
        state = record.state
      lanes = record.lanes
      records.append(_line(record))
      writer.round(records[-1])
      progress.update(records[-1])
      if not record.finite:
        status = 'diverged'
        break
      if _reached(record, cfg['target_accuracy']):
        status = 'target reached'
        break
    else:
      status = 'finished'
  except KeyboardInterrupt:
    status = 'interrupted'
    raise
  finally:
    progress.close()
    writer.close()
    if records:
      summary = summarize(cfg, simulation, records, state, status)
      summary['lanes'] = lanes
      writer.json('summary.json', summary)
      checkpoint.save_params(writer.workdir, state.params)
      plots.draw_curves(
        writer.workdir / 'curves.png',
        title=describe(cfg),
        records=records,
        target_accuracy=cfg['target_accuracy'],
        paper_rounds=paper_rounds(cfg),
      )
  return summary


def divide(cfg: dict[str, Any], labels: np.ndarray) -> list[np.ndarray]:
  """The partition that a checked config names, training examples only."""
  if cfg['partition'] == 'shards':
    parts = partition.shards(
      labels,
      num_clients=cfg['num_clients'],
      shards_per_client=cfg['shards_per_client'],
      seed=cfg['seed'],
    )
  else:
    parts = partition.iid(
      len(labels), num_clients=cfg['num_clients'], seed=cfg['seed']
    )
  return partition.hold_out(
    parts, fraction=cfg['holdout_fraction'], seed=cfg['seed']
  )


def build_algorithm(cfg: dict[str, Any]) -> algorithms.Algorithm:
  """The algorithm that a checked config names."""
  local, server = cfg['client'], cfg['server']
  if cfg['algorithm'] == 'scaffold':
    return algorithms.scaffold(local['learning_rate'], server['learning_rate'])
  if server['optimizer'] == 'sgd':
    server_optimizer = optax.sgd(
      server['learning_rate'], momentum=server['momentum'] or None
    )
  else:
    server_optimizer = algorithms.adaptive(
      server['optimizer'],
      server['learning_rate'],
      b1=server['momentum'],
      b2=server['second_momentum'],
      tau=server['adaptivity'],
    )
  client_optimizer = optax.sgd(local['learning_rate'])
  if cfg['algorithm'] == 'fedprox':
    algorithm = algorithms.fedprox(
      local['proximal'], client_optimizer, server_optimizer
    )
  else:
    algorithm = algorithms.fedavg(client_optimizer, server_optimizer)
  if local['clip_norm']:
    algorithm = algorithms.clip_delta(algorithm, local['clip_norm'])
  return algorithm


def describe(cfg: dict[str, Any]) -> str:
  """One line that names a setting, with the paper's letters."""
  local = cfg['client']
  algorithm = '' if cfg['algorithm'] == 'fedavg' else f'{cfg["algorithm"]}, '
  return (
    f'{algorithm}{cfg["model"]} on {cfg["dataset"]}, {cfg["partition"]}:'
    f' K={cfg["num_clients"]} C={cfg["client_fraction"]:g}'
    f' E={local["epochs"]} B={local["batch_size"] or "inf"}'
    f' lr={local["learning_rate"]:g}'
  )


def paper_rounds(cfg: dict[str, Any]) -> list[int]:
  """The paper's rounds to the target for exactly this setting, if it has it."""
  if cfg['partition'] == 'iid':
    division = 'iid'
  elif cfg['partition'] == 'shards' and cfg['shards_per_client'] == 2:
    division = 'noniid'
  else:
    return []
  plain = (
    cfg['num_clients'] == 100
    and cfg['unavailable_fraction'] == 0
    and cfg['holdout_fraction'] == 0
    and cfg['algorithm'] == 'fedavg'
    and cfg['weighting'] == 'examples'
    and cfg['client']['clip_norm'] == 0
    and cfg['server']['optimizer'] == 'sgd'
    and cfg['server']['learning_rate'] == 1
    and cfg['server']['momentum'] == 0
  )
  if not plain:
    return []
  return paper.rounds_in_paper(
    model=cfg['model'],
    dataset=cfg['dataset'],
    partition=division,
    client_fraction=cfg['client_fraction'],
    epochs=cfg['client']['epochs'],
    batch_size=cfg['client']['batch_size'],
    target_accuracy=cfg['target_accuracy'],
  )


def summarize(
  cfg: dict[str, Any],
  simulation: Simulation,
  records: list[dict[str, Any]],
  state: round_lib.ServerState,
  status: str,
) -> dict[str, Any]:
  """summary.json of a run from the lines of its metrics.jsonl."""
  tested = [r for r in records if 'test_accuracy' in r]
  rounds = [r['round'] for r in tested]
  accuracies = [r['test_accuracy'] for r in tested]
  target = cfg['target_accuracy']
  seconds = sum(r['seconds'] for r in records)
  planner = simulation.planner
  mean_examples = float(np.mean(planner.num_examples))
  return {
    'status': status,
    'rounds': records[-1]['round'],
    'final_test_accuracy': accuracies[-1],
    'best_test_accuracy': max(accuracies),
    'target_accuracy': target,
    'rounds_to_target': (
      metrics.rounds_to_target(rounds, accuracies, target) if target else None
    ),
    'rounds_to_target_paper_grid': (
      metrics.rounds_to_target_paper_grid(rounds, accuracies, target)
      if target
      else None
    ),
    'paper_rounds': paper_rounds(cfg),
    'rounds_per_second': (records[-1]['round'] / seconds if seconds else None),
    'compile_seconds': simulation.compile_seconds,
    # u = E n / (K B), the paper's measure of local work.
    'updates_per_round': planner.epochs
    * (mean_examples / planner.batch_size if planner.batch_size else 1.0),
    'model_round': int(state.round),
    'parameters': models.num_parameters(state.params),
    'devices': planner.num_devices,
  }


def _line(record: Record) -> dict[str, Any]:
  """A line of metrics.jsonl."""
  line = {
    'round': record.round,
    'train_loss': record.train_loss,
    'seconds': record.seconds,
    'examples': record.examples,
  }
  if record.test_accuracy is not None:
    line['test_accuracy'] = record.test_accuracy
    line['test_loss'] = record.test_loss
  return line


def _reached(record: Record, target: float) -> bool:
  accuracy = record.test_accuracy
  return target > 0 and accuracy is not None and accuracy >= target
