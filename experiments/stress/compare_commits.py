"""Runs the same settings in two commits; their results must be bit-identical.

Each setting is a command that runs in a separate process, once in each tree.
Every line of metrics.jsonl must be equal, except for wall-clock seconds, and so
must every array of the last checkpoint: the model and the states of server and
clients.

python -m experiments.stress.compare_commits 4d525b6
python -m experiments.stress.compare_commits HEAD~1 HEAD --data FOLDER
python -m experiments.stress.compare_commits HEAD --settings scaffold,sweep

The second commit is the working tree by default. It prints a line per setting;
the exit code is 1 if one differs. Settings on MNIST need the original files in
mnist/ of --data or of $FEDAVG_DATA, and are skipped without them. It takes
about three minutes on two CPU cores.
"""

import argparse
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
from typing import NamedTuple

from absl import logging

from experiments import checkout
from experiments.stress import kill_settings
from experiments.stress import lost_process
from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError


class Setting(NamedTuple):
  """Describes one command.

  Attributes:
    config: a file of configs/, with its argument.
    options: options of the config, KEY=VALUE.
    grid: the grid of a sweep, KEY=VALUE,VALUE; '' for a run.
    mnist: whether it reads MNIST.
  """

  config: str
  options: tuple[str, ...]
  grid: str = ''
  mnist: bool = False


SETTINGS = {
  'quickstart': Setting('quickstart.py', ('rounds=40',)),
  '2nn_noniid': Setting('mnist_2nn.py:noniid', ('rounds=10',), mnist=True),
  'cnn': Setting('mnist_cnn.py', ('rounds=2', 'client.epochs=1'), mnist=True),
  'scaffold': Setting(
    'quickstart.py',
    ('algorithm=scaffold', 'partition=dirichlet', 'alpha=0.3', 'rounds=30'),
  ),
  'fedadam': Setting(
    'quickstart.py',
    (
      'server.optimizer=adam',
      'server.learning_rate=0.01',
      'server.momentum=0.9',
      'rounds=30',
    ),
  ),
  'stragglers': Setting(
    'quickstart.py',
    (
      'straggler_fraction=0.3',
      'clock.examples_per_second=100',
      'clock.speed_spread=0.5',
      'clock.megabits_down=10',
      'clock.megabits_up=5',
      'clock.bandwidth_spread=0.5',
      'clock.deadline=2.0',
      'rounds=30',
    ),
  ),
  'streamed': Setting('quickstart.py', ('examples_on=host', 'rounds=30')),
  'sweep': Setting(
    'quickstart.py', ('rounds=20',), grid='client.learning_rate=0.05,0.1'
  ),
}


def run(
  setting: Setting, tree: checkout.Tree, workdir: pathlib.Path, data: str
) -> None:
  """Executes the command of a setting in a tree.

  Args:
    setting: the setting.
    tree: the tree with the code and the configs.
    workdir: a new folder for the results.
    data: the folder with mnist/.

  Raises:
    RuntimeError: the command fails.
  """
  main = ['fedavg_jax.main']
  if setting.grid:
    module = tree.first_module('fedavg_jax.cli.sweep', 'fedavg_jax.sweep')
    main = ['fedavg_jax', 'sweep'] if '.cli.' in module else [module]
    main.append(f'--grid={setting.grid}')
  options = list(setting.options)
  if setting.mnist:
    options.append(f'data_dir={pathlib.Path(data) / "mnist"}')
  process = subprocess.run(
    [
      *(sys.executable, '-m', *main, f'--workdir={workdir}'),
      f'--config={tree.folder / "configs" / setting.config}',
      *(f'--config.{option}' for option in options),
    ],
    cwd=tree.folder,
    env=tree.environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  if process.returncode:
    ended = lost_process.Ended(process.returncode, process.stderr)
    last = (ended.errors or ended.stderr.strip().splitlines() or [''])[-1]
    raise RuntimeError(f'fails in {tree.name} with code {ended.code}: {last}')


def runs_of(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the relative paths of the runs in a folder, '.' included."""
  paths = sorted(workdir.rglob('metrics.jsonl'))
  return [path.parent.relative_to(workdir) for path in paths]


def first_difference(
  workdirs: list[pathlib.Path], names: list[str]
) -> str | None:
  """Returns the first difference between two folders of the same setting.

  Args:
    workdirs: the folder of a run, or of a sweep, in each tree.
    names: the names of the trees.

  Returns:
    The line and key, or the array, with both values; None if they are equal.
  """
  first, second = map(runs_of, workdirs)
  if first != second or not first:
    return _both('runs', [[*map(str, first)], [*map(str, second)]], names)
  for run in first:
    where = '' if run == pathlib.Path() else f'{run}: '
    pair = [workdir / run for workdir in workdirs]
    difference = _lines_differ(pair, names) or _arrays_differ(pair, names)
    if difference:
      return where + difference
  return None


def _lines_differ(pair: list[pathlib.Path], names: list[str]) -> str | None:
  """Compares two metrics.jsonl as text, so that -0.0 differs from 0.0."""
  one, other = (
    (folder / 'metrics.jsonl').read_text().splitlines() for folder in pair
  )
  for number, lines in enumerate(zip(one, other, strict=False), 1):
    a, b = map(json.loads, lines)
    for key in dict.fromkeys([*a, *b]):
      values = [
        json.dumps(line[key]) if key in line else 'missing' for line in (a, b)
      ]
      if key != 'seconds' and values[0] != values[1]:
        return _both(f'line {number} of metrics.jsonl, {key}', values, names)
  if len(one) != len(other):
    return _both('lines of metrics.jsonl', [len(one), len(other)], names)
  return None


def _arrays_differ(pair: list[pathlib.Path], names: list[str]) -> str | None:
  """Compares the last checkpoints of two runs."""
  saved = [kill_settings.last_checkpoint(folder) for folder in pair]
  paths, others = ([*map('.'.join, each.metadata['paths'])] for each in saved)
  if paths != others:
    return _both('arrays of the checkpoint', [paths, others], names)
  for i, path in enumerate(paths):
    arrays = [each.leaves[i] for each in saved]
    kinds = [f'{array.dtype} {array.shape}' for array in arrays]
    if kinds[0] != kinds[1]:
      return _both(f'{path} of the checkpoint', kinds, names)
    if arrays[0].tobytes() != arrays[1].tobytes():
      a, b = (array.reshape(-1).tolist() for array in arrays)
      # Compared as text, 0.0 differs from -0.0, and NaN equals NaN.
      at = [j for j in range(len(a)) if repr(a[j]) != repr(b[j])] or [0]
      what = f'{path} of the checkpoint at {len(at)} of {len(a)} places'
      values = [a[at[0]], b[at[0]]]
      return _both(f'{what}, at place {at[0]}', values, names)
  return None


def _both(what: str, values: Sequence[Any], names: list[str]) -> str:
  """Returns a message with both values of a difference."""
  one, other = values
  return f'{what}: {one} in {names[0]}, {other} in {names[1]}'


def compare(name: str, trees: list[checkout.Tree], data: str) -> str | None:
  """Executes a setting in both trees; returns the first difference or None."""
  with tempfile.TemporaryDirectory() as temporary:
    workdirs = [pathlib.Path(temporary) / f'tree{i}' for i in range(2)]
    try:
      for tree, workdir in zip(trees, workdirs, strict=True):
        run(SETTINGS[name], tree, workdir, data)
    except RuntimeError as error:
      return str(error)
    return first_difference(workdirs, [tree.name for tree in trees])


def compare_all(
  settings: list[str], trees: list[checkout.Tree], data: str
) -> int:
  """Compares every setting and prints a line for each.

  Returns:
    The exit code: 1 if one differs or none was compared.
  """
  equal, skipped = 0, 0
  for name in settings:
    if SETTINGS[name].mnist and not (pathlib.Path(data) / 'mnist').is_dir():
      skipped += 1
      outcome = 'skipped: neither --data nor FEDAVG_DATA has a folder mnist/'
    elif (difference := compare(name, trees, data)) is None:
      equal += 1
      outcome = 'equal'
    else:
      outcome = f'DIFFERS: {difference}'
    print(f'{name}: {outcome}', flush=True)
  left_out = f', {skipped} skipped without MNIST' if skipped else ''
  compared = len(settings) - skipped
  print(
    f'{equal} / {compared} equal in {trees[0].name} and {trees[1].name}'
    f'{left_out}'
  )
  return int(equal < compared or not compared)


def main() -> None:
  """Compares two commits; the exit code is 1 if they differ, 2 on bad input."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('commit', help='a commit, such as HEAD~1')
  parser.add_argument(
    'other', nargs='?', help='another commit; default the working tree'
  )
  parser.add_argument(
    '--data', default='', help='folder with mnist/; default $FEDAVG_DATA'
  )
  parser.add_argument(
    '--settings',
    default=','.join(SETTINGS),
    help='names of settings, separated by commas; default all',
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)  # Silence the INFO lines of orbax.
  try:
    settings = args.settings.split(',')
    for name in settings:
      if name not in SETTINGS:
        raise InputError(
          f'--settings {name}: must be one of {", ".join(SETTINGS)}'
        )
    if args.data and not (pathlib.Path(args.data) / 'mnist').is_dir():
      raise InputError(f'--data {args.data}: has no folder mnist/')
    data = args.data or os.environ.get('FEDAVG_DATA') or '/nonexistent'
    data = os.path.abspath(data)
    with contextlib.ExitStack() as stack:
      trees = [stack.enter_context(checkout.checked_out(args.commit))]
      trees.append(
        stack.enter_context(checkout.checked_out(args.other))
        if args.other
        else checkout.here()
      )
      code = compare_all(settings, trees, data)
  except InputError as error:
    code = command.fail(error)
  sys.exit(code)


if __name__ == '__main__':
  main()
