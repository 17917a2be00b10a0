"""The narrative: data, clients, model, rounds, evaluation, what is kept.

`train(config, workdir)` is what `main.py` calls; a ConfigDict ends here.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import signal
import tempfile
import time
from typing import Any
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from fedavg_jax import algorithms
from fedavg_jax import checkpoint
from fedavg_jax import clients as clients_lib
from fedavg_jax import config as config_lib
from fedavg_jax import datasets
from fedavg_jax import hosts
from fedavg_jax import loggers
from fedavg_jax import metrics
from fedavg_jax import models
from fedavg_jax import paper
from fedavg_jax import personal
from fedavg_jax import plan
from fedavg_jax import plots
from fedavg_jax import population
from fedavg_jax import resume
from fedavg_jax import round as round_lib
from fedavg_jax.client_states import ClientStates
from fedavg_jax.errors import DivergedError
from fedavg_jax.errors import InputError
from fedavg_jax.errors import StoppedError
from fedavg_jax.lanes import use_cpu_devices
from fedavg_jax.progress import Progress
from fedavg_jax.progress import say
from fedavg_jax.rounds import DIVERGED
from fedavg_jax.rounds import Record
from fedavg_jax.rounds import simulate
from fedavg_jax.signals import stop_on_signals
from fedavg_jax.simulation import Simulation
from fedavg_jax.simulation import build_simulation
from fedavg_jax.simulation import place
from fedavg_jax.workdir import Workdir


class Federation(NamedTuple):
  """What a config's run is made of, before anything is compiled.

  Attributes:
    dataset: of the config.
    clients: those examples, back to back.
    held: what clients hold out, back to back.
    model: of the config.
  """

  dataset: datasets.Dataset
  clients: clients_lib.Clients
  held: clients_lib.Clients
  model: models.Model


def train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  *,
  extend: bool = False,
) -> dict[str, Any]:
  """Runs the federation that a config describes and keeps what it tells.

  Args:
    config: see `configs/`.
    workdir: a new folder, or that of an interrupted run with the same config,
      which goes on to the same bits.
    extend: goes on with more rounds than the run in the folder had, and lets
      `config.MACHINE_KEYS` be others.

  Returns:
    The content of summary.json.

  Raises:
    InputError: bad config, data or workdir; nothing was written over.
    DivergedError: the loss or the model is not finite any more.
    StoppedError: SIGINT or SIGTERM; all that was done is kept.
  """
  cfg = config_lib.read(config)
  use_cpu_devices(cfg['cpu_devices'])
  if hosts.several():  # Or nobody is there to differ.
    hosts.agree(_same_everywhere(cfg))
  workdir = pathlib.Path(hosts.tell(str(workdir)))
  with stop_on_signals() as stop, contextlib.ExitStack() as stack:
    # The folder of the run, which process 0 alone has.
    folder = hosts.first(
      lambda: stack.enter_context(_open_folder(workdir, cfg, extend))
    )
    summary = hosts.tell(folder.last_summary() if folder else {})
    if _is_over(summary, cfg):
      _say(f'{workdir}: this run is over')
      return summary

    # Data, divided among the clients, and a model.
    federation = hosts.together(lambda: prepare(cfg))
    began = to_begin(cfg, federation)
    hosts.agree({'the data, by SHA-256,': began['data_sha256']})

    # What an interrupted run has left.
    left = hosts.first(lambda: _left(folder, cfg, began))
    lanes, goes_on, number_saved = hosts.tell(left.facts() if left else [])

    # Optimizers, compiled round.
    simulation = build(cfg, federation, build_algorithm(cfg), lanes=lanes)
    planner = simulation.planner
    _say(
      f'{describe(cfg)}\n{planner.cohort_size} of'
      f' {federation.clients.num_clients} clients a round in {planner.lanes}'
      f' lane(s) on {planner.num_devices} {jax.default_backend()} device(s)'
      f'{hosts.describe()}: {simulation.why_lanes}\ncompiled in'
      f' {simulation.compile_seconds:.1f} s'
    )
    client_tests = None
    if cfg['client_eval_every']:
      client_tests = personal.build_client_tests(
        federation.model,
        simulation,
        federation.held,
        finetune=_client_optimizer(cfg),
        epochs=cfg['finetune_epochs'],
      )
    shapes = jax.eval_shape(simulation.init)
    start, number = None, cfg['checkpoint']['keep'] + 2  # The best, a new one.
    states = None  # Of clients, where they stay on the host.
    if simulation.host_states is not None:
      on_disk = cfg['client_states_on'] == 'disk'
      states = simulation.host_states(_scratch(folder) if on_disk else None)
    if goes_on:
      kept = states.shapes(number_saved) if states else shapes[1]
      like = resume.to_tree(shapes[0], kept)
      start = resume.from_tree(
        hosts.copy(hosts.first(lambda: _restore(left, like)), like)
      )
      number = 1  # The others have their room; we have ours back.

    # The folder: nothing of what is wrong above has left one.
    room = checkpoint.bytes_needed(shapes, number)
    if states is not None:  # Of those that can take part; once in the file.
      most = min(planner.cohort_size * cfg['rounds'], len(planner.num_examples))
      room += checkpoint.bytes_needed(states.shapes(most), number + 1)
    hosts.first(lambda: _begin(cfg, federation, folder, left, room))
    _say(f'workdir: {workdir}')
    if start is not None:
      state, kept = start
      if states is not None:
        states.scatter(kept['clients'], kept['states'])
        kept = states
      else:
        kept = place(kept, simulation)
      start = place(state, simulation), kept

    # The rounds.
    run = _Run(cfg, simulation, client_tests, start, states, stop)
    summary = hosts.tell(_run_and_keep(run, folder) if folder else _follow(run))
  if summary['status'] == 'diverged':
    raise DivergedError(
      f'round {summary["rounds"]}: {DIVERGED} (they are'
      f' {cfg["client"]["learning_rate"]} and'
      f' {cfg["server"]["learning_rate"]}); the'
      f' model and metrics before it are kept in {workdir}'
    )
  if summary['status'] == 'interrupted':
    raise StoppedError(
      f'round {summary["rounds"]} is saved; the same command with --workdir'
      f' {workdir} goes on from there',
      signum=stop.signum or signal.SIGTERM,  # Another process has had it.
    )
  return summary


def _say(text: str) -> None:
  """Prints a line, of several processes once."""
  if hosts.leads():
    say(text)


def _same_everywhere(cfg: dict[str, Any]) -> dict[str, Any]:
  """What all processes of a run must have in common, before they have data."""
  now = metrics.environment()
  config = {
    f'config.{key}': value
    for key, value in config_lib.flatten(cfg)
    if key not in config_lib.PLACES
  }
  return {
    **config,
    'the code of fedavg_jax, by SHA-256,': metrics.code_sha256(),
    **{f'the version of {name}': v for name, v in now['versions'].items()},
    'the kind of devices': now['device'],
  }


def _open_folder(
  workdir: pathlib.Path, cfg: dict[str, Any], extend: bool
) -> Workdir:
  folder = Workdir(workdir)
  if folder.began is not None:
    try:
      config_lib.compare(cfg, folder.began.get('config'), extend=extend)
    except InputError:
      folder.close()
      raise
  elif extend:
    folder.close()
    raise InputError(f'workdir = {workdir}: holds no run that could go on')
  return folder


@dataclasses.dataclass
class _Left:
  """What process 0 finds in the folder of an interrupted run, if it is one.

  Attributes:
    began: what its config.json is to hold.
    saved: checkpoint to go on from.
    lanes: to ask for.
  """

  began: dict[str, Any]
  saved: checkpoint.Checkpoint | None
  lanes: int

  def facts(self) -> tuple[int, bool, int]:
    """What all must know: lanes, whether to go on, clients with states."""
    if self.saved is None:
      return self.lanes, False, 0
    return self.lanes, True, self.saved.told.get('clients', 0)


def _left(
  folder: Workdir | None, cfg: dict[str, Any], now: dict[str, Any]
) -> _Left:
  """Reads what an interrupted run has left."""
  assert folder is not None
  lanes = cfg['lanes']
  if folder.began is None:
    return _Left(now, None, lanes)
  saved = resume.newest(folder, now)
  began, same_bits = resume.continued(folder.began, now, saved)
  if saved and same_bits and lanes == folder.began['config']['lanes']:
    lanes = saved.told['lanes']  # What memory is free may have changed.
  return _Left(began, saved, lanes)


def _restore(left: _Left | None, like: Any) -> Any:
  """The tree of the checkpoint, which is then let go."""
  assert left is not None and left.saved is not None
  tree = checkpoint.restore(left.saved.leaves, like)
  left.saved = None
  return tree


def _scratch(folder: Workdir | None) -> pathlib.Path:
  """Where a process keeps what need not stay: beside its run, or anywhere."""
  return folder.path if folder else pathlib.Path(tempfile.gettempdir())


def _begin(
  cfg: dict[str, Any],
  federation: Federation,
  folder: Workdir | None,
  left: _Left | None,
  room: int,
) -> None:
  """Writes what a run's folder has before its first round."""
  assert folder is not None and left is not None
  folder.begin(room=room)
  if left.began != folder.began:
    folder.config(left.began)
  if not (folder.path / 'partition.png').exists():
    draw_population(cfg, federation, folder)


def prepare(cfg: dict[str, Any]) -> Federation:
  """The data, the clients and the model that a checked config names."""
  dataset = datasets.load_dataset(cfg['dataset'], cfg['data_dir'])
  clients, held = population.clients(cfg, dataset)
  return Federation(
    dataset=dataset,
    clients=clients,
    held=held,
    model=models.build_model(
      cfg['model'],
      dataset,
      pixels=cfg['pixels'],
      augmentation=cfg['augmentation'],
      convolution=cfg['convolution'],
      precision=cfg['precision'],
    ),
  )


def to_begin(cfg: dict[str, Any], federation: Federation) -> dict[str, Any]:
  """config.json of a run that begins here and now."""
  test, clients = federation.dataset.test, federation.clients
  trace = population.participation(cfg, clients.num_examples).trace
  periods = () if trace is None else (trace.client, trace.first, trace.last)
  return {
    'config': cfg,
    'data_sha256': checkpoint.digest([*_content(federation), *test, *periods]),
    'test_sha256': checkpoint.digest([*test]),
    **metrics.environment(),
  }


def _content(federation: Federation) -> Sequence[np.ndarray]:
  """Arrays that differ where clients do; those on disk tell their SHA-256."""
  clients = federation.clients
  if federation.dataset.clients is clients:
    sha256 = bytes.fromhex(federation.dataset.sha256)
    return [np.frombuffer(sha256, np.uint8), clients.offsets]
  return clients


def build(
  cfg: dict[str, Any],
  federation: Federation,
  algorithm: Any,
  *,
  lanes: int,
  sweep: Sequence[float] | None = None,
) -> Simulation:
  """Compiles what a checked config says; the rest as `build_simulation`."""
  local, clients = cfg['client'], federation.clients
  return build_simulation(
    federation.model,
    clients,
    federation.dataset.test,
    client_fraction=cfg['client_fraction'],
    participation=population.participation(cfg, clients.num_examples),
    weighting=cfg['weighting'],
    epochs=local['epochs'],
    batch_size=local['batch_size'],
    algorithm=algorithm,
    sweep=sweep,
    on_nan=cfg['on_nan'],
    shuffle=local['shuffle'],
    seed=cfg['seed'],
    lanes=lanes,
    micro_batch=cfg['micro_batch'],
    stream=cfg['examples_on'] == 'host',
    keep_on_host=cfg['client_states_on'] != 'device',
    rounds_per_call=cfg['rounds_per_call'],
  )


class _Run(NamedTuple):
  """What the rounds of a run are made of, on every process.

  Attributes:
    cfg: checked.
    simulation: compiled.
    client_tests: server state -> tests, None where there are none.
    start: of a run that goes on.
    host_states: of clients, where they stay on the host.
    stopping: whether a signal has asked for an end.
  """

  cfg: dict[str, Any]
  simulation: Simulation
  client_tests: Callable[[Any], personal.ClientTests] | None
  start: tuple[round_lib.ServerState, Any] | None
  host_states: ClientStates | None
  stopping: Callable[[], bool]

  def saves(self, number: int) -> bool:
    """Whether a checkpoint is due after a round, by its number."""
    every = self.cfg['checkpoint']['rounds']
    return bool(every and number and number % every == 0)

  def tests(self, number: int) -> bool:
    """Whether the clients' own tests are due after a round."""
    return self.client_tests is not None and (
      number % self.cfg['client_eval_every'] == 0
      or number == self.cfg['rounds']
    )

  def rounds(
    self, looking: Callable[[], bool]
  ) -> Iterator[tuple[Record | None, personal.ClientTests | None]]:
    """Runs until an end; every process does the same.

    Args:
      looking: as in `simulate`.

    Yields:
      A record, None if an earlier process has had the last one but was killed
      before its files; and the clients' tests of it.
    """
    cfg, record = self.cfg, None
    for record in simulate(
      self.simulation,
      rounds=cfg['rounds'],
      eval_every=cfg['eval_every'],
      target_accuracy=cfg['target_accuracy'],
      start=self.start,
      host_states=self.host_states,
      wanted=lambda number: self.saves(number) or self.tests(number),
      looking=looking,
      stopping=self.stopping,
    ):
      tests = None
      if self.client_tests and record.state is not None and record.finite:
        reached = 0 < cfg['target_accuracy'] <= (record.test_accuracy or 0.0)
        if reached or self.tests(record.round):
          tests = self.client_tests(record.state)
      yield record, tests
    if record is None and self.client_tests and self.start:
      yield None, self.client_tests(self.start[0])


def _follow(run: _Run) -> dict[str, Any]:
  """Runs until an end, beside process 0, which keeps what is told."""
  for _ in run.rounds(lambda: False):
    pass
  return {}


def _run_and_keep(run: _Run, folder: Workdir) -> dict[str, Any]:
  """Runs until an end; however it ends, what was done is written."""
  cfg, simulation, start = run.cfg, run.simulation, run.start
  minutes = cfg['checkpoint']['minutes']
  done = 0 if start is None else int(start[0].round)
  saved_round = None if start is None else done
  saved_at = time.monotonic()
  at_hand: resume.AtHand | None = None
  finite, ended = True, False
  tests: personal.ClientTests | None = None  # The last ones.
  summary: dict[str, Any] = {}
  progress = Progress(
    cfg['rounds'],
    done=done,
    may_end_sooner=cfg['target_accuracy'] > 0,
  )

  def by_time() -> bool:
    return bool(minutes and time.monotonic() - saved_at >= 60 * minutes)

  folder.open_metrics()
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      contextlib.closing(
        checkpoint.Checkpoints(folder.path, keep=cfg['checkpoint']['keep'])
      )
    )
    told_to = loggers.open_loggers(
      cfg['log'], folder.path, cfg, before=folder.lines()
    )
    for logger in told_to:
      stack.callback(logger.close)
    try:
      for record, tested in run.rounds(by_time):
        tests = tested or tests
        if record is None:
          continue
        before = folder.seal()
        line, finite = to_line(record, simulation.planner), record.finite
        if tested is not None:
          line |= personal.line(tested)
        folder.line(line)
        for logger in told_to:
          logger.line(line)
        progress.update(line)
        if record.state is None or record.client_states is None:
          continue
        at_hand = resume.AtHand(
          # A round that is not finite leaves everything as it was before it.
          round=record.round if finite else record.round - 1,
          state=record.state,
          client_states=record.client_states,
          changes=getattr(record.client_states, 'changes', 0),
          seal=folder.seal() if finite else before,
          lanes=record.lanes,
          accuracy=record.test_accuracy if finite else None,
        )
        due = by_time() or run.saves(at_hand.round)
        if at_hand.round != saved_round and due:
          saved_round = at_hand.round  # Tried once, should it fail.
          at_hand.save(folder, checkpoints)
          saved_at = time.monotonic()
      ended = True
    finally:
      progress.close()
      if at_hand and at_hand.is_there() and at_hand.round != saved_round:
        at_hand.save(folder, checkpoints)
      if lines := folder.lines():
        lanes = at_hand.lanes if at_hand else simulation.planner.lanes
        status = _status(cfg, lines[-1], finite) if ended else 'failed'
        summary = finish(cfg, simulation, folder, lines, status, lanes)
        if tests is not None:
          with folder.replacing('clients.csv') as path:
            personal.write_csv(path, simulation.planner.num_examples, tests)
          with folder.replacing('clients.png') as path:
            plots.draw_clients(
              path, title=describe(cfg), records=lines, tests=tests
            )
  return summary


def draw_population(
  cfg: dict[str, Any], federation: Federation, folder: Workdir
) -> None:
  """Writes partition.png."""
  with folder.replacing('partition.png') as path:
    plots.draw_partition(
      path,
      title=describe(cfg),
      counts=population.label_counts(
        clients_lib.first(federation.clients, plots.MOST_CLIENTS),
        federation.dataset.num_classes,
      ),
      num_clients=federation.clients.num_clients,
    )


def finish(
  cfg: dict[str, Any],
  simulation: Simulation,
  folder: Workdir,
  lines: list[dict[str, Any]],
  status: str,
  lanes: int,
) -> dict[str, Any]:
  """Writes summary.json and curves.png; returns the summary."""
  summary = summarize(cfg, simulation, lines, status, lanes)
  folder.summary(summary)
  with folder.replacing('curves.png') as path:
    plots.draw_curves(
      path,
      title=describe(cfg),
      records=lines,
      target_accuracy=cfg['target_accuracy'],
      paper_rounds=paper_rounds(cfg),
    )
  return summary


def _status(cfg: dict[str, Any], last: dict[str, Any], finite: bool) -> str:
  """Why a run ended after the last line of its metrics.jsonl."""
  if not finite:
    return 'diverged'
  if 0 < cfg['target_accuracy'] <= last.get('test_accuracy', -1.0):
    return 'target reached'
  return 'finished' if last['round'] == cfg['rounds'] else 'interrupted'


def _is_over(summary: dict[str, Any], cfg: dict[str, Any]) -> bool:
  """Whether a run with this summary has nothing left to do."""
  told = ('final_test_accuracy', 'best_test_accuracy', 'rounds_per_second')
  if not all(isinstance(summary.get(key), float) for key in told):
    return False  # Not ours: it is made anew.
  status, rounds = summary.get('status'), summary.get('rounds')
  return status == 'target reached' or (
    status == 'finished' and rounds == cfg['rounds']
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
  client_optimizer = _client_optimizer(cfg)
  if cfg['algorithm'] == 'fedprox':
    algorithm = algorithms.fedprox(
      local['proximal'], client_optimizer, server_optimizer
    )
  else:
    algorithm = algorithms.fedavg(client_optimizer, server_optimizer)
  if local['clip_norm']:
    algorithm = algorithms.clip_delta(algorithm, local['clip_norm'])
  return algorithm


def _client_optimizer(cfg: dict[str, Any]) -> optax.GradientTransformation:
  local = cfg['client']
  return algorithms.decayed_sgd(
    local['learning_rate'], local['decay'], local['decay_rounds']
  )


def describe(cfg: dict[str, Any]) -> str:
  """One line that names a setting, with the paper's letters."""
  local = cfg['client']
  algorithm = '' if cfg['algorithm'] == 'fedavg' else f'{cfg["algorithm"]}, '
  return (
    f'{algorithm}{cfg["model"]} on {cfg["dataset"]}, {population.name(cfg)}:'
    f' K={cfg["num_clients"] or "natural"} C={cfg["client_fraction"]:g}'
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
    and cfg['sizes'] == 'equal'
    and cfg['availability_trace'] == ''
    and cfg['sampling'] == 'uniform'
    and cfg['straggler_fraction'] == 0
    and cfg['clock']['deadline'] == 0
    and cfg['holdout_fraction'] == 0
    and cfg['algorithm'] == 'fedavg'
    and cfg['weighting'] == 'examples'
    and cfg['client']['clip_norm'] == 0
    and cfg['client']['decay'] == 1
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
  status: str,
  lanes: int,
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
    **_spent('', records),
    **_spent('_to_target', _until(records, target)),
    'rounds_per_second': (records[-1]['round'] / seconds if seconds else None),
    'compile_seconds': simulation.compile_seconds,
    # u = E n / (K B), the paper's measure of local work.
    'updates_per_round': planner.epochs
    * (mean_examples / planner.batch_size if planner.batch_size else 1.0),
    'skipped_clients': sum(r.get('skipped', 0) for r in records),
    # Of a sweep, one value's.
    'parameters': models.num_parameters(
      jax.eval_shape(simulation.init)[0].params
    )
    // len(simulation.sweep or (0,)),
    'devices': planner.num_devices,
    'lanes': lanes,
  }


def _until(records, target) -> list[dict[str, Any]] | None:
  """The records up to the first that is at the target, None without one."""
  if target:
    for i, record in enumerate(records):
      if record.get('test_accuracy', -1.0) >= target:
        return records[: i + 1]
  return None


def _spent(suffix: str, records) -> dict[str, Any]:
  """Sums of what rounds cost outside the device; None where there are none."""
  names = ('bytes_down', 'bytes_up', 'simulated_seconds')
  return {
    f'{name}{suffix}': (
      sum(record.get(name, 0) for record in records)
      if records is not None
      and (name != 'simulated_seconds' or name in records[-1])
      else None
    )
    for name in names
  }


def to_line(record: Record, planner: plan.Planner) -> dict[str, Any]:
  """A line of metrics.jsonl."""
  line = {
    'round': record.round,
    'train_loss': record.train_loss,
    'seconds': record.seconds,
    'examples': record.examples,
  }
  if record.round:
    account = planner.account(record.round)
    line |= {
      'clients': account.reported - (record.skipped or 0),
      'bytes_down': account.bytes_down,
      'bytes_up': account.bytes_up,
    }
    if account.seconds is not None:
      line['simulated_seconds'] = account.seconds
  if record.skipped:
    line['skipped'] = record.skipped
  if record.test_accuracy is not None:
    line['test_accuracy'] = record.test_accuracy
    line['test_loss'] = record.test_loss
  return line
