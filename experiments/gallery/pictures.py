"""Draws the gallery's pictures: numbers beside published ones, and curves.

Each picture names in its metadata the digest of the rows that it shows.
"""

from collections.abc import Sequence
import hashlib
import json
import pathlib

import numpy as np

from experiments.gallery import catalog
from experiments.gallery import fedprox_synthetic
from experiments.gallery import report
from experiments.gallery import training
from experiments.gallery.report import Outcome
from fedavg_jax.runs.plots import new_figure

NUMBERS, SYNTHETIC = 'numbers.png', 'fedprox_synthetic.png'
# (name of the curve, label, logarithmic scale) of each row of panels.
_QUANTITIES = (
  ('training_loss', 'training loss', True),
  ('accuracy', 'test accuracy', False),
  ('dissimilarity', 'dissimilarity of gradients', True),
)
# (stragglers in percent, end of the cell's name, color, line style).
_LINES = (
  (0, 'mu_0', 'C0', '-'),
  (0, 'mu_1', 'C1', '-'),
  (50, 'dropped', 'C2', '--'),
  (50, 'mu_0', 'C0', '--'),
  (50, 'mu_1', 'C1', '--'),
  (90, 'dropped', 'C2', ':'),
  (90, 'mu_0', 'C0', ':'),
  (90, 'mu_1', 'C1', ':'),
)
# (data, stragglers in percent) of each column of panels; only of (1, 1) are
# there claims about 50 % stragglers.
_COLUMNS = (
  *((data, (0, 90)) for data in fedprox_synthetic.DATA),
  ('1_1', (50,)),
)


def draw(folder: pathlib.Path) -> None:
  """Draws both pictures into the folder of the results."""
  _draw_numbers(folder / NUMBERS, numbers(folder))
  _draw_synthetic(folder / SYNTHETIC, synthetic(folder))


def numbers(folder: pathlib.Path) -> list[Outcome]:
  """Returns the finished cells with a published number."""
  return [
    outcome
    for source in catalog.sources()
    for outcome in report.outcomes(folder, source)
    if outcome.rows and outcome.cell.published is not None
  ]


def synthetic(folder: pathlib.Path) -> list[Outcome]:
  """Returns the finished cells on FedProx's synthetic data."""
  found = report.outcomes(folder, fedprox_synthetic.SOURCE)
  return [outcome for outcome in found if outcome.rows]


def digest(outcomes: Sequence[Outcome]) -> str:
  """Returns the SHA-256 of the published numbers and the rows of outcomes."""
  shown = [
    [outcome.cell.name, outcome.cell.published, list(outcome.rows.values())]
    for outcome in outcomes
  ]
  return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _draw_numbers(path: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
  """Draws every seed, our mean, and what counts as inside."""
  figure = new_figure(8, 1.2 + 0.28 * len(outcomes))
  axes = figure.subplots()
  for height, (cell, rows) in enumerate(reversed(outcomes)):
    assert cell.published is not None
    value, reach = cell.published.value, cell.published.reach
    if reach is not None:
      axes.plot(
        [value - reach, value + reach],
        [height, height],
        color='0.8',
        linewidth=7,
        solid_capstyle='butt',
      )
    axes.plot([value], [height], '|', color='0.3', markersize=9)
    each = [row['value'] for row in rows.values()]
    axes.plot(each, [height] * len(each), '.', color='C0', markersize=5)
    axes.plot([np.mean(each)], [height], 'x', color='C3')
  axes.set_yticks(range(len(outcomes)))
  axes.set_yticklabels([o.cell.name for o in reversed(outcomes)], fontsize=7)
  axes.set_xlabel(
    'test accuracy: published (bar: counts as inside), our seeds (dots), mean'
    ' (cross)',
    fontsize=8,
  )
  axes.grid(axis='x', alpha=0.3)
  _save(figure, path, outcomes)


def _draw_synthetic(path: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
  """Draws three quantities on each synthetic data set.

  Lines are means over the seeds, bands their smallest and largest values.
  """
  found = {outcome.cell.name: outcome for outcome in outcomes}
  figure = new_figure(15, 8)
  panels = figure.subplots(len(_QUANTITIES), len(_COLUMNS))
  for row, (name, label, logarithmic) in zip(panels, _QUANTITIES, strict=True):
    row[0].set_ylabel(label)
    for axes, (data, percents) in zip(row, _COLUMNS, strict=True):
      for stragglers, kind, color, style in _LINES:
        key = f'{fedprox_synthetic.SOURCE.key}/{data}'
        key += f'/stragglers_{stragglers}/{kind}'
        if key not in found or stragglers not in percents:
          continue
        rounds = training.tested_rounds(found[key].cell)
        curves = report.curves_of_seeds(found[key], name)  # [S, T]
        axes.plot(
          rounds,
          curves.mean(axis=0),
          color=color,
          linestyle=style,
          linewidth=1,
          label=f'{stragglers} % stragglers, {kind.replace("_", " = ")}',
        )
        axes.fill_between(
          rounds,
          curves.min(axis=0),
          curves.max(axis=0),
          color=color,
          alpha=0.12,
          linewidth=0,
        )
      if logarithmic:
        axes.set_yscale('log')
      axes.grid(alpha=0.3)
  for axes, (data, _) in zip(panels[0], _COLUMNS, strict=True):
    axes.set_title(f'synthetic {data.replace("_", ", ")}')
  for axes in panels[-1]:
    axes.set_xlabel('communication round')
  for axes in panels[0][[0, -1]]:  # A legend for each set of lines.
    axes.legend(fontsize=6)
  _save(figure, path, outcomes)


def _save(figure, path: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
  figure.savefig(path, dpi=90, metadata={'Description': digest(outcomes)})
