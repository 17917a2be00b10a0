"""Draws curves in the paper's form, and runs those that are missing.

A tuned curve is the upper envelope over all learning rates and all rounds so
far, as in the paper. Other curves show one run without smoothing. The paper's
own curves are drawn as well where they could be read off its figures.
"""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.paper import command
from experiments.paper import results
from experiments.paper import tables
from experiments.paper.cells import Cell
import fedavg_jax as fa
from fedavg_jax.runs.plots import new_figure
from fedavg_jax.runs.progress import duration
from fedavg_jax.runs.progress import say

_PAPER = pathlib.Path(__file__).parent / 'published_figures'
PICTURES = results.DEFAULT.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """Describes one curve of a panel.

  Attributes:
    label: the label in the legend.
    cell: the cell that it shows.
    paper: the curve's name in the panel's file of the paper's numbers; '' if
      it is not there.
    tuned: whether it is the upper envelope over learning rates and rounds.
    scale: the length of one round on the x axis.
  """

  label: str
  cell: Cell
  paper: str = ''
  tuned: bool = False
  scale: float = 1.0


def tuned(cell: Cell) -> Curve:
  """Returns the envelope of a table's cell, with the paper's label."""
  if cell.algorithm == 'FedSGD':
    return Curve(label='FedSGD', cell=cell, tuned=True)
  label = f'E = {cell.E}, B = {cell.setting()["B"]}'
  return Curve(label=label, cell=cell, tuned=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """Describes one pair of axes.

  Attributes:
    title: the title of the panel.
    curves: the curves of the panel.
    x: the label and the limits of the x axis.
    y: the label and the limits of the y axis.
    paper: the file with the paper's numbers; '' for none.
    target: the height of a horizontal line; 0 for none.
    loss: whether it shows the loss, on a logarithmic axis, instead of the
      accuracy.
    loss_scale: a factor of our losses.
  """

  title: str
  curves: Sequence[Curve]
  x: tuple[str, float, float]
  y: tuple[str, float, float]
  paper: str = ''
  target: float = 0.0
  loss: bool = False
  loss_scale: float = 1.0


def main(
  name: str, doc: str | None, panels: Callable[[], Sequence[Panel]]
) -> None:
  """Executes the command of a figure.

  Args:
    name: the name of its module, such as 'figure7'.
    doc: the docstring of the module.
    panels: a function that returns its panels.
  """
  command.guarded(lambda: _main(name, doc, panels()))


def _main(name, doc, panels) -> None:
  parser = command.arguments(doc)
  parser.add_argument(
    '--picture',
    type=pathlib.Path,
    default=PICTURES / f'{name}.png',
    help='file of the picture',
  )
  args = command.parse(parser)
  store = results.Results(args.results)
  cells = cells_of(panels)
  chosen = command.numbers('--cells', args.cells, len(cells))
  if not args.show:
    fa.use_cpu_devices(0)
    command.run(args, [cells[i - 1] for i in chosen], store)
  draw(args.picture, panels, store)
  say(f'saved {args.picture}')
  print(missing(name, cells, store))


def cells_of(panels: Sequence[Panel]) -> list[Cell]:
  """Returns the cells of all panels in their order, without duplicates."""
  return list(dict.fromkeys(c.cell for p in panels for c in p.curves))


def missing(name: str, cells: Sequence[Cell], store: results.Results) -> str:
  """Returns a list of missing or unfinished curves, with their commands."""
  lines = []
  for number, cell in enumerate(cells, 1):
    rows = store.of(cell)
    longest = max((row['rounds'] for row in rows), default=0)
    if rows and (longest >= cell.rounds or all(r['diverged'] for r in rows)):
      continue
    state = f'{longest} of {cell.rounds} rounds' if rows else 'missing'
    rate, rates = '', command.RATES
    if cell.learning_rate is not None:
      rate, rates = f' lr={cell.learning_rate:g}', 1
    seconds = rates * tables.seconds_per_round(cell) * cell.rounds
    lines.append(
      f'- {cell.describe()}{rate}: {state};'
      f' `python -m experiments.paper.{name} --cells {number}`, about'
      f' {duration(seconds)}'
    )
  if not lines:
    return 'All curves are complete.'
  return '\n'.join(
    [f'Incomplete: {len(lines)} of {len(cells)} curves.', '', *lines]
  )


def draw(
  path: pathlib.Path, panels: Sequence[Panel], store: results.Results
) -> None:
  """Draws the panels into a PNG, in two columns."""
  columns = min(len(panels), 2)
  rows = -(-len(panels) // columns)
  figure = new_figure(6.4 * columns, 5 * rows)
  for axes, panel in zip(
    np.ravel(figure.subplots(rows, columns)), panels, strict=True
  ):
    digitised = read_paper(panel.paper) if panel.paper else {}
    for i, curve in enumerate(panel.curves):
      colour = f'C{i % 10}'
      style = '-' if i < 10 else '--'
      label = curve.label
      for x, y in lines(curve, store, loss=panel.loss):
        axes.plot(
          x * curve.scale,
          y * (panel.loss_scale if panel.loss else 1),
          color=colour,
          linestyle=style,
          label=label,
        )
        label = None
      if label:
        axes.plot(
          [], [], color=colour, linestyle=style, label=f'{label} (no runs yet)'
        )
      if curve.paper:
        x, y = digitised[curve.paper]
        axes.plot(
          x, y, color=colour, linestyle=':', marker='x', markersize=3, alpha=0.7
        )
    if panel.paper:
      axes.plot([], [], 'x:', color='0.4', markersize=3, label='the paper')
    if panel.target:
      axes.axhline(panel.target, color='0.4', linewidth=1)
    if panel.loss:
      axes.set_yscale('log')
    name, *limits = panel.x
    axes.set_xlabel(name)
    axes.set_xlim(limits)
    name, *limits = panel.y
    axes.set_ylabel(name)
    axes.set_ylim(limits)
    axes.set_title(panel.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def lines(
  curve: Curve, store: results.Results, *, loss: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (rounds, values) of a curve for each seed.

  The envelope ends at the last round of its longest run. A run that was stopped
  earlier contributes the best value that it had reached.
  """
  by_seed: dict[int, list[dict[str, Any]]] = {}
  for row in store.of(curve.cell):
    by_seed.setdefault(row['seed'], []).append(row)
  found = []
  for rows in by_seed.values():
    if not curve.tuned:
      rows = [max(rows, key=lambda row: row['rounds'])]
    values = [row['loss_curve' if loss else 'curve'] for row in rows]
    longest = max(map(len, values))
    padded = np.full((len(values), longest), np.inf if loss else -np.inf)
    for row, own in zip(padded, values, strict=True):
      row[: len(own)] = own
    best = padded.min(axis=0) if loss else padded.max(axis=0)
    if curve.tuned:
      best = (np.minimum if loss else np.maximum).accumulate(best)
    x = np.arange(longest) * rows[0]['eval_every']
    found.append((x[1:], best[1:]))  # Nothing is learned in round 0.
  return found


def read_paper(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads a file of the paper's numbers.

  Returns:
    Label -> (x, y), one-dimensional arrays.
  """
  curves: dict[str, list[tuple[float, float]]] = {}
  with open(_PAPER / name, encoding='utf-8') as file:
    for label, x, y in list(csv.reader(file))[1:]:
      curves.setdefault(label, []).append((float(x), float(y)))
  return {label: tuple(np.array(points).T) for label, points in curves.items()}
