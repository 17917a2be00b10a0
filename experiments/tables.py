"""The command line of a table: runs what is missing, prints what is there."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

from experiments import results
from experiments import sweeps
from experiments.cells import Cell
import fedavg_jax as fa
from fedavg_jax.errors import StoppedError
from fedavg_jax.progress import say
from fedavg_jax.signals import stop_on_signals

RATES = 5  # Learning rates of a sweep unless told otherwise.
# Examples a second that two cores of an AMD EPYC train on and test on.
_SPEEDS = {
  '2nn': (240_000.0, 1_000_000.0),
  'cnn': (5_000.0, 13_000.0),
  'char_lstm': (800.0, 3_500.0),
  'cifar_cnn': (2_100.0, 8_000.0),
  'word_lstm': (600.0, 6_000.0),
}
# Clients, examples of each, examples of the test: of the words the paper's.
_SIZES = {
  'digits': (100, 15, 297),
  'mnist': (100, 600, 10_000),
  'cifar10': (100, 500, 10_000),
  'shakespeare': (1280, 67, 21_084),
  'words': (500_000, 500, 100_000),
}


def main(
  name: str, doc: str | None, cells: Callable[[], Sequence[Cell]]
) -> None:
  """The command of a table.

  Args:
    name: of the module, such as 'table4'.
    doc: its docstring.
    cells: makes its cells.
  """
  command(lambda: _main(name, doc, cells()))


def command(body: Callable[[], None]) -> None:
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
    print(f'error: {error.filename}: {error.strerror}', file=sys.stderr)
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


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
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


def _main(name, doc, all_cells) -> None:
  args = checked(arguments(doc))
  store = results.Results(args.results)
  chosen = numbers('--cells', args.cells, len(all_cells))
  if not args.show:
    fa.use_cpu_devices(0)
    run(args, [all_cells[i - 1] for i in chosen], seeds(args.seeds), store)
  print(render(name, all_cells, store))


def run(args, cells: Sequence[Cell], seeds: Sequence[int], store) -> None:
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
    for seed in seeds:
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
      'what was done is kept; the same command goes on', signum=stop.signum
    )


def _tell(best: results.Best) -> str:
  if best.rounds is None:
    return f'not reached in {best.tried} rounds'
  edge = '; the edge of those tried: try further ones' if best.at_edge else ''
  return f'{best.rounds} rounds with {best.learning_rate:g}{edge}'


def render(name: str, cells: Sequence[Cell], store: results.Results) -> str:
  """The table in Markdown, then the commands of what is missing."""
  lines = [
    '| cell | | C | E | B | paper | ours | as the paper counts | paper / ours |'
    ' speed-up, paper | ours | learning rate |',
    f'|{"---|" * 12}',
  ]
  missing = []
  for number, cell in enumerate(cells, 1):
    own = counts(cell, store)
    told = own.told
    ratio = speedup = ''
    if cell.paper_rounds and own.comparable:
      ratio = f'{cell.paper_rounds / own.comparable:.2g}'
    paper_speedup = _speedup(cell, cells, lambda c: c.paper_rounds)
    if paper_speedup:
      speedup = _speedup(cell, cells, lambda c: counts(c, store).comparable)
    setting = cell.setting()
    lines.append(
      f'| {number} | {cell.algorithm} {cell.model}, {cell.partition},'
      f' {100 * cell.target_accuracy:g} % | {cell.C:g} | {cell.E} |'
      f' {setting["B"]} | {cell.paper_rounds or "—"} | {told[0]} | {told[1]} |'
      f' {ratio} | {paper_speedup} | {speedup} | {told[2]} |'
    )
    if told[0] == _MISSING:
      missing.append((number, RATES * seconds_per_round(cell) * _rounds(cell)))
  if missing:
    total = sum(seconds for _, seconds in missing)
    lines += [
      '',
      f'Missing: {len(missing)} of {len(cells)} cells. With {RATES} learning'
      " rates, the paper's number of rounds and two CPU cores about"
      f' {duration(total)}; a cell by itself:',
      '',
      *(
        f'- `python -m experiments.{name} --cells {number}`: about'
        f' {duration(seconds)}'
        for number, seconds in missing
      ),
    ]
  return '\n'.join(lines)


_MISSING = 'missing'


class Counts(NamedTuple):
  """Our numbers of a cell: three to print, one to divide by."""

  told: tuple[str, str, str]
  comparable: float | None


def counts(cell: Cell, store: results.Results) -> Counts:
  """Median and range over seeds, as we count and as the paper does."""
  seeds = sorted({row['seed'] for row in store.of(cell)})
  found = [best for seed in seeds if (best := store.best(cell, seed))]
  if not found:
    return Counts((_MISSING, '', ''), None)
  ours = [b.rounds * cell.counted for b in found if b.rounds is not None]
  # The paper tests CIFAR-10's models after other rounds than MNIST's.
  grid = [
    b.rounds_paper_grid
    for b in found
    if b.rounds_paper_grid is not None and cell.dataset != 'cifar10'
  ]
  if not ours:
    tried = max(best.tried for best in found) * cell.counted
    return Counts((f'not in {tried}', '', ''), None)
  told = results.median_and_range(ours)
  if len(ours) < len(found):
    told += f'; {len(found) - len(ours)} of {len(found)} seeds did not'
  rates = sorted({b.learning_rate for b in found if b.learning_rate})
  return Counts(
    (
      told,
      results.median_and_range(grid) if grid else '',
      ', '.join(f'{rate:g}' for rate in rates),
    ),
    statistics.median(grid or ours),
  )


def _speedup(cell: Cell, cells: Sequence[Cell], rounds: Callable) -> str:
  """Rounds of the row that the paper compares with, over those of the cell.

  That is one client a round in Table 1, FedSGD in Tables 2 and 4, SGD in 3.
  """
  same = ('model', 'partition', 'B', 'target_accuracy')
  base = {'1': {'C': 0.0}, '3': {'algorithm': 'SGD'}}.get(
    cell.table, {'algorithm': 'FedSGD'}
  )
  if cell.table in '24':
    same = ('model', 'partition')
  elif cell.table == '3':
    same = ('target_accuracy',)
  for other in cells:
    if all(getattr(other, k) == getattr(cell, k) for k in same) and all(
      getattr(other, key) == value for key, value in base.items()
    ):
      if other != cell and rounds(other) and rounds(cell):
        return f'{rounds(other) / rounds(cell):.3g}'
  return ''


def _rounds(cell: Cell) -> float:
  """How many a cell is expected to take."""
  if cell.paper_rounds is None:
    return cell.rounds
  return cell.paper_rounds / cell.counted


def seconds_per_round(cell: Cell) -> float:
  """About, of one learning rate on two CPU cores, its test included."""
  clients, each, tested = _SIZES[cell.dataset]
  train, test = _SPEEDS[cell.model]
  if cell.partition == 'centralized':
    clients, each = 1, clients * each
  cohort = cell.cohort or max(int(cell.C * clients), 1)
  if cell.measured == 'train':
    tested = clients * each
  return cohort * each * cell.E / train + tested / test / cell.eval_every


def duration(seconds: float) -> str:
  """'40 s', '12 min' or '5.5 h'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


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


def seeds(text: str) -> list[int]:
  """The numbers of '0,1,2'."""
  try:
    found = [int(part) for part in text.split(',')]
  except ValueError:
    found = [-1]
  if min(found) < 0:
    raise fa.InputError(f'--seeds {text}: must be whole numbers from 0')
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
