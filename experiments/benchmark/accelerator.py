"""Checks the engine on this accelerator and measures its speed, in ten minutes.

The most telling cells come first: the 2NN, the CNN, pfl-research's CIFAR-10,
FLUTE's logistic regression, cohorts of 10 to 10,000 and the LSTMs; then the
choices that no card has decided yet: CUDA graphs, convolutions, precisions,
numbers of lanes. Before the first cell of a model its round is compared with
the same round on this machine's CPU (`accelerator_checks.py`). A check that
fails marks the cells of its model, which are measured all the same.

python -m experiments.benchmark.accelerator --out accelerator.jsonl
  [--seconds 540] [--cache cache.tar.gz]

It appends a JSON line per result and skips those that the file has, so that it
can be stopped and started again: copy the file, and the archive of compiled
programs, from one machine to the next. The cells run in a child process. A cell
that ends it, or takes longer than --cell_seconds, is recorded as failed, and a
new child continues.

Targets for one H100: `cnn_e5` at 60 ms per round, `pfl_cifar10` at 25 rounds
per second, a cost per client that is flat or falls from `cohort_10` to
`cohort_10000`.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import jax

from experiments.benchmark import accelerator_checks
from experiments.benchmark import worker
from experiments.benchmark import workloads
import fedavg_jax as fa
from fedavg_jax.runs import provenance

_THIS = 'experiments.benchmark.accelerator'
# The cells of a workload need the check of its model.
_CHECK_OF = {
  'cnn': 'cnn, {convolution}',
  'cifar_cnn': 'cifar_cnn, cropped',
}
_FAST = {'gpu': 'tf32', 'tpu': 'bfloat16'}  # What products cost least in.
_WARM, _TURNS, _TURN_SECONDS = 2, 5, 0.4
_MOST_CHILDREN = 30
Cell = tuple[str, dict[str, Any]]


def cells(platform: str, num_devices: int) -> list[Cell]:
  """Returns workloads and options, the most telling ones first.

  Args:
    platform: the platform of the devices, as in `jax.Device.platform`.
    num_devices: their number.
  """
  fast = {'precision': _FAST.get(platform, 'float32')}
  found: list[Cell] = [
    ('2nn', {}),
    ('cnn_e5', {}),
    ('cnn_e5', fast),
    ('pfl_cifar10', {}),
    ('pfl_cifar10', fast),
    ('flute_lr', {}),
  ]
  found += [(f'cohort_{m}', {}) for m in (10, 100, 1000, 10_000)]
  found += [('words', {}), ('shakespeare', {})]
  # The choices: loops in a graph, convolutions, precisions, lanes.
  if platform == 'gpu':
    for name in ('2nn', 'cnn_e5', 'pfl_cifar10', 'words'):
      found.append((name, {'gpu_graphs': True}))
  for method in accelerator_checks.METHODS:
    found += [
      ('cnn_e5', fast | {'convolution': method, 'lanes': 10}),
      ('pfl_cifar10', fast | {'convolution': method, 'lanes': 50}),
    ]
  for name in ('cnn_e5', 'pfl_cifar10', '2nn'):
    found.append((name, {'precision': 'bfloat16'}))
  for name, numbers in (
    ('words', (5, 10, 20)),
    ('cnn_e5', (1, 2, 5, 10)),
    ('2nn', (1, 5, 10)),
    ('pfl_cifar10', (5, 10, 25, 50)),
    ('cohort_1000', (32, 64, 128, 256)),
    ('shakespeare', (16, 53, 106)),
  ):
    found += [(name, {'lanes': lanes}) for lanes in numbers]
  found += [(name, {}) for name in ('cohort_30', 'cohort_300', 'cifar')]
  found += [(name, {}) for name in ('roles', 'writers', 'log_normal_500')]
  found += _scaling(num_devices)
  for values in (3, 11):
    found += [(name, {'sweep': values}) for name in ('2nn', 'cnn_e5')]
  return [cell for i, cell in enumerate(found) if cell not in found[:i]]


def _scaling(num_devices: int) -> Iterator[Cell]:
  """Yields strong and weak scaling over 1, 2, 4, ... devices, if several."""
  number = 1
  while number <= num_devices > 1:
    for name in ('cnn_e5', 'cohort_1000'):
      for times in sorted({1, number}):
        yield name, {'devices': number, 'times': times}
    number *= 2


def check_of(cell: Cell, platform: str) -> str:
  """Returns the name of the check that a cell needs."""
  name, options = cell
  model = workloads.WORKLOADS[name].model
  method = options.get('convolution', 'auto')
  if method == 'auto':
    method = {'cpu': 'canonical', 'tpu': 'lax'}.get(platform, 'patches')
  if options.get('gpu_graphs'):
    return f'{model}, graphs'
  return _CHECK_OF.get(model, model).format(convolution=method)


def key_of(cell: Cell) -> str:
  """Returns the key of a cell's row."""
  return f'measure {cell[0]} {json.dumps(cell[1])}'


def keys(
  platform: str, num_devices: int, names: list[str]
) -> list[tuple[str, Cell | str]]:
  """Returns all work in order: a key, and a cell or the name of a check.

  Args:
    platform: the platform of the devices.
    num_devices: their number.
    names: the workloads to measure; [] measures all, with the other checks.
  """
  found: dict[str, Cell | str] = {}
  for cell in cells(platform, num_devices):
    if not names or cell[0] in names:
      needed = check_of(cell, platform)
      found.setdefault(f'check {needed}', needed)
      found[key_of(cell)] = cell
    if 'peaks' not in found:
      found['peaks'] = 'peaks'
  if not names:
    for name in accelerator_checks.CHECKS:
      found.setdefault(f'check {name}', name)
  return list(found.items())


def measure(cell: Cell, *, small: bool = False) -> dict[str, Any]:
  """Measures the median seconds per round of five turns, after two warm-ups.

  Args:
    cell: the workload and its options.
    small: whether to reduce the workload to a few small clients, and a turn to
      one round.

  Returns:
    `seconds_per_round`, `seconds` of every turn, and derived figures.
  """
  name, options = cell
  workload = workloads.WORKLOADS[name]
  if small:
    workload = dataclasses.replace(
      workload,
      sizes=tuple(min(n, 12) for n in workload.sizes[:8]),
      cohort=min(workload.cohort, 4),
      epochs=1,
    )
  simulation, model = worker.build(workload, options)
  states: tuple[fa.engine.ServerState, Any] = simulation.init()
  done, rounds, seconds = 0, 1, []
  for turn in range(_WARM + _TURNS):
    numbers = range(done + 1, done + rounds + 1)
    start = time.perf_counter()
    *_, record = fa.engine.run_calls(
      simulation, *states, numbers, evaluated=lambda _: False
    )
    assert record.state is not None  # The last round has the state.
    mine = (time.perf_counter() - start) / rounds
    states, done = (record.state, ()), done + rounds
    if turn < _WARM:
      rounds = 1 if small else max(1, round(_TURN_SECONDS / mine))
    else:
      seconds.append(mine)
  facts = worker.describe(workload, simulation, model)
  facts['reduce_seconds'] = worker.reduce_seconds(model, simulation.mesh)
  median = statistics.median(seconds)
  flops = facts['flops_per_example'] * facts['examples']
  weights = 12 * facts['parameters'] * facts['client_steps']
  return {
    'seconds_per_round': median,
    'seconds': seconds,
    'ms_per_client': 1000 * median / facts['clients'],
    'gflops': 1e-9 * flops / median,
    # A step reads a model at least twice and writes it once.
    'weights_gbytes': 1e-9 * weights / median,
    'precision': options.get('precision', 'float32'),
    **facts,
  }


def row_of(key: str, work: Cell | str, *, small: bool) -> dict[str, Any]:
  """Does one piece of work; returns its row, with `failed` if it raises."""
  try:
    if work == 'peaks':
      return {'key': key, **worker.peaks(*((256, 2**20) if small else ()))}
    if isinstance(work, str):
      return {'key': key, **accelerator_checks.check(work)}
    return {'key': key, **measure(work, small=small)}
  except Exception as error:  # Whatever fails, the other cells count.
    said = f'{type(error).__name__}: {error}'
    return {'key': key, 'failed': said[:500]}


def read(out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a file, [] if there is none; skips a torn line."""
  rows = []
  if out.exists():
    for line in out.read_text(encoding='utf-8').splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        continue  # The end of a copy that was cut off.
  return rows


def append(out: pathlib.Path, row: dict[str, Any]) -> None:
  """Appends a row to a file."""
  with open(out, 'a', encoding='utf-8') as file:
    file.write(json.dumps(row) + '\n')


def work_through(args: argparse.Namespace) -> None:
  """Does what the file lacks, within the time; what a child process does."""
  begin = time.monotonic()
  with_cpu()
  environment = provenance.environment()
  found = {
    row['key']: row
    for row in read(args.out)
    if row['device'] == environment['device']
    and not (args.again and 'failed' in row)
  }
  mark = marker(args.out)
  if mark.exists():  # The last process ended in the middle of this.
    key = mark.read_text(encoding='utf-8')
    if key and key not in found:
      found[key] = {'key': key, 'failed': 'the process ended in this cell'}
      append(args.out, found[key] | environment)
    mark.unlink()
  platform = jax.devices()[0].platform
  names = [name for name in args.cells.split(',') if name]
  for key, work in keys(platform, jax.device_count(), names):
    if key in found:
      continue
    if time.monotonic() - begin > args.seconds:
      print(f'{key}: not started, time is up; run the command again')
      return
    mark.write_text(key, encoding='utf-8')
    row = row_of(key, work, small=args.small)
    if not isinstance(work, str):
      check = found.get(f'check {check_of(work, platform)}', {})
      row['check_passed'] = check.get('agrees', False)
    found[key] = row
    append(args.out, row | environment)
    mark.unlink()
    brief = ('agrees', 'largest_difference', 'seconds_per_round', 'gflops')
    brief += ('lanes', 'check_passed', 'failed')
    print(key, {k: row[k] for k in brief if k in row}, flush=True)


def with_cpu() -> None:
  """Adds the CPU to JAX_PLATFORMS, where the checks compute as well."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and 'cpu' not in platforms.split(','):
    jax.config.update('jax_platforms', f'{platforms},cpu')


def marker(out: pathlib.Path) -> pathlib.Path:
  """Returns the file that has the key of the work in progress."""
  return out.with_name(f'{out.name}.started')


def supervise(args: argparse.Namespace, cache: str) -> None:
  """Starts children until all work is done or the time is up.

  Args:
    args: the arguments of the command.
    cache: the folder of compiled programs.
  """
  begin = time.monotonic()
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  own = [argument for argument in sys.argv[1:] if argument != '--again']
  for number in range(_MOST_CHILDREN):
    left = args.seconds - (time.monotonic() - begin)
    if left <= 0:
      return
    given = sys.argv[1:] if number == 0 else own
    child = subprocess.Popen(
      [
        *(sys.executable, '-m', _THIS, *given),
        *('--child', '--seconds', str(left)),
      ],
      env=environment,
    )
    try:
      while child.poll() is None:
        time.sleep(0.2)
        if _seconds_in_cell(args.out) > args.cell_seconds:
          child.kill()
    finally:  # SIGTERM or Ctrl-C ends the child, too.
      child.kill()
      child.wait()
    if child.returncode == 0:
      return
    print(f'a child ended with {child.returncode}; another continues')
    if not marker(args.out).exists():
      sys.exit(f'{args.out}: no work had begun when the child ended')


def _seconds_in_cell(out: pathlib.Path) -> float:
  """Returns how long the work in progress has taken, 0 if there is none."""
  try:
    return time.time() - marker(out).stat().st_mtime
  except FileNotFoundError:
    return 0.0


def end(number: int, _: Any) -> None:
  """Ends this process in order, which a signal would not."""
  signal.signal(number, signal.SIG_IGN)  # Once is enough.
  raise SystemExit(128 + number)


def pack(folder: pathlib.Path, cache: pathlib.Path) -> None:
  """Writes the archive of a folder, under its name once it is complete."""
  part = cache.with_name(f'{cache.name}.part')
  with tarfile.open(part, 'w:gz') as archive:
    archive.add(folder, '.')
  os.replace(part, cache)


def main() -> None:
  """Checks and measures what the file lacks."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument(
    '--seconds', type=float, default=1e9, help='start no cell after this time'
  )
  parser.add_argument(
    '--cell_seconds', type=float, default=150, help='the longest time of a cell'
  )
  parser.add_argument(
    '--cache',
    type=pathlib.Path,
    help='archive of compiled programs, read at the start, written at the end',
  )
  parser.add_argument(
    '--cells', default='', help='names of workloads, with commas; default all'
  )
  parser.add_argument(
    '--small', action='store_true', help='few small clients, to try the script'
  )
  parser.add_argument(
    '--again', action='store_true', help='repeat what has failed'
  )
  parser.add_argument(
    '--child', action='store_true', help='do the work in this process'
  )
  args = parser.parse_args()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  if args.child:
    work_through(args)
    return
  signal.signal(signal.SIGTERM, end)
  with tempfile.TemporaryDirectory() as folder:
    if args.cache and args.cache.exists():
      with tarfile.open(args.cache) as archive:
        archive.extractall(folder, filter='data')
    try:
      supervise(args, folder)
    finally:
      if args.cache:
        pack(pathlib.Path(folder), args.cache)


if __name__ == '__main__':
  main()
