"""Prints a table with the paper's numbers, and the cells that are missing."""

from collections.abc import Callable
from collections.abc import Sequence
import statistics
from typing import NamedTuple

from experiments.paper import command
from experiments.paper import results
from experiments.paper.cells import Cell
import fedavg_jax as fa
from fedavg_jax.runs.progress import duration

# Examples per second of training and of testing, on two cores of an AMD EPYC.
_SPEEDS = {
  '2nn': (240_000.0, 1_000_000.0),
  'cnn': (5_000.0, 13_000.0),
  'char_lstm': (800.0, 3_500.0),
  'cifar_cnn': (2_100.0, 8_000.0),
  'word_lstm': (600.0, 6_000.0),
}
# Clients, examples per client, test examples; for words those of the paper.
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
  """Executes the command of a table.

  Args:
    name: the name of its module, such as 'table4'.
    doc: the docstring of the module.
    cells: a function that returns its cells.
  """
  command.guarded(lambda: _main(name, doc, cells()))


def _main(name, doc, all_cells) -> None:
  args = command.parse(command.arguments(doc))
  store = results.Results(args.results)
  chosen = command.numbers('--cells', args.cells, len(all_cells))
  if not args.show:
    fa.use_cpu_devices(0)
    cells = [all_cells[i - 1] for i in chosen]
    command.run(args, cells, store)
  print(render(name, all_cells, store))


def render(name: str, cells: Sequence[Cell], store: results.Results) -> str:
  """Returns the table in Markdown, then the commands of missing cells."""
  lines = [
    "| cell | | C | E | B | paper | ours | ours, on the paper's grid |"
    ' paper / ours | speed-up, paper | speed-up, ours | learning rate |',
    f'|{"---|" * 12}',
  ]
  missing = []
  found = {cell: counts(cell, store) for cell in cells}
  for number, (cell, ours) in enumerate(found.items(), 1):
    shown = ours.shown
    ratio = speedup = ''
    if cell.paper_rounds and ours.comparable:
      ratio = f'{cell.paper_rounds / ours.comparable:.2g}'
    paper_speedup = _speedup(cell, cells, lambda c: c.paper_rounds)
    if paper_speedup:
      speedup = _speedup(cell, cells, lambda c: found[c].comparable)
    setting = cell.setting()
    lines.append(
      f'| {number} | {cell.algorithm} {cell.model}, {cell.partition},'
      f' {100 * cell.target_accuracy:g} % | {cell.C:g} | {cell.E} |'
      f' {setting["B"]} | {cell.paper_rounds or "—"} | {shown[0]} |'
      f' {shown[1]} | {ratio} | {paper_speedup} | {speedup} | {shown[2]} |'
    )
    if shown[0] == _MISSING:
      missing.append(
        (number, command.RATES * seconds_per_round(cell) * _rounds(cell))
      )
  if missing:
    total = sum(seconds for _, seconds in missing)
    lines += [
      '',
      f'Missing: {len(missing)} of {len(cells)} cells. With {command.RATES}'
      " learning rates, the paper's number of rounds and two CPU cores they"
      f' take about {duration(total)}; each cell:',
      '',
      *(
        f'- `python -m experiments.paper.{name} --cells {number}`: about'
        f' {duration(seconds)}'
        for number, seconds in missing
      ),
    ]
  return '\n'.join(lines)


_MISSING = 'missing'


class Counts(NamedTuple):
  """Holds our numbers of a cell.

  Attributes:
    shown: rounds, rounds on the paper's grid and learning rates, as text.
    comparable: the rounds to compare with the paper's, None if not reached.
  """

  shown: tuple[str, str, str]
  comparable: float | None


def counts(cell: Cell, store: results.Results) -> Counts:
  """Returns median and range over seeds, of all rounds and the paper's grid."""
  seeds = sorted({row['seed'] for row in store.of(cell)})
  found = [best for seed in seeds if (best := store.best(cell, seed))]
  if not found:
    return Counts((_MISSING, '', ''), None)
  ours = [b.rounds * cell.counted for b in found if b.rounds is not None]
  # The paper's evaluation grid for CIFAR-10 is another one.
  grid = [
    b.rounds_paper_grid
    for b in found
    if b.rounds_paper_grid is not None and cell.dataset != 'cifar10'
  ]
  if not ours:
    tried = max(best.tried for best in found) * cell.counted
    return Counts((f'not in {tried}', '', ''), None)  # Target not reached.
  shown = results.median_and_range(ours)
  if len(ours) < len(found):
    shown += f'; not reached by {len(found) - len(ours)} of {len(found)} seeds'
  rates = sorted({b.learning_rate for b in found if b.learning_rate})
  return Counts(
    (
      shown,
      results.median_and_range(grid) if grid else '',
      ', '.join(f'{rate:g}' for rate in rates),
    ),
    statistics.median(grid or ours),
  )


# The baseline row of a table's speed-ups: the fields that it shares with a
# cell, and the field and value that distinguish it.
_BASES = {
  '1': (('model', 'partition', 'B'), ('C', 0.0)),
  '2': (('model', 'partition'), ('algorithm', 'FedSGD')),
  '3': (('target_accuracy',), ('algorithm', 'SGD')),
  '4': (('model', 'partition'), ('algorithm', 'FedSGD')),
}


def _speedup(cell: Cell, cells: Sequence[Cell], rounds: Callable) -> str:
  """Returns the rounds of the paper's baseline row over those of the cell."""
  if cell.table not in _BASES:
    return ''
  shared, (key, value) = _BASES[cell.table]
  for other in cells:
    same = all(getattr(other, k) == getattr(cell, k) for k in shared)
    if same and getattr(other, key) == value and other != cell:
      if rounds(other) and rounds(cell):
        return f'{rounds(other) / rounds(cell):.3g}'
  return ''


def _rounds(cell: Cell) -> float:
  """Returns the number of rounds that a cell is expected to take."""
  if cell.paper_rounds is None:
    return cell.rounds
  return cell.paper_rounds / cell.counted


def seconds_per_round(cell: Cell) -> float:
  """Estimates the seconds per round of one learning rate on two CPU cores.

  The test is included, averaged over rounds.
  """
  clients, each, tested = _SIZES[cell.dataset]
  train, test = _SPEEDS[cell.model]
  if cell.partition == 'centralized':
    clients, each = 1, clients * each
  cohort = cell.cohort or max(int(cell.C * clients), 1)
  if cell.measured == 'train':
    tested = clients * each
  return cohort * each * cell.E / train + tested / test / cell.eval_every
