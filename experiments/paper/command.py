"""What the commands of tables and figures share: flags, work, messages."""

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
from fedavg_jax.core.errors import StoppedError
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.signals import stop_on_signals

RATES = 5  # Learning rates of a sweep by default.


def guarded(body: Callable[[], None]) -> None:
  """Runs a command; what a person can mend is one line, without a traceback.

  Ends with 2 on bad input, with 128 and the signal's number after a signal.
  """
  try:
    body()
  except fa.InputError as error:
    code = 2
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  except StoppedError as error:
    code = 128 + error.signum
    print(f'interrupted: {error}', file=sys.stderr)
  except OSError as error:
    code = 1
    print(f'error: {errors.describe(error)}', file=sys.stderr)
  else:
    return
  sys.exit(code)


def arguments(doc: str | None) -> argparse.ArgumentParser:
  """The flags that every table and figure has."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cells', help='numbers such as 1,4-6; all if left out')
  parser.add_argument('--seeds', default='0', help='such as 0,1,2')
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder with mnist/, cifar-10-batches-bin/, shakespeare/; default'
    ' $FEDAVG_DATA; MNIST and CIFAR-10 are downloaded without it',
  )
  parser.add_argument(
    '--values', type=int, default=RATES, help='learning rates'
  )
  parser.add_argument(
    '--ratio', type=int, default=3, choices=(3, 6), help='10^(1/ratio) apart'
  )
  parser.add_argument('--learning-rates', help='these instead, such as 0.1,0.2')
  parser.add_argument(
    '--rounds', type=int, default=0, help='at most, instead of the default'
  )
  parser.add_argument(
    '--minutes', type=float, default=math.inf, help='then saves and ends'
  )
  parser.add_argument(
    '--results', type=pathlib.Path, default=results.DEFAULT, help='file'
  )
  parser.add_argument(
    '--show', action='store_true', help='prints and runs nothing'
  )
  return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """The flags, if each keeps its rule."""
  args = parser.parse_args()
  for flag, holds, rule in (
    ('values', args.values >= 1, 'must be at least 1'),
    ('rounds', args.rounds >= 0, 'must be at least 0'),
    ('minutes', args.minutes > 0, 'must be above 0'),
  ):
    if not holds:
      raise fa.InputError(f'--{flag} {getattr(args, flag)}: {rule}')
  return args


def run(
  args: argparse.Namespace, cells: Sequence[Cell], store: results.Results
) -> None:
  """Runs what is missing.

  Raises:
    InputError: bad data, or a file that cannot be written.
    StoppedError: a signal has asked for an end.
  """
  begin = time.monotonic()
  for line in store.damaged:
    say(
      f'{store.path}: line {line} is damaged; it is kept, and its run is made'
      ' again'
    )
  with stop_on_signals() as stop:

    def stopping():
      return stop() or time.monotonic() - begin > 60 * args.minutes

    settings = [cell.setting() for cell in cells]
    # The highest target of a setting first: the others are on its way.
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
        sweeps.run(cell, rates, seed, store, data=args.data, stopping=stopping)
        if best := store.best(cell, seed):
          say(f'  {_tell(best)}')
  if stop():
    raise StoppedError(
      'what was done is kept; the same command resumes', signum=stop.signum
    )


def _tell(best: results.Best) -> str:
  if best.rounds is None:
    return f'not reached in {best.tried} rounds'
  edge = '; the edge of those tried: try further ones' if best.at_edge else ''
  return f'{best.rounds} rounds with {best.learning_rate:g}{edge}'


def _rates(args, cell: Cell) -> tuple[float, ...]:
  if not args.learning_rates:
    return cell.grid(args.values, args.ratio)
  if cell.learning_rate is not None:
    raise fa.InputError(
      f'--learning-rates {args.learning_rates}: the paper prints that of this'
      f' curve, {cell.learning_rate:g}; must be left out'
    )
  try:
    rates = tuple(float(text) for text in args.learning_rates.split(','))
  except ValueError:
    rates = (0.0,)
  if min(rates) <= 0 or not all(map(math.isfinite, rates)):
    raise fa.InputError(
      f'--learning-rates {args.learning_rates}: must be positive numbers with'
      ' commas between them'
    )
  return rates


def numbers_from_zero(flag: str, text: str) -> list[int]:
  """The numbers of '0,1,2'."""
  try:
    found = [int(part) for part in text.split(',')]
  except ValueError:
    found = [-1]
  if min(found) < 0:
    raise fa.InputError(f'{flag} {text}: must be whole numbers from 0')
  return found


def numbers(flag: str, text: str | None, most: int) -> list[int]:
  """The numbers of '1,4-6', all of them for None."""
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
    raise fa.InputError(f'{flag} {text}: must lie in 1 to {most}')
  return found
