"""The command line: flags, one call.

Kept short: everything else lives in modules that a notebook can import.
"""

from collections.abc import Sequence

from absl import app
from absl import flags

from fedavg_jax import command
from fedavg_jax import config as config_lib
from fedavg_jax import hosts
from fedavg_jax import supervise
from fedavg_jax import train
from fedavg_jax.errors import InputError
from fedavg_jax.errors import LostError
from fedavg_jax.progress import say
from fedavg_jax.workdir import default_workdir

command.define_config()
flags.declare_key_flag('config')  # So that --help shows it.
flags.DEFINE_string(
  'workdir',
  None,
  'New folder for results, or that of an interrupted run, which then goes on;'
  ' default outputs/<date>/<time>_...',
)
_RESUME = flags.DEFINE_enum(
  'resume',
  'auto',
  ['auto', 'extend'],
  'auto: goes on with the config it began with. extend: with more rounds.',
)


_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'Is one of several processes, on one host or many. SLURM, Open MPI,'
  ' Kubernetes or a TPU pod tell the flags below, elsewhere give them.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT on which process 0 listens.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Of the run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'This one, from 0.')
_CONNECT_SECONDS = flags.DEFINE_integer(
  'connect_seconds', 300, 'To wait for the others.', lower_bound=1
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  'heartbeat_seconds',
  30,
  'Of silence after which another process counts as dead.',
  lower_bound=1,
)


def main(argv: Sequence[str]) -> int:
  """Runs one setting. Returns the exit code."""
  if _DISTRIBUTED.value and not supervise.is_child():
    return supervise.run()
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(name))
  config_lib.read(config)  # What is wrong with it needs no other process.
  _connect()
  try:
    summary = train.train(config, workdir, extend=_RESUME.value == 'extend')
  except OSError as error:
    error.filename = error.filename or f'workdir = {workdir}'
    raise
  except (RuntimeError, ValueError) as error:
    if not (_DISTRIBUTED.value and hosts.lost(error)):
      raise
    raise LostError(
      'another process has ended, or a device failed'
      f' ({" ".join(str(error).split())[:150]}); the same command goes on from'
      ' the last checkpoint'
    ) from error
  if not hosts.leads():
    return
  say(
    f'{summary["status"]} after {summary["rounds"]} rounds: test accuracy'
    f' {summary["final_test_accuracy"]:.4f} (best'
    f' {summary["best_test_accuracy"]:.4f}),'
    f' {summary["rounds_per_second"]:.3g} rounds/s; results in {workdir}'
  )
  if summary.get('skipped_clients'):
    say(
      f'{summary["skipped_clients"]} times a client was left out, whose numbers'
      ' were not finite'
    )


def _connect() -> None:
  """Joins the other processes, where there are to be some."""
  if _DISTRIBUTED.value:
    supervise.end_with_parent()
    hosts.connect(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      connect_seconds=_CONNECT_SECONDS.value,
      heartbeat_seconds=_HEARTBEAT_SECONDS.value,
    )
    return
  for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
    if flag.value is not None:
      raise InputError(f'--{flag.name} {flag.value}: needs --distributed')


if __name__ == '__main__':
  app.run(main, flags_parser=command.parse_flags)
