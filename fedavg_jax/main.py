"""The command line: flags, one call.

Kept short: everything else lives in modules that a notebook can import.
"""

from collections.abc import Sequence

from absl import app
from absl import flags

from fedavg_jax import command
from fedavg_jax import train
from fedavg_jax.progress import say
from fedavg_jax.workdir import default_workdir

command.define_config()
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


def main(argv: Sequence[str]) -> int:
  """Runs one setting. Returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(name))
  try:
    summary = train.train(config, workdir, extend=_RESUME.value == 'extend')
  except OSError as error:
    error.filename = error.filename or f'workdir = {workdir}'
    raise
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


if __name__ == '__main__':
  app.run(main, flags_parser=command.parse_flags)
