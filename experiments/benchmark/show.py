"""Prints the tables of the benchmark and draws its picture."""

import math
import pathlib
import statistics
from typing import Any

from experiments.benchmark import workloads


def table(found: list[dict[str, Any]]) -> None:
  """Prints one workload's table."""
  ours = found[0]
  print(f'\n{ours["workload"]}: {ours["about"]}')
  heads = ('s/round', 'min', 'max', 'ms/step', 'GFLOP/s', 'MiB', 'ratio')
  print(f'{"":38}' + ''.join(f'{head:>10}' for head in heads))
  for row in found:
    note = f'  {row["note"]}' if row['note'] else ''
    cells = (
      f'{row["seconds_per_round"]:.4g}',
      f'{min(row["seconds"]):.4g}',
      f'{max(row["seconds"]):.4g}',
      f'{1000 / row["steps_per_second"]:.3g}',
      f'{row["gflops"]:.3g}',
      f'{row["peak_mib"]:.0f}',
      f'{row["ratio_to_ours"]:.2f}',
    )
    line = ''.join(f'{cell:>10}' for cell in cells)
    print(f'{row["system"]:38}{line}{note}')
  print(
    f'  {ours["rounds_per_second"]:.4g} rounds,'
    f' {ours["clients_per_second"]:.4g} clients,'
    f' {ours["steps_per_second"]:.4g} client steps,'
    f' {ours["examples_per_second"]:.5g} examples per second; compiled in'
    f' {ours["compile_seconds"]:.1f} s\n'
    f'  {ours["lanes"]} lane(s) on {ours["devices"]} device(s),'
    f' {100 * ours["useful_share"]:.1f} % of their steps are not padding;'
    f' the call needs {ours["temporary_bytes"] / 2**20:.3g} MiB,'
    f' a plan {ours["plan_bytes"] / 2**20:.3g} MiB\n'
    f'  {ours["gflops"]:.3g} GFLOP/s of the {ours["peak_gflops_float32"]:.3g}'
    ' of a large matrix product; a large copy reaches'
    f' {ours["peak_gbytes"]:.3g} GB/s',
    flush=True,
  )


def scaling(found: list[dict[str, Any]], modes: dict[str, Any]) -> None:
  """Prints one workload's times and efficiency over devices and processes.

  Adds `scaled`, `paper_seconds`, the ideal time, and `efficiency` to the rows.
  """
  rows = {row['system']: row for row in found}
  print(f'{"":38}{"s/round":>12}{"ideal":>12}{"efficiency":>12}')
  for name, own in modes.items():
    one = rows.get('1 process' if 'processes' in own else '1 device')
    if name not in rows or one is None:
      continue
    row, number, times = rows[name], own['devices'], own['times']
    single = one['seconds_per_round']
    paper = single * times / number + row['reduce_seconds'] * (number > 1)
    row |= {
      'scaled': own,
      'paper_seconds': paper,
      'efficiency': single * times / number / row['seconds_per_round'],
    }
    print(
      f'{name:38}{row["seconds_per_round"]:>12.4g}{paper:>12.4g}'
      f'{row["efficiency"]:>12.2f}'
    )


def starts(found: list[dict[str, Any]]) -> None:
  """Prints the seconds that systems of ours take up to their first round."""
  heads = ('imported', 'round 1', 'min', 'max', 'ratio')
  print(f'{"seconds from start":38}' + ''.join(f'{head:>10}' for head in heads))
  for row in found:
    if 'ready_seconds' in row:
      ready = row['ready_seconds']
      cells = (
        f'{statistics.median(row["started_seconds"]):.3f}',
        f'{statistics.median(ready):.3f}',
        f'{min(ready):.3f}',
        f'{max(ready):.3f}',
        f'{row.get("ready_ratio_to_ours", math.nan):.3f}',
      )
      line = ''.join(f'{cell:>10}' for cell in cells)
      print(f'{row["system"]:38}{line}', flush=True)


def cohorts(found: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws cost per client and memory of a call against the cohort size."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
  for system in dict.fromkeys(row['system'] for row in found):
    mine = [row for row in found if row['system'] == system]
    if len(mine) == 1 < len({row['workload'] for row in found}):
      continue  # This mode runs on one of the workloads only.
    sizes = [workloads.WORKLOADS[row['workload']].cohort for row in mine]
    cost = [1000 / row['clients_per_second'] for row in mine]
    left.plot(sizes, cost, 'o-', label=system)
    if system == 'fedavg_jax':
      call = [row['temporary_bytes'] / 2**20 for row in mine]
      plans = [row['plan_bytes'] / 2**20 for row in mine]
      right.plot(sizes, call, 'o-', label='call, without data and model')
      right.plot(sizes, plans, 's--', label='plan')
  left.set(xscale='log', xlabel='cohort size', ylabel='ms per client')
  right.set(xscale='log', xlabel='cohort size', ylabel='MiB')
  for axes in (left, right):
    axes.set_ylim(0, 1.7 * axes.get_ylim()[1])  # Room for the legend.
    axes.grid(alpha=0.3)
    axes.legend(loc='upper left', fontsize='small')
  figure.suptitle('2NN, 1,000 clients of 60 examples, E = 1, B = 10')
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
