"""The narrative: data, clients, model, rounds, evaluation, what is kept.

`train(config, workdir)` is what `main.py` calls; a ConfigDict ends there.
`build_simulation` and `simulate` are the same steps for a notebook.
"""

from collections.abc import Callable
from collections.abc import Iterator
import os
import pathlib
import time
from typing import Any
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from fedavg_jax import checkpoint
from fedavg_jax import clients as clients_lib
from fedavg_jax import config as config_lib
from fedavg_jax import datasets
from fedavg_jax import evaluate as evaluate_lib
from fedavg_jax import losses
from fedavg_jax import metrics
from fedavg_jax import models
from fedavg_jax import paper
from fedavg_jax import partition
from fedavg_jax import plan as plan_lib
from fedavg_jax import plots
from fedavg_jax import round as round_lib
from fedavg_jax.errors import DivergedError
from fedavg_jax.progress import Progress


class Simulation(NamedTuple):
  """A federation ready to run: compiled, its data on the device.

  Attributes:
    init_state: () -> the state before round 1; the same one every time.
    planner: round number -> plan.
    round_fn: (state, data, plan) -> (state, metrics), one compiled call; the
      state that goes in is donated.
    data: all clients' examples on the devices.
    evaluate: state -> test metrics.
    compile_seconds: what compiling took, by the wall clock.
  """

  init_state: Callable[[], round_lib.ServerState]
  planner: plan_lib.Planner
  round_fn: Callable
  data: clients_lib.Examples
  evaluate: Callable[[round_lib.ServerState], evaluate_lib.TestMetrics]
  compile_seconds: float


class Record(NamedTuple):
  """What one round told; `None` where nothing was trained or evaluated.

  Attributes:
    round: its number; 0 is the initial model.
    state: the server after it, valid until the next round is asked for.
    train_loss: mean loss over the examples read, each before its own step.
    examples: examples read in all local epochs.
    seconds: wall time of the round, evaluation not included.
    finite: False where the round diverged; `state` is then the one before.
    test_accuracy: fraction of the test set.
    test_loss: mean cross entropy of the test set.
  """

  round: int
  state: round_lib.ServerState
  train_loss: float | None
  examples: int
  seconds: float
  finite: bool
  test_accuracy: float | None
  test_loss: float | None


def build_simulation(
  model: models.Model,
  clients: clients_lib.Clients,
  test: clients_lib.Examples,
  *,
  client_fraction: float,
  epochs: int,
  batch_size: int,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
  unavailable_fraction: float = 0.0,
  shuffle: str = 'epoch',
  seed: int = 0,
  lanes: int = 0,
) -> Simulation:
  """Compiles a federation for the devices at hand.

  Args:
    model: from `models.build_model`, or your own pair of init and apply.
    clients: the population, from `clients.build_clients`.
    test: the central test set.
    client_fraction: C; the cohort is max(int(C * K), 1) clients.
    epochs: E.
    batch_size: B, 0 for all local examples in one step.
    client_optimizer: `optax.sgd(eta)` in the paper.
    server_optimizer: `optax.sgd(1.0)` is FedAvg.
    unavailable_fraction: of the clients, out of reach in a round.
    shuffle: one of `plan.SHUFFLES`.
    seed: of initial weights, cohorts and orders.
    lanes: clients that train side by side, on all devices together; 0 chooses.
      Never changes what is computed, but for rounding.

  Returns:
    A `Simulation`.
  """
  cohort = plan_lib.cohort_size(clients.num_clients, client_fraction)
  num_devices, lanes = choose_lanes(lanes, cohort)
  mesh = round_lib.lane_mesh(jax.devices()[:num_devices])
  planner = plan_lib.Planner(
    num_examples=clients.num_examples,
    cohort_size=cohort,
    num_unavailable=plan_lib.num_unavailable(
      clients.num_clients, unavailable_fraction
    ),
    epochs=epochs,
    batch_size=batch_size,
    shuffle=shuffle,
    seed=seed,
    lanes=lanes,
    num_devices=num_devices,
  )
  loss_fn = losses.cross_entropy(model.apply)
  data = round_lib.place_examples(clients.x, clients.y, mesh)
  test_set = evaluate_lib.place_test_set(test, mesh)

  def init_state():
    params = model.init(jax.random.key(seed))
    return round_lib.init_state(params, server_optimizer, mesh)

  start = time.perf_counter()
  state = init_state()
  round_fn = round_lib.build_round(
    loss_fn,
    client_optimizer,
    server_optimizer,
    step_examples=planner.step_examples,
    mesh=mesh,
  )
  round_fn = round_fn.lower(state, data, planner(1)).compile()
  evaluate = evaluate_lib.build_evaluate(model.apply, loss_fn, mesh)
  evaluate = evaluate.lower(state.params, test_set).compile()
  compile_seconds = time.perf_counter() - start
  return Simulation(
    init_state=init_state,
    planner=planner,
    round_fn=round_fn,
    data=data,
    evaluate=lambda state: evaluate(state.params, test_set),
    compile_seconds=compile_seconds,
  )


def simulate(
  simulation: Simulation, *, rounds: int, eval_every: int = 1
) -> Iterator[Record]:
  """Runs the rounds, one at a time as they are asked for; round 0 first.

  Evaluates before round 1, every `eval_every` rounds and after the last.
  """
  state = simulation.init_state()
  yield _record(simulation, state, None, 0.0, number=0, evaluated=True)
  plan = simulation.planner(1)
  for number in range(1, rounds + 1):
    start = time.perf_counter()
    state, told = simulation.round_fn(state, simulation.data, plan)
    if number < rounds:  # While the device works.
      plan = simulation.planner(number + 1)
    told = jax.device_get(told)
    seconds = time.perf_counter() - start
    evaluated = number % eval_every == 0 or number == rounds
    yield _record(simulation, state, told, seconds, number, evaluated)


def run(
  simulation: Simulation, *, rounds: int, eval_every: int = 1
) -> dict[str, np.ndarray]:
  """Runs all rounds; returns the history as arrays, for a notebook.

  Returns:
    Arrays with an entry per round, round 0 included: round, train_loss,
    examples, seconds, test_accuracy, test_loss; NaN where there is none.
  """
  names = 'round train_loss examples seconds test_accuracy test_loss'.split()
  history: dict[str, list] = {name: [] for name in names}
  for record in simulate(simulation, rounds=rounds, eval_every=eval_every):
    for name in names:
      value = getattr(record, name)
      history[name].append(np.nan if value is None else value)
  return {name: np.array(values) for name, values in history.items()}


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
  use_cpu_devices(cfg['cpu_devices'])

  # Data, divided among the clients.
  dataset = datasets.load_dataset(cfg['dataset'], cfg['data_dir'])
  parts = divide(cfg, dataset.train.y)
  clients = clients_lib.build_clients(dataset.train, parts)

  # The folder, before anything takes long.
  writer = metrics.RunWriter(workdir)
  print(f'{describe(cfg)}\nworkdir: {workdir}', flush=True)
  plots.draw_partition(
    workdir / 'partition.png',
    title=describe(cfg),
    counts=partition.label_counts(dataset.train.y, parts, dataset.num_classes),
  )

  # Model, optimizers, compiled round.
  local, server = cfg['client'], cfg['server']
  simulation = build_simulation(
    models.build_model(
      cfg['model'],
      dataset,
      pixels=cfg['pixels'],
      convolution=cfg['convolution'],
    ),
    clients,
    dataset.test,
    client_fraction=cfg['client_fraction'],
    unavailable_fraction=cfg['unavailable_fraction'],
    epochs=local['epochs'],
    batch_size=local['batch_size'],
    client_optimizer=optax.sgd(local['learning_rate']),
    server_optimizer=optax.sgd(
      server['learning_rate'], momentum=server['momentum'] or None
    ),
    shuffle=local['shuffle'],
    seed=cfg['seed'],
    lanes=cfg['lanes'],
  )
  planner = simulation.planner
  print(
    f'{planner.cohort_size} of {clients.num_clients} clients a round in'
    f' {planner.lanes} lanes on {planner.num_devices}'
    f' {jax.default_backend()} device(s); compiled in'
    f' {simulation.compile_seconds:.1f} s',
    flush=True,
  )
  writer.json(
    'config.json',
    {
      'config': cfg,
      'lanes': planner.lanes,
      'devices': planner.num_devices,
      **metrics.environment(),
    },
  )

  # The rounds.
  summary = _run_and_keep(cfg, simulation, writer)
  if summary['status'] == 'diverged':
    raise DivergedError(
      f'round {summary["rounds"]}: the loss or the model is not finite;'
      f' client.learning_rate = {local["learning_rate"]} is probably too'
      f' large; the model and metrics before it are kept in {workdir}'
    )
  return summary


def _run_and_keep(
  cfg: dict[str, Any], simulation: Simulation, writer: metrics.RunWriter
) -> dict[str, Any]:
  """Runs until an end; however it ends, what was done is written."""
  records: list[dict[str, Any]] = []
  params: models.Params = None
  summary: dict[str, Any] = {}
  status = 'interrupted'
  progress = Progress(cfg['rounds'])
  try:
    for record in simulate(
      simulation, rounds=cfg['rounds'], eval_every=cfg['eval_every']
    ):
      params = record.state.params
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
  finally:
    progress.close()
    writer.close()
    if records:
      summary = summarize(cfg, simulation, records, params, status)
      writer.json('summary.json', summary)
      plots.draw_curves(
        writer.workdir / 'curves.png',
        title=describe(cfg),
        records=records,
        target_accuracy=cfg['target_accuracy'],
        paper_rounds=paper_rounds(cfg),
      )
      # An interrupted round has already taken the model that went into it.
      if not any(leaf.is_deleted() for leaf in jax.tree.leaves(params)):
        checkpoint.save_params(writer.workdir, params)
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


def use_cpu_devices(number: int) -> None:
  """Gives each CPU core a virtual device of its own: before JAX starts.

  A small step cannot feed several cores, whole clients can. Without effect
  where JAX runs already, on accelerators, or where JAX_NUM_CPU_DEVICES or
  XLA_FLAGS have decided.

  Args:
    number: of devices, 0 for one per core this process may use.
  """
  config: Any = jax.config
  flags = os.environ.get('XLA_FLAGS', '')
  if config.jax_num_cpu_devices > 0 or 'host_platform_device_count' in flags:
    return
  if hasattr(os, 'sched_getaffinity'):  # Where a process can be pinned.
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  try:
    jax.config.update('jax_num_cpu_devices', number or cores)
  except RuntimeError:
    pass  # JAX runs already: keep its devices.


def choose_lanes(lanes: int, cohort_size: int) -> tuple[int, int]:
  """How many devices and lanes a cohort gets.

  A CPU core is fastest with one client at a time (its caches hold one model);
  an accelerator wants the whole cohort at once.

  Args:
    lanes: wished, of all devices together; 0 chooses.
    cohort_size: m, more lanes than that would be idle.

  Returns:
    (devices, lanes); lanes are rounded up to a multiple of the devices.
  """
  devices = jax.device_count()
  if lanes == 0:
    lanes = devices if jax.default_backend() == 'cpu' else cohort_size
  lanes = min(lanes, cohort_size)
  devices = min(devices, lanes)
  return devices, -(-lanes // devices) * devices


def describe(cfg: dict[str, Any]) -> str:
  """One line that names a setting, with the paper's letters."""
  local = cfg['client']
  return (
    f'{cfg["model"]} on {cfg["dataset"]}, {cfg["partition"]}:'
    f' K={cfg["num_clients"]} C={cfg["client_fraction"]:g}'
    f' E={local["epochs"]} B={local["batch_size"] or "∞"}'
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
  params: models.Params,
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
    'parameters': models.num_parameters(params),
  }


def _record(simulation, state, told, seconds, number, evaluated) -> Record:
  test = jax.device_get(simulation.evaluate(state)) if evaluated else None
  return Record(
    round=number,
    state=state,
    train_loss=None if told is None else float(told.train_loss),
    examples=0 if told is None else int(told.examples),
    seconds=seconds,
    finite=told is None or bool(told.finite),
    test_accuracy=None if test is None else test.accuracy,
    test_loss=None if test is None else test.loss,
  )


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
