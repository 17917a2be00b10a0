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

from experiments import results
from experiments import sweeps
from experiments.cells import Cell
import fedavg_jax as fa
from fedavg_jax.progress import say
from fedavg_jax.signals import stop_on_signals

RATES = 5  # Learning rates of a sweep unless told otherwise.
# Of two cores of an AMD EPYC, where no run of the model was made here.
_EXAMPLES_PER_SECOND = {
  '2nn': 200_000.0,
  'cnn': 4_500.0,
  'char_lstm': 150.0,
  'cifar_cnn': 1_500.0,
  'word_lstm': 2_000.0,
}


def main(
  name: str, doc: str | None, cells: Callable[[], Sequence[Cell]]
) -> None:
  """Runs and prints the cells of a table; ends with 2 on bad input.

  Args:
    name: of the module, such as 'table4'.
    doc: its docstring.
    cells: makes its cells.
  """
  try:
    _main(name, doc, cells())
  except fa.InputError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


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


def _main(name, doc, all_cells) -> None:
  args = arguments(doc).parse_args()
  store = results.Results(args.results)
  chosen = numbers('--cells', args.cells, len(all_cells))
  if not args.show:
    fa.use_cpu_devices(0)
    run(args, [all_cells[i - 1] for i in chosen], seeds(args.seeds), store)
  print(render(name, all_cells, store))


def run(args, cells: Sequence[Cell], seeds: Sequence[int], store) -> bool:
  """Runs what is missing. Returns whether everything is there now."""
  begin = time.monotonic()
  for line in store.damaged:
    say(
      f'{store.path}: line {line} is damaged; it is kept, and its run is made'
      ' again'
    )
  done = True
  with stop_on_signals() as stop:

    def stopping():
      return stop() or time.monotonic() - begin > 60 * args.minutes

    for seed in seeds:
      for cell in cells:
        if args.rounds:
          cell = dataclasses.replace(cell, rounds=args.rounds)
        rates = store.wanted(cell, seed, _rates(args, cell))
        if not rates:
          continue
        if stopping():
          return False
        say(
          f'{cell.describe()} seed={seed}: learning rates'
          f' {", ".join(f"{rate:g}" for rate in rates)}'
        )
        done &= sweeps.run(
          cell, rates, seed, store, data=args.data, stopping=stopping
        )
        for best in filter(None, [store.best(cell, seed)]):
          say(f'  {_tell(best)}')
  return done


def _tell(best: results.Best) -> str:
  if best.rounds is None:
    return f'not reached in {best.tried} rounds'
  edge = '; the edge of those tried: try further ones' if best.at_edge else ''
  return f'{best.rounds} rounds with {best.learning_rate:g}{edge}'


def render(name: str, cells: Sequence[Cell], store: results.Results) -> str:
  """The table in Markdown, then the commands of what is missing."""
  lines = [
    '| cell | | C | E | B | paper | ours | learning rate | paper / ours |'
    " on the paper's grid |",
    f'|{"---|" * 10}',
  ]
  missing = []
  for number, cell in enumerate(cells, 1):
    seeds = sorted({row['seed'] for row in store.of(cell)})
    found = [b for seed in seeds if (b := store.best(cell, seed))]
    ours = [
      best.rounds * cell.counted for best in found if best.rounds is not None
    ]
    grid = [
      best.rounds_paper_grid * cell.counted
      for best in found
      if best.rounds_paper_grid is not None
    ]
    paper = '—' if cell.paper_rounds is None else str(cell.paper_rounds)
    told = ['missing', '', '', '']
    if ours:
      rates = sorted({b.learning_rate for b in found if b.learning_rate})
      told = [
        results.median_and_range(ours),
        ', '.join(f'{rate:g}' for rate in rates),
        f'{cell.paper_rounds / statistics.median(ours):.2g}'
        if cell.paper_rounds
        else '',
        results.median_and_range(grid) if grid else '',
      ]
    elif found:
      told[0] = f'not in {max(best.tried for best in found)}'
    if 0 < len(ours) < len(found):
      told[0] += f'; {len(found) - len(ours)} of {len(found)} seeds did not'
    setting = cell.setting()
    lines.append(
      f'| {number} | {cell.algorithm} {cell.model}, {cell.partition},'
      f' {100 * cell.target_accuracy:g} % | {cell.C:g} | {cell.E} |'
      f' {setting["B"]} | {paper} | ' + ' | '.join(told) + ' |'
    )
    if not found:
      missing.append((number, estimate(cell, store)))
  if missing:
    total = sum(seconds for _, seconds in missing)
    lines += [
      '',
      f'Missing: {len(missing)} of {len(cells)} cells, about'
      f' {duration(total)} for {RATES} learning rates'
      ' on the machine of the rows. A cell by itself:',
      '',
      *(
        f'- `python -m experiments.{name} --cells {number}`: about'
        f' {duration(seconds)}'
        for number, seconds in missing
      ),
    ]
  return '\n'.join(lines)


def estimate(cell: Cell, store: results.Results) -> float:
  """Seconds that a sweep of five rates takes, from runs of the same model."""
  speeds = [
    row['rounds'] * examples_per_round(row) / row['seconds']
    for row in store.rows
    if row['model'] == cell.model and row.get('seconds')
  ]
  speed = (
    statistics.median(speeds) if speeds else _EXAMPLES_PER_SECOND[cell.model]
  )
  rounds = (cell.paper_rounds or cell.rounds * cell.counted) / cell.counted
  return RATES * rounds * examples_per_round(cell.setting()) / speed


def examples_per_round(setting) -> float:
  """Examples that a cohort reads in a round, about."""
  clients, each = {
    'digits': (100, 15),
    'mnist': (100, 600),
    'cifar10': (100, 500),
    'shakespeare': (1146, 74),
    'words': (500_000, 500),
  }[setting['dataset']]
  if setting['partition'] == 'centralized':
    return clients * each
  return max(int(setting['C'] * clients), 1) * each * setting['E']


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
