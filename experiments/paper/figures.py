"""Draws curves in the paper's form, and runs those that are missing.

Of a tuned curve every learning rate and the best accuracy so far count, as in
the paper: it is an upper envelope. Others show one run as it was. The paper's
own numbers, where they could be read off its figures, are drawn beside ours.
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
  """One line of a panel.

  Attributes:
    label: in the legend.
    cell: that it shows.
    paper: the same curve's name in the panel's file of the paper's numbers.
    tuned: the upper envelope over learning rates and rounds.
    scale: what a round counts for on the x axis.
  """

  label: str
  cell: Cell
  paper: str = ''
  tuned: bool = False
  scale: float = 1.0


def tuned(cell: Cell) -> Curve:
  """The envelope of a table's cell, named as the paper names it."""
  if cell.algorithm == 'FedSGD':
    return Curve(label='FedSGD', cell=cell, tuned=True)
  label = f'E = {cell.E}, B = {cell.setting()["B"]}'
  return Curve(label=label, cell=cell, tuned=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One pair of axes.

  Attributes:
    title: of the panel.
    curves: its lines.
    x: label and limits of the x axis.
    y: label and limits of the y axis.
    paper: file with the paper's numbers.
    target: a horizontal line, 0 for none.
    loss: draws the loss in the place of the accuracy, on a logarithmic axis.
    loss_scale: multiplies our losses.
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
  """The command of a figure.

  Args:
    name: of the module, such as 'figure7'.
    doc: its docstring.
    panels: makes its panels.
  """
  command.guarded(lambda: _main(name, doc, panels()))


def _main(name, doc, panels) -> None:
  parser = command.arguments(doc)
  parser.add_argument(
    '--picture', type=pathlib.Path, default=PICTURES / f'{name}.png'
  )
  args = command.parse(parser)
  store = results.Results(args.results)
  cells = cells_of(panels)
  chosen = command.numbers('--cells', args.cells, len(cells))
  if not args.show:
    fa.use_cpu_devices(0)
    command.run(args, [cells[i - 1] for i in chosen], store)
  draw(args.picture, panels, store)
  say(f'{args.picture} is drawn')
  print(missing(name, cells, store))


def cells_of(panels: Sequence[Panel]) -> list[Cell]:
  """The cells of all panels, each once, in their order."""
  return list(dict.fromkeys(c.cell for p in panels for c in p.curves))


def missing(name: str, cells: Sequence[Cell], store: results.Results) -> str:
  """The commands of curves that are not there, or are shorter than asked."""
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
    return 'Every curve is there.'
  return '\n'.join(
    [f'Not whole: {len(lines)} of {len(cells)} curves.', '', *lines]
  )


def draw(
  path: pathlib.Path, panels: Sequence[Panel], store: results.Results
) -> None:
  """Draws the panels, two in a row, into a PNG."""
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
          [], [], color=colour, linestyle=style, label=f'{label} (none)'
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
  """(rounds, values) of a curve, one for each seed.

  The envelope ends where the longest of its runs does; each run counts with its
  best so far, to where it was stopped.
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
    found.append((x[1:], best[1:]))  # Round 0 is nobody's learning.
  return found


def read_paper(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Label -> (x, y) of a file of the paper's numbers."""
  curves: dict[str, list[tuple[float, float]]] = {}
  with open(_PAPER / name, encoding='utf-8') as file:
    for label, x, y in list(csv.reader(file))[1:]:
      curves.setdefault(label, []).append((float(x), float(y)))
  return {label: tuple(np.array(points).T) for label, points in curves.items()}
