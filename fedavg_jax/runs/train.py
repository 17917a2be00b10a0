"""Runs one experiment from a config, and saves its results in a folder.

`train` is `fa.train`, and what `cli/run.py` calls. Its steps are data, clients,
model, rounds and evaluation; the code below it sees no ConfigDict.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import signal
import threading
import time
from typing import Any

import ml_collections

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Model
from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import processes
from fedavg_jax.engine.devices import check_jax
from fedavg_jax.engine.devices import numerics
from fedavg_jax.engine.devices import use_cpu_devices
from fedavg_jax.engine.driver import DIVERGED
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import distributed
from fedavg_jax.runs import given as given_parts
from fedavg_jax.runs import plots
from fedavg_jax.runs import provenance
from fedavg_jax.runs import run_config
from fedavg_jax.runs.builders import build
from fedavg_jax.runs.builders import build_client_tests
from fedavg_jax.runs.builders import build_last_test
from fedavg_jax.runs.builders import build_measure
from fedavg_jax.runs.builders import prepare
from fedavg_jax.runs.given import NOTHING
from fedavg_jax.runs.given import Given
from fedavg_jax.runs.privacy_builder import spending
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.provenance import to_begin
from fedavg_jax.runs.recorder import Run
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.shared_folder import SharedFolder
from fedavg_jax.runs.signals import stop_on_signals
from fedavg_jax.runs.summary import is_over
from fedavg_jax.runs.titles import describe


def train(
  config: ml_collections.ConfigDict | RunConfig,
  workdir: str | pathlib.Path,
  *,
  extend: bool = False,
  dataset: Dataset | None = None,
  model: Model | None = None,
  algorithm: Algorithm | None = None,
  loss: Loss | None = None,
  metrics: Metric | Sequence[Metric] | None = None,
) -> dict[str, Any]:
  """Trains the federation of a config and saves the results in a folder.

  The objects after `extend` replace those that the config names. A run with
  such objects resumes by the same call, but not by a command.

  >>> import fedavg_jax as fa
  >>> import contextlib, io, os, tempfile
  >>> config = fa.RunConfig(rounds=2, num_clients=30, pictures=False)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with contextlib.redirect_stdout(io.StringIO()):
  ...     summary = fa.train(config, os.path.join(folder, 'run'))
  >>> summary['status'], summary['rounds'], summary['parameters']
  ('finished', 2, 55210)

  Args:
    config: the settings, see `configs/default.py`.
    workdir: the path of a new folder, or of that of an interrupted run with the
      same config, which resumes to the same bits.
    extend: whether to resume with more rounds than the run in the folder had;
      the options in `config_changes.MACHINE_KEYS` may then differ too.
    dataset: the data set, in place of `config.dataset`.
    model: the model, which must fit the data set.
    algorithm: the algorithm, with its own numbers, such as learning rates.
    loss: the training loss, (outputs, batch) -> [B].
    metrics: the metrics of the evaluation; the first one decides the target,
      the best checkpoint and tables.

  Returns:
    The content of summary.json.

  Raises:
    InputError: config, data or workdir is invalid; no file was overwritten.
    DivergedError: the loss or the model became NaN or infinite.
    InterruptedRunError: SIGINT or SIGTERM arrived; finished rounds are saved.
  """
  given = given_parts.check(dataset, model, algorithm, loss, metrics)
  cfg = given_parts.named(run_config.read(config), given)
  return train_config(cfg, workdir, given, extend=extend)


def train_config(
  cfg: RunConfig,
  workdir: str | pathlib.Path,
  given: Given = NOTHING,
  *,
  extend: bool,
  began: float | None = None,
) -> dict[str, Any]:
  """Trains a checked config, as `train` describes.

  Args:
    cfg: the checked config.
    workdir: the argument of `train`.
    given: the objects from Python.
    extend: the argument of `train`.
    began: the `time.monotonic()` at which a command has begun, which has
      printed the first line; None prints it here.

  Returns:
    The content of summary.json.
  """
  use_cpu_devices(cfg.cpu_devices)
  check_jax()
  if began is None:
    began = time.monotonic()
    _say(describe(cfg))
  if processes.is_distributed():
    processes.check_equal(_same_everywhere(cfg))
  with (
    stop_on_signals() as stop,
    SharedFolder(workdir, cfg, extend=extend) as folder,
  ):
    if is_over(summary := folder.last_summary(), cfg):
      _say(f'{folder.path}: this run is finished')
      return summary

    # The data of the clients and the model; what an interrupted run has saved.
    prepared = processes.on_every_process(lambda: prepare(cfg, given))
    left = folder.read(to_begin(cfg, prepared))

    # The compiled round, with its optimizers, and the tests.
    _say('compiling ...')
    _import_ahead(pictures=cfg.pictures)
    simulation = build(cfg, prepared, lanes=left.lanes)
    _say(_layout(simulation))
    if (spent := spending(cfg, simulation)) is not None:
      _say(spent.text())
    client_tests = build_client_tests(cfg, prepared, simulation)
    last_test = build_last_test(prepared, simulation)
    measure = build_measure(cfg, prepared, simulation)

    # The folder; an error above has created none.
    start, states = folder.start(simulation, left)
    folder.begin(prepared, simulation, left)
    _say(f'workdir: {folder.path}')

    # The rounds.
    run = Run(
      cfg,
      simulation,
      client_tests,
      last_test,
      start,
      states,
      stop,
      measure,
      began,
      spent,
    )
    summary = folder.record(run)
  _check_end(cfg, summary, folder.path, stop.signum)
  return summary


def _import_ahead(*, pictures: bool) -> None:
  """Imports what is used after compilation, while XLA compiles."""

  def imports():
    with contextlib.suppress(Exception):  # It is raised where it is used.
      import orbax.checkpoint  # noqa: F401

      if pictures:
        plots.import_matplotlib()
        import matplotlib.figure  # noqa: F401

  threading.Thread(target=imports).start()


def _check_end(
  cfg: RunConfig, summary: dict[str, Any], workdir: pathlib.Path, signum: int
) -> None:
  """Raises an error if the run has diverged or was interrupted."""
  if summary['status'] == 'diverged':
    raise DivergedError(
      f'round {summary["rounds"]}: {DIVERGED} (they are'
      f' {cfg.client.learning_rate} and {cfg.server.learning_rate}); the'
      f' model and metrics before it are saved in {workdir}'
    )
  if summary['status'] == 'interrupted':
    raise InterruptedRunError(
      f'round {summary["rounds"]} is saved; the same command with --workdir'
      f' {workdir} resumes from there',
      signum=signum or signal.SIGTERM,  # 0: another process got the signal.
    )


def _layout(simulation: Simulation) -> str:
  """Describes the layout of a run on the devices."""
  planner = simulation.planner
  platform = simulation.mesh.devices.flat[0].platform
  return (
    f'compiled in {simulation.compile_seconds:.1f} s: {planner.cohort_size} of'
    f' {len(planner.num_examples)} clients per round in {planner.lanes} lane(s)'
    f' on {planner.num_devices} {platform} device(s){processes.describe()},'
    f' {simulation.layout_reason}'
  )


def _say(text: str) -> None:
  """Prints a line, on process 0 only."""
  if processes.is_primary():
    say(text)


def _same_everywhere(cfg: RunConfig) -> dict[str, Any]:
  """Returns name -> value of what must be equal on all processes, but data."""
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
