"""Provides the flags, main loop and messages of the paper's commands."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import sys
import time

from experiments.paper import results
from experiments.paper import sweeps
from experiments.paper.cells import Cell
import fedavg_jax as fa
from fedavg_jax.core import errors
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.signals import stop_on_signals

RATES = 5  # Default number of learning rates in a sweep.


def guarded(body: Callable[[], None]) -> None:
  """Executes a command; an error that the user can fix is one line.

  The exit code is 2 for bad input, 1 for a file that cannot be read or written,
  and 128 plus the signal's number after a signal.
  """
  try:
    body()
  except fa.InputError as error:
    code = 2
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  except InterruptedRunError as error:
    code = 128 + error.signum
    print(f'interrupted: {error}', file=sys.stderr)
  except OSError as error:
    code = 1
    print(f'error: {errors.describe(error)}', file=sys.stderr)
  else:
    return
  sys.exit(code)


def arguments(doc: str | None) -> argparse.ArgumentParser:
  """Returns a parser with the flags of every table and figure."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--cells', help='numbers of cells, such as 1,4-6; default all'
  )
  parser.add_argument('--seeds', default='0', help='seeds, such as 0,1,2')
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder with mnist/, cifar-10-batches-bin/, shakespeare/; default'
    ' $FEDAVG_DATA; without it MNIST and CIFAR-10 are downloaded',
  )
  parser.add_argument(
    '--values', type=int, default=RATES, help='number of learning rates'
  )
  parser.add_argument(
    '--ratio',
    type=int,
    default=3,
    choices=(3, 6),
    help='learning rates are a factor 10^(1/ratio) apart',
  )
  parser.add_argument(
    '--learning-rates', help='learning rates instead of a grid, such as 0.1,0.2'
  )
  parser.add_argument(
    '--rounds',
    type=int,
    default=0,
    help="largest number of rounds, instead of the cell's",
  )
  parser.add_argument(
    '--minutes',
    type=float,
    default=math.inf,
    help='save and stop after this time',
  )
  parser.add_argument(
    '--results',
    type=pathlib.Path,
    default=results.DEFAULT,
    help='file of the results, JSON lines',
  )
  parser.add_argument(
    '--show',
    action='store_true',
    help='only print the results of earlier runs',
  )
  return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """Parses the flags and checks their values.

  Raises:
    InputError: a flag has a bad value.
  """
  args = parser.parse_args()
  for flag, is_valid, rule in (
    ('values', args.values >= 1, 'must be at least 1'),
    ('rounds', args.rounds >= 0, 'must be at least 0'),
    ('minutes', args.minutes > 0, 'must be above 0'),
  ):
    if not is_valid:
      raise fa.InputError(f'--{flag} {getattr(args, flag)}: {rule}')
  return args


def run(
  args: argparse.Namespace, cells: Sequence[Cell], store: results.Results
) -> None:
  """Trains the learning rates and seeds of cells that have no result yet.

  Raises:
    InputError: the data are bad, or a file cannot be written.
    InterruptedRunError: a signal has stopped the command.
  """
  begin = time.monotonic()
  for line in store.damaged:
    say(
      f'{store.path}: line {line} is damaged; it is kept, and its run is'
      ' repeated'
    )
  with stop_on_signals() as stop:

    def stopping():
      return stop() or time.monotonic() - begin > 60 * args.minutes

    settings = [cell.setting() for cell in cells]
    # The highest target of a setting first: its run passes the lower ones.
    order = sorted(
      range(len(cells)),
      key=lambda i: (settings.index(settings[i]), -cells[i].target_accuracy),
    )
    for seed in numbers_from_zero('--seeds', args.seeds):
      for cell in [cells[i] for i in order]:
        if args.rounds:
          cell = dataclasses.replace(cell, rounds=args.rounds)
        rates = _rates(args, cell)
        if stopping() or not store.wanted(cell, seed, rates):
          continue
        say(f'{cell.describe()} seed={seed}')
        sweeps.run(
          cell, rates, seed, store, data=args.data, should_stop=stopping
        )
        if best := store.best(cell, seed):
          say(f'  {_outcome(best)}')
  if stop():
    raise InterruptedRunError(
      'all progress is saved; rerun the same command to resume',
      signum=stop.signum,
    )


def _outcome(best: results.Best) -> str:
  if best.rounds is None:
    return f'target not reached in {best.tried} rounds'
  edge = '; it is at the edge of the grid, extend it' if best.at_edge else ''
  return f'{best.rounds} rounds with learning rate {best.learning_rate:g}{edge}'


def _rates(args, cell: Cell) -> tuple[float, ...]:
  if not args.learning_rates:
    return cell.grid(args.values, args.ratio)
  if cell.learning_rate is not None:
    raise fa.InputError(
      f'--learning-rates {args.learning_rates}: is not supported with this'
      f' curve; the paper prints its rate, {cell.learning_rate:g}'
    )
  try:
    rates = tuple(float(text) for text in args.learning_rates.split(','))
  except ValueError:
    rates = (0.0,)
  if min(rates) <= 0 or not all(map(math.isfinite, rates)):
    raise fa.InputError(
      f'--learning-rates {args.learning_rates}: must be positive numbers,'
      ' separated by commas'
    )
  return rates


def numbers_from_zero(flag: str, text: str) -> list[int]:
  """Returns the numbers of a text such as '0,1,2'.

  Raises:
    InputError: it contains anything but integers from 0.
  """
  try:
    found = [int(part) for part in text.split(',')]
  except ValueError:
    found = [-1]
  if min(found) < 0:
    raise fa.InputError(f'{flag} {text}: must be whole numbers from 0')
  return found


def numbers(flag: str, text: str | None, most: int) -> list[int]:
  """Returns the numbers of a text such as '1,4-6', 1 to `most` for None.

  Raises:
    InputError: it contains anything but numbers from 1 to `most`.
  """
  if text is None:
    return list(range(1, most + 1))
  found = []
  try:
    for part in text.split(','):
      first, _, last = part.partition('-')
      found += range(int(first), int(last or first) + 1)
  except ValueError:
    found = [0]
  if not found or min(found) < 1 or max(found) > most:
    raise fa.InputError(f'{flag} {text}: must be in [1, {most}]')
  return found
