"""Times the engine on this machine: rounds per second of three federations.

fedavg-jax bench
fedavg-jax bench --workloads 2nn,lr --turns 15 > bench.jsonl

Each workload has random data, so nothing is downloaded: `2nn` and `cnn` are the
paper's models on 100 clients of 600 images, `lr` is logistic regression on
1,000 clients of 60 images; 10 clients train per round. A turn is as many rounds
as fill about a second; the first two turns are not counted. Standard error gets
a table, standard output a line of JSON per workload, with the seconds of every
turn, the device and the versions.
"""

from collections.abc import Sequence
import json
import sys
import textwrap
import time
from typing import Any

from absl import flags
from etils import epy

from fedavg_jax.cli import command
from fedavg_jax.cli import workloads
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean
from fedavg_jax.runs.progress import show

# They import JAX; help and most errors need not wait for that.
with epy.lazy_imports():
  from fedavg_jax.cli import bench_rounds
  from fedavg_jax.engine import devices
  from fedavg_jax.runs import provenance

_WIDTH = 80
_COLUMNS = {  # Head -> format of the row's value.
  's/round': '{seconds_per_round:.4g}',
  'min': '{fastest_seconds:.4g}',
  'max': '{slowest_seconds:.4g}',
  'rounds/s': '{rounds_per_second:.4g}',
  'clients/s': '{clients_per_second:,.1f}',
  'examples/s': '{examples_per_second:,.0f}',
}


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string(
    'workloads',
    ','.join(workloads.WORKLOADS),
    'Names of workloads, separated by commas.',
  )
  flags.DEFINE_integer(
    'turns', 7, 'Turns of each workload that count.', lower_bound=1
  )


def main(argv: Sequence[str]) -> int:
  """Times the workloads; returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  names, turns = read_names(flags.FLAGS.workloads), flags.FLAGS.turns
  devices.use_cpu_devices(0)
  devices.check_jax()
  environment = provenance.environment()
  _tell(heading(environment, turns))
  for name in names:
    row = bench_rounds.measure(name, workloads.WORKLOADS[name], turns)
    show(json.dumps(row | environment | {'date': time.strftime('%Y-%m-%d')}))
    _tell(table_row(row))


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def read_names(text: str) -> list[str]:
  """Returns the names of the flag --workloads.

  Args:
    text: names that are separated by commas.

  Raises:
    InputError: a name is unknown, or given twice.
  """
  names = text.split(',')
  for name in names:
    if name not in workloads.WORKLOADS:
      known = ', '.join(workloads.WORKLOADS)
      raise InputError(
        f'--workloads {name or repr(name)}: must be one of {known}'
        f'{did_you_mean(name, workloads.WORKLOADS)}'
      )
    if names.count(name) > 1:
      raise InputError(f'--workloads {text}: {name} is given twice')
  return names


def heading(environment: dict[str, Any], turns: int) -> str:
  """Returns the lines above the table, of at most 80 columns.

  Args:
    environment: the content of `provenance.environment`.
    turns: the number of turns that count.
  """
  versions, device = environment['versions'], environment['device']
  if environment['platform'] == 'cpu':
    device = environment['processor'] or device
  text = (
    f'fedavg_jax {versions["fedavg_jax"]}, jax {versions["jax"]}, Python'
    f' {environment["python"]}; {environment["platform"]}, {device},'
    f' {environment["num_devices"]} device(s). Medians and ranges of {turns}'
    ' turn(s) of about a second.'
  )
  heads = ''.join(f'{head:>12}' for head in _COLUMNS)
  return f'{textwrap.fill(text, _WIDTH)}\n{"":8}{heads}'


def table_row(row: dict[str, Any]) -> str:
  """Returns the line of a workload in the table, of at most 80 columns."""
  cells = ''.join(f'{cell.format(**row):>12}' for cell in _COLUMNS.values())
  return f'{row["workload"]:8}{cells}'
