"""The narrative: data, clients, model, rounds, evaluation, what is kept.

`train(config, workdir)` is what `cli/run.py` calls; a ConfigDict ends here.
"""

import contextlib
import dataclasses
import pathlib
import signal
import tempfile
from typing import Any

import jax
import ml_collections

from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import StoppedError
from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.engine.devices import check_jax
from fedavg_jax.engine.devices import numerics
from fedavg_jax.engine.devices import use_cpu_devices
from fedavg_jax.engine.driver import DIVERGED
from fedavg_jax.engine.simulation import place
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import distributed
from fedavg_jax.runs import provenance
from fedavg_jax.runs import resume
from fedavg_jax.runs import run_config
from fedavg_jax.runs.builders import Federation
from fedavg_jax.runs.builders import build
from fedavg_jax.runs.builders import build_algorithm
from fedavg_jax.runs.builders import build_client_optimizer
from fedavg_jax.runs.builders import prepare
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.provenance import to_begin
from fedavg_jax.runs.recorder import Run
from fedavg_jax.runs.recorder import follow_rounds
from fedavg_jax.runs.recorder import record_rounds
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.signals import stop_on_signals
from fedavg_jax.runs.summary import describe
from fedavg_jax.runs.summary import draw_population
from fedavg_jax.runs.summary import is_over


def train(
  config: ml_collections.ConfigDict | RunConfig,
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
      `config_changes.MACHINE_KEYS` be others.

  Returns:
    The content of summary.json.

  Raises:
    InputError: bad config, data or workdir; nothing was written over.
    DivergedError: the loss or the model is not finite any more.
    StoppedError: SIGINT or SIGTERM; all that was done is kept.
  """
  cfg = run_config.read(config)
  use_cpu_devices(cfg.cpu_devices)
  check_jax()
  if processes.several():  # Or nobody is there to differ.
    processes.agree(_same_everywhere(cfg))
  workdir = pathlib.Path(processes.tell(str(workdir)))
  with stop_on_signals() as stop, contextlib.ExitStack() as stack:
    # The folder of the run, which process 0 alone has.
    folder = processes.first(
      lambda: stack.enter_context(_open_folder(workdir, cfg, extend))
    )
    summary = processes.tell(folder.last_summary() if folder else {})
    if is_over(summary, cfg):
      _say(f'{workdir}: this run is over')
      return summary

    # Data, divided among the clients, and a model.
    federation = processes.together(lambda: prepare(cfg))
    began = to_begin(cfg, federation)
    processes.agree({'the data, by SHA-256,': began['data_sha256']})

    # What an interrupted run has left.
    left = processes.first(lambda: _left(folder, cfg, began))
    lanes, goes_on, number_saved = processes.tell(left.facts() if left else [])

    # Optimizers, compiled round.
    simulation = build(cfg, federation, build_algorithm(cfg), lanes=lanes)
    planner = simulation.planner
    _say(
      f'{describe(cfg)}\n{planner.cohort_size} of'
      f' {federation.clients.num_clients} clients a round in {planner.lanes}'
      f' lane(s) on {planner.num_devices} {jax.default_backend()} device(s)'
      f'{processes.describe()}: {simulation.why_lanes}\ncompiled in'
      f' {simulation.compile_seconds:.1f} s'
    )
    client_tests = None
    if cfg.client_eval_every:
      client_tests = client_evaluation.build_client_tests(
        federation.model,
        simulation,
        federation.held,
        finetune=build_client_optimizer(cfg),
        epochs=cfg.finetune_epochs,
      )
    shapes = jax.eval_shape(simulation.init)
    start, number = None, cfg.checkpoint.keep + 2  # The best, a new one.
    states = None  # Of clients, where they stay on the host.
    if simulation.host_states is not None:
      on_disk = cfg.client_states_on == 'disk'
      states = simulation.host_states(_scratch(folder) if on_disk else None)
    if goes_on:
      kept = states.shapes(number_saved) if states else shapes[1]
      like = resume.to_tree(shapes[0], kept)
      start = resume.from_tree(
        collectives.copy(processes.first(lambda: _restore(left, like)), like)
      )
      number = 1  # The others have their room; we have ours back.

    # The folder: nothing of what is wrong above has left one.
    room = checkpoint.bytes_needed(shapes, number)
    if states is not None:  # Of those that can take part; once in the file.
      most = min(planner.cohort_size * cfg.rounds, len(planner.num_examples))
      room += checkpoint.bytes_needed(states.shapes(most), number + 1)
    processes.first(lambda: _begin(cfg, federation, folder, left, room))
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
    run = Run(cfg, simulation, client_tests, start, states, stop)
    summary = processes.tell(
      record_rounds(run, folder) if folder else follow_rounds(run)
    )
  if summary['status'] == 'diverged':
    raise DivergedError(
      f'round {summary["rounds"]}: {DIVERGED} (they are'
      f' {cfg.client.learning_rate} and'
      f' {cfg.server.learning_rate}); the'
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
  if processes.leads():
    say(text)


def _same_everywhere(cfg: RunConfig) -> dict[str, Any]:
  """What all processes of a run must have in common, before they have data."""
  now = provenance.environment()
  config = {
    f'config.{key}': value
    for key, value in run_config.flatten(cfg)
    if key not in config_changes.PLACES
  }
  return {
    '--num_processes': distributed.num_processes(),
    **config,
    'the code of fedavg_jax, by SHA-256,': provenance.code_sha256(),
    **{f'the version of {name}': v for name, v in now['versions'].items()},
    'the kind of devices': now['device'],
    **numerics(),
  }


def _open_folder(
  workdir: pathlib.Path, cfg: RunConfig, extend: bool
) -> Workdir:
  folder = Workdir(workdir)
  if folder.began is not None:
    try:
      config_changes.check_same(cfg, folder.began.get('config'), extend=extend)
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


def _left(folder: Workdir | None, cfg: RunConfig, now: dict[str, Any]) -> _Left:
  """Reads what an interrupted run has left."""
  assert folder is not None
  lanes = cfg.lanes
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
  cfg: RunConfig,
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
