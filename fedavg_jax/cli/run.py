"""Trains the federation that a config describes.

fedavg-jax run quickstart
fedavg-jax run mnist_2nn:noniid --config.client.learning_rate=0.215
fedavg-jax run --config configs/quickstart.py --workdir outputs/first

What XLA compiles is kept for later runs in $XDG_CACHE_HOME/fedavg_jax, or in
~/.cache/fedavg_jax; the environment variable JAX_ENABLE_COMPILATION_CACHE=0
turns this off, JAX_COMPILATION_CACHE_DIR names another folder.
"""

from collections.abc import Sequence
import time

from absl import flags
from etils import epy

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import PeerLostError
from fedavg_jax.runs import run_config
from fedavg_jax.runs import supervisor
from fedavg_jax.runs import targets
from fedavg_jax.runs import titles
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.run_dir import default_workdir

# They import JAX; help and most errors need not wait for that.
with epy.lazy_imports():
  from fedavg_jax.engine import processes
  from fedavg_jax.runs import distributed
  from fedavg_jax.runs import train


def define_flags() -> None:
  """Defines the flags of the command."""
  command.define_config()
  flags.DEFINE_string(
    'workdir',
    None,
    'New folder for the results, or that of an interrupted run, which resumes;'
    ' default outputs/<date>/<time>_<config>.',
  )
  flags.DEFINE_enum(
    'resume',
    'auto',
    ['auto', 'extend'],
    "'auto' resumes a run with the config that it started with, 'extend' with"
    ' more rounds.',
  )
  flags.DEFINE_bool(
    'distributed',
    False,
    'Whether this is one of several processes, on one or more hosts. SLURM,'
    ' Open MPI, Kubernetes or a TPU pod set the flags below; elsewhere give'
    ' them.',
  )
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT at which process 0 listens.'
  )
  flags.DEFINE_integer('num_processes', None, 'Number of processes.')
  flags.DEFINE_integer('process_id', None, 'Index of this process, from 0.')
  flags.DEFINE_integer(
    'connect_seconds',
    300,
    'Seconds to wait for the other processes.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'heartbeat_seconds',
    30,
    'Seconds without a sign of life after which a process counts as dead.',
    lower_bound=1,
  )


def main(argv: Sequence[str]) -> int:
  """Trains the federation of a config; returns the exit code."""
  if flags.FLAGS.distributed and not supervisor.is_child():
    return supervisor.run()
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(name))
  cfg = run_config.read(config)  # Its errors need no other process.
  began = None
  _connect()
  if not flags.FLAGS.distributed:
    began = time.monotonic()
    say(titles.describe(cfg))  # Before JAX is imported, which takes seconds.
  try:
    summary = train.train_config(
      cfg, workdir, extend=flags.FLAGS.resume == 'extend', began=began
    )
  except OSError as error:
    error.filename = error.filename or f'workdir = {workdir}'
    raise
  except (RuntimeError, ValueError) as error:
    if not (flags.FLAGS.distributed and processes.is_collective_error(error)):
      raise
    raise PeerLostError(
      'another process has ended, or a device failed'
      f' ({" ".join(str(error).split())[:150]}); rerun the same command to'
      ' resume from the last checkpoint'
    ) from error
  if not processes.is_primary():
    return
  measure = targets.from_json(summary, 'validation')
  validated = f'best_{measure.key}' in summary
  best = summary[f'best_{measure.key if validated else f"test_{measure.name}"}']
  # None if the run was interrupted, or the result is not finite.
  test = summary.get(f'final_test_{measure.name}')
  start = summary.get('start_seconds')
  say(
    f'{summary["status"]} after {summary["rounds"]} rounds:'
    + (f' test {measure.name} {measure.show(test)}' if test is not None else '')
    + f' (best {"validation " * validated}{measure.show(best)}),'
    f' {summary["rounds_per_second"]:.3g} rounds/s'
    + (f' after a start of {start:.1f} s' if start is not None else '')
    + f'; results in {workdir}'
  )
  if summary.get('skipped_clients'):
    say(
      f'dropped {summary["skipped_clients"]} client updates with non-finite'
      ' values'
    )


def _connect() -> None:
  """Joins the other processes of a distributed run."""
  if flags.FLAGS.distributed:
    supervisor.live_with_parent()
    distributed.connect(
      flags.FLAGS.coordinator,
      flags.FLAGS.num_processes,
      flags.FLAGS.process_id,
      connect_seconds=flags.FLAGS.connect_seconds,
      heartbeat_seconds=flags.FLAGS.heartbeat_seconds,
    )
    return
  for name in ('coordinator', 'num_processes', 'process_id'):
    if (value := flags.FLAGS[name].value) is not None:
      raise InputError(f'--{name} {value}: needs --distributed')
