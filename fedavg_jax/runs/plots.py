"""Draws the pictures of runs; matplotlib is imported when one is drawn."""

import contextlib
import os
import pathlib
import sys
from typing import Any

import numpy as np

from fedavg_jax.runs import picture_metadata
from fedavg_jax.runs.targets import Measure

# The most clients that a picture of a partition shows.
MOST_CLIENTS = 5000
# The formats of pictures, by the ends of their names.
SUFFIXES = ('.png', '.pdf', '.svg')
# The makers of comparisons, in the metadata of their pictures.
COMPARE, SWEEP = 'fedavg_jax compare', 'fedavg_jax sweep'
_MEASURE, _LOSS, _TARGET = '#1f5f99', '#b8541a', '#666666'


def draw_curves(
  path: pathlib.Path,
  *,
  title: str,
  records: list[dict[str, Any]],
  measure: Measure,
  target: float,
  loss: str,
) -> None:
  """Draws a run's measure, and its train and test losses, against rounds.

  Args:
    path: the path of the new PNG.
    title: a description of the run.
    records: the lines of metrics.jsonl.
    measure: the measure of the run.
    target: the value to mark with a line; 0 is none.
    loss: the label of the loss axis.
  """
  figure = new_figure(8, 6)
  top, bottom = figure.subplots(2, 1, sharex=True)
  tested = [r for r in records if measure.of(r) is not None]
  rounds = [r['round'] for r in tested]
  values = [measure.of(r) or 0.0 for r in tested]
  few = '.' if len(tested) <= 40 else ''
  top.plot(rounds, values, color=_MEASURE, marker=few, label=measure.on)
  if target:
    top.axhline(
      target,
      color=_TARGET,
      linestyle='--',
      linewidth=1,
      label=f'target {target:g}',
    )
  if not measure.lower_is_better:
    _focus(top, values, target)
  top.set_ylabel(f'{measure.on} {measure.name}')
  top.legend(loc='upper right' if measure.lower_is_better else 'lower right')
  trained = [r for r in records if r.get('train_loss') is not None]
  bottom.plot(
    [r['round'] for r in trained],
    [r['train_loss'] for r in trained],
    color=_LOSS,
    label='train (during the round)',
  )
  drawn = [r['train_loss'] for r in trained]
  key = f'{measure.on}_loss'
  if any(key in r for r in tested):
    drawn += (losses := [r.get(key) for r in tested])
    bottom.plot(rounds, losses, color=_MEASURE, marker=few, label=measure.on)
  if all(value is None or value >= 0 for value in drawn):
    bottom.set_yscale('log')
  bottom.set_xlabel('communication round')
  bottom.set_ylabel(loss)
  bottom.legend(loc='upper right')
  for axes in (top, bottom):
    axes.grid(alpha=0.3)
  top.set_title(title)
  figure.savefig(path, dpi=120)


def draw_clients(
  path: pathlib.Path,
  *,
  title: str,
  records: list[dict[str, Any]],
  tests: Any,
  measure: Measure,
) -> None:
  """Draws the clients' tests: quantiles over rounds, their final distribution.

  Args:
    path: the path of the new PNG.
    title: a description of the run.
    records: the lines of metrics.jsonl.
    tests: the last `client_evaluation.ClientTests`.
    measure: the measure of the run.
  """
  figure = new_figure(8, 7)
  top, bottom = figure.subplots(2, 1)
  for name, results, color in (
    ('client', tests.global_model, _MEASURE),
    ('personal', tests.personal, _LOSS),
  ):
    key = f'{name}_{measure.name}'
    rows = [r for r in records if f'{key}_p50' in r]
    if results is None or not rows:
      continue
    what = 'global model' if name == 'client' else 'after fine-tuning'
    rounds = [r['round'] for r in rows]
    top.fill_between(
      rounds,
      [r[f'{key}_p10'] for r in rows],
      [r[f'{key}_p90'] for r in rows],
      color=color,
      alpha=0.2,
      linewidth=0,
      label=f'{what}: 80 % of the clients',
    )
    top.plot(
      rounds,
      [r[f'{key}_p50'] for r in rows],
      color=color,
      marker='.' if len(rows) <= 40 else '',
      label=f'{what}: the median client',
    )
    values = np.sort(results.values[measure.name][results.count > 0])
    bottom.plot(
      values,
      np.arange(1, len(values) + 1) / len(values),
      drawstyle='steps-post',
      color=color,
      label=what,
    )
  top.set_xlabel('communication round')
  top.set_ylabel(f'{measure.name} on held-out examples')
  bottom.set_xlabel(
    f"{measure.name} on a client's held-out examples, at the end"
  )
  bottom.set_ylabel('fraction of clients at or below')
  bottom.set_ylim(0, 1.02)
  top.legend(loc='lower right')
  bottom.legend(loc='upper left')
  for axes in (top, bottom):
    axes.grid(alpha=0.3)
  top.set_title(title)
  figure.savefig(path, dpi=120)


def draw_comparison(
  path: pathlib.Path,
  *,
  curves: dict[str, list[dict[str, np.ndarray]]],
  axes: dict[str, str],
  measure: Measure,
  target: float,
  maker: str = COMPARE,
) -> None:
  """Draws the tests of several runs, with one panel per cost.

  Args:
    path: the path of the new picture, whose end is one of `SUFFIXES`.
    curves: name -> curves, each with 'value' and all keys of `axes`, [T]; if
      there are several, their mean is drawn over a band from the lowest to the
      highest.
    axes: key of a cost -> the label of its axis.
    measure: the measure of all runs.
    target: the value to mark with a line; 0 is none.
    maker: `COMPARE` or `SWEEP`, for the metadata.
  """
  from matplotlib.ticker import EngFormatter

  columns = 1 if max(map(len, curves)) > 40 else 2
  lines = -(-len(curves) // columns)
  figure = new_figure(5.5 * len(axes), 4.5 + 0.22 * lines)
  panels = np.atleast_1d(figure.subplots(1, len(axes), sharey=True))
  colors = _colors(len(curves))
  for panel, (key, label) in zip(panels, axes.items(), strict=True):
    for i, (name, repeats) in enumerate(curves.items()):
      style = ('-', '--', ':', '-.')[i // 10 % 4]
      if len(repeats) == 1:
        x, middle = repeats[0][key], repeats[0]['value']
      else:  # The mean ends with the shortest curve.
        ends = min(curve[key][-1] for curve in repeats)
        x = np.unique(np.concatenate([curve[key] for curve in repeats]))
        x = x[x <= ends]
        each = np.stack(
          [np.interp(x, curve[key], curve['value']) for curve in repeats]
        )
        middle = each.mean(axis=0)
        panel.fill_between(
          x,
          each.min(axis=0),
          each.max(axis=0),
          color=colors[i],
          alpha=0.2,
          linewidth=0,
        )
      panel.plot(x, middle, color=colors[i], linestyle=style, label=name)
    if target:
      panel.axhline(target, color=_TARGET, linestyle='--', linewidth=1)
    panel.set_xlabel(label)
    panel.grid(alpha=0.3)
    if key == 'bytes':
      panel.xaxis.set_major_formatter(EngFormatter('B'))
  panels[0].set_ylabel(f'{measure.on} {measure.name}')
  if (
    0 < target <= 1 and not measure.lower_is_better
  ):  # Show the approach to the target.
    panels[0].set_ylim(max(target - 0.3, 0.0), min(target + 0.1, 1.002))
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside upper left',
    ncols=columns,
    fontsize=9,
  )
  about = picture_metadata.metadata(path, maker)
  figure.savefig(path, dpi=120, metadata=about)


def is_own(path: pathlib.Path) -> bool:
  """Returns whether a file is a picture of the command `compare`."""
  return picture_metadata.is_made_by(path, COMPARE)


def draw_partition(
  path: pathlib.Path, *, title: str, counts: np.ndarray, num_clients: int
) -> None:
  """Draws the number and the fraction of examples per client and label.

  Only the first `MOST_CLIENTS` clients are drawn.

  Args:
    path: the path of the new PNG.
    title: a description of the partition.
    counts: the output of `statistics.label_counts` for at least the clients
      that are drawn, [clients, classes].
    num_clients: the number of all clients.
  """
  counts = counts[:MOST_CLIENTS]
  if len(counts) < num_clients:
    title += f'\n(the first {len(counts):,} of {num_clients:,} clients)'
  num_clients, num_classes = counts.shape
  edges = np.arange(num_clients + 1) - 0.5
  colors = _colors(num_classes)
  figure = new_figure(10, 7 if num_classes > 1 else 4)
  if num_classes > 1:
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
  else:
    bars = heat = figure.subplots()
  tops = np.concatenate(
    [np.zeros((num_clients, 1), int), np.cumsum(counts, axis=1)], axis=1
  )
  for label in range(num_classes):
    bars.stairs(
      tops[:, label + 1],
      edges,
      baseline=tops[:, label],
      fill=True,
      color=colors[label],
      label=str(label),
    )
  bars.set_xlim(edges[0], edges[-1])
  bars.set_ylim(0, tops[:, -1].max() * 1.02)
  bars.set_ylabel('training examples')
  bars.set_title(title)
  if 1 < num_classes <= 20:  # A longer legend has no room.
    bars.legend(
      title='label', loc='center left', bbox_to_anchor=(1, 0.5), reverse=True
    )
  if num_classes > 1:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = heat.pcolormesh(
      edges,
      np.arange(num_classes + 1) - 0.5,
      shares.T,
      cmap='Blues',
      vmin=0.0,
      vmax=1.0,
    )
    heat.set_ylabel('label')
    heat.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(
      image, ax=heat, label="fraction of the client's examples", pad=0.01
    )
  heat.set_xlabel('client')
  figure.savefig(path, dpi=120)


def new_figure(width: float, height: float) -> Any:
  """Returns an empty figure without a window; its size is in inches."""
  import_matplotlib()
  from matplotlib.figure import Figure  # No pyplot: no global state, no window.

  return Figure(figsize=(width, height), layout='constrained')


def import_matplotlib() -> Any:
  """Imports matplotlib even if MPLBACKEND is invalid; it opens no window."""
  backend = ''
  if 'matplotlib' not in sys.modules:
    backend = os.environ.pop('MPLBACKEND', '')
  import matplotlib

  if backend:
    os.environ['MPLBACKEND'] = backend
    with contextlib.suppress(
      ValueError
    ):  # Set a valid one, as matplotlib does.
      matplotlib.rcParams['backend'] = backend
  return matplotlib


def _colors(number: int):
  return import_matplotlib().colormaps['tab10'](np.arange(number) % 10)


def _focus(axes, values: list[float], target: float) -> None:
  """Limits the axis to the last part of the climb for values near 1."""
  best = max(target, *values)
  if 0.9 <= best <= 1:
    low = 0.95 if best >= 0.985 else 0.9 if target else 0.0
    axes.set_ylim(min(low, target - 0.02) if target else low, 1.002)
