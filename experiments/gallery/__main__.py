"""Runs cells of the gallery, lists them, or runs finished ones again.

python -m experiments.gallery --list
python -m experiments.gallery --run flute,niid_bench/mnist/iid --seeds 0,1,2
python -m experiments.gallery --run niid_bench --max-seconds 3600
python -m experiments.gallery --check 2
python -m experiments.gallery --report

A name is that of a cell, its beginning up to a slash, or a pattern such as
niid_bench/mnist/*/fedavg. Each finished cell and seed is a line in the folder
--out and is not run again; a stopped run resumes with the next call. Several
calls may run at once, of which each takes other cells.
"""

import argparse
from collections.abc import Iterator
import contextlib
import math
import os
import pathlib
import random
import signal
import sys
import threading
from typing import NamedTuple

from experiments.gallery import catalog
from experiments.gallery import pictures
from experiments.gallery import report
from experiments.gallery import training
from experiments.gallery.cell import Cell
from experiments.paper import command
import fedavg_jax as fa
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.signals import Stop
from fedavg_jax.runs.signals import stop_on_signals

_RESUME = 'all finished cells are kept; the same command resumes'


def main() -> None:
  """Does what the flags say."""
  args = arguments().parse_args()
  if args.data:
    os.environ['FEDAVG_DATA'] = args.data
  if not args.max_seconds > 0:
    raise fa.InputError(f'--max-seconds {args.max_seconds}: must be above 0')
  if args.list:
    print(report.listing(args.out))
    return
  if args.report:
    write_report(args.out)
    return
  if args.check is not None and args.check < 1:
    raise fa.InputError(f'--check {args.check}: must be at least 1')
  if args.check is None and not args.run:
    raise fa.InputError('needs one of --list, --run, --check and --report')
  fa.use_cpu_devices(0)
  cells = catalog.named(args.run) if args.run else []
  seeds = command.numbers_from_zero('--seeds', args.seeds)
  with limited(args.max_seconds) as limit:
    try:
      if cells:
        run(cells, seeds, args.out, limit.stop)
      else:
        check(args.check, args.out)
    except (InterruptedRunError, KeyboardInterrupt) as error:
      if not limit.over.is_set():
        raise InterruptedRunError(_RESUME, signum=limit.stop.signum) from error
      say(f'--max-seconds {args.max_seconds:g}: the time is over; {_RESUME}')


def arguments() -> argparse.ArgumentParser:
  """Returns the parser of the flags."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.gallery',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  does = parser.add_mutually_exclusive_group()
  does.add_argument(
    '--list', action='store_true', help='print all cells and their state'
  )
  does.add_argument('--run', default='', help='cells to run, with commas')
  does.add_argument(
    '--check',
    type=int,
    nargs='?',
    const=1,
    help='run this many random finished cells again and compare; default 1',
  )
  does.add_argument(
    '--report',
    action='store_true',
    help='write docs/gallery.md, the list of missing cells and the pictures',
  )
  parser.add_argument('--seeds', default='0', help='seeds, such as 0,1,2')
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder with mnist/ and cifar-10-batches-bin/; default $FEDAVG_DATA;'
    ' without it they are downloaded',
  )
  parser.add_argument(
    '--max-seconds',
    type=float,
    default=math.inf,
    help='save and stop with the round in which this time ends',
  )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    default=report.RESULTS,
    help='folder of the results, a file for each source; --report describes'
    ' only the default',
  )
  return parser


def write_report(folder: pathlib.Path) -> None:
  """Writes the page, the list and the pictures of the kept results.

  Raises:
    InputError: the folder is another, which the page does not describe.
  """
  if folder.resolve() != report.RESULTS.resolve():
    raise fa.InputError(
      f'--out {folder}: --report describes only {report.RESULTS}; --list prints'
      ' the results of another folder'
    )
  text = report.page(report.PAGE.read_text('utf-8'), folder)
  missing = report.missing(folder)
  pictures.draw(folder)
  report.PAGE.write_text(text, 'utf-8')
  report.MISSING.write_text(missing, 'utf-8')


class Limit(NamedTuple):
  """Says whether and why a command stops.

  Attributes:
    stop: the flag that ends a run, set by a signal or at the end of the time.
    over: whether the time is over.
  """

  stop: Stop
  over: threading.Event


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[Limit]:
  """Yields a limit that ends runs at a signal or after a time."""
  with stop_on_signals() as stop:
    over = threading.Event()

    def expire():
      if not stop():
        over.set()
        stop.signum = signal.SIGTERM

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), expire)
    timer.daemon = True
    timer.start()
    try:
      yield Limit(stop, over)
    finally:
      timer.cancel()


def run(
  cells: list[Cell], seeds: list[int], folder: pathlib.Path, stop: Stop
) -> None:
  """Trains the cells that have no line yet, all of a seed before the next.

  Raises:
    InterruptedRunError: the time is over, or a signal arrived.
  """
  stores = {cell.source: training.opened(folder, cell.source) for cell in cells}
  for store in stores.values():
    for number in store.damaged:
      say(
        f'{store.path}: line {number} is damaged; it is kept, and its cell is'
        ' run again'
      )
  for seed in seeds:
    for cell in cells:
      if stop():
        raise InterruptedRunError(_RESUME, signum=stop.signum)
      store = stores[cell.source]
      say(f'{cell.name}, seed {seed}')
      outcome = training.run(cell, seed, store)
      value = training.rows_of(cell, store).get(seed, {}).get('value')
      say(f'  {outcome}' + ('' if value is None else f': {value:.4f}'))


def check(number: int, folder: pathlib.Path) -> None:
  """Trains random finished cells again; exits with 1 where a curve differs."""
  done = [
    (cell, row)
    for source in catalog.sources()
    for store in [training.opened(folder, source)]
    for cell in catalog.of(source)
    for row in training.rows_of(cell, store).values()
  ]
  if not done:
    raise fa.InputError(f'--out {folder}: has no finished cell to check')
  differ = False
  for cell, row in random.sample(done, min(number, len(done))):
    comparison = training.again(cell, row)
    differ |= comparison.difference > 0
    say(
      f'{comparison.describe()} (kept: {row["num_devices"]} device(s) of kind'
      f' {row["device"]}, jax {row["versions"].get("jax")}, commit'
      f' {row["commit"]})'
    )
  if differ:
    sys.exit(1)


if __name__ == '__main__':
  command.guarded(main)
