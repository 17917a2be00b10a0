"""Prints statistics of every federation: clients, examples and their spread.

What the paper claims: MNIST and CIFAR-10 are partitioned evenly; Shakespeare's
roles are natural clients with one line to thousands of lines, 1,146 roles with
3,564,579 training and 870,014 test characters.

What to look for: the ratio of the largest client to the median, which is the
cost of padding that lanes avoid.

python -m experiments.paper.federations --data FOLDER

FOLDER contains any of mnist/, qmnist_writers/, cifar-10-batches-bin/,
shakespeare/, femnist_leaf/ and words/, each in the form that
`fedavg_jax.load_dataset` reads; missing ones are reported and left out. It
takes ten seconds.
"""

import argparse
import os
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.paper import cells
from experiments.paper import command
from experiments.paper import figures
import fedavg_jax as fa
from fedavg_jax.runs.plots import new_figure
from fedavg_jax.runs.progress import say


class Federation(NamedTuple):
  """Describes a data set and its partition.

  Attributes:
    name: the name in the table and the picture.
    dataset: a key of `cells.DATASETS`.
    partition: 'iid' or 'noniid', which is by owner if the data have owners.
  """

  name: str
  dataset: str
  partition: str


FEDERATIONS = (
  Federation('MNIST, IID', 'mnist', 'iid'),
  Federation('MNIST, two digits per client', 'mnist', 'noniid'),
  Federation('MNIST, by writer', 'mnist_writers', 'noniid'),
  Federation('CIFAR-10, IID', 'cifar10', 'iid'),
  Federation('Shakespeare, IID', 'shakespeare', 'iid'),
  Federation('Shakespeare, by role', 'shakespeare', 'noniid'),
  Federation('FEMNIST (LEAF), by writer', 'leaf', 'noniid'),
  Federation('words, by author', 'words', 'noniid'),
)


def sizes(federation: Federation, dataset: fa.Dataset) -> np.ndarray:
  """Returns the number of training examples of every client, [K]."""
  parts = cells.divide(federation.partition, dataset, seed=0)
  return np.array([len(part) for part in parts])


def line(name: str, counts: np.ndarray, dataset: fa.Dataset) -> str:
  """Returns a row of the table, in Markdown.

  Args:
    name: the name of the federation.
    counts: the number of training examples of every client, [K].
    dataset: the data set.
  """
  labels = ['', '']
  if dataset.train.y.ndim > 1:
    labels = [f'{(e.y >= 0).sum():,}' for e in (dataset.train, dataset.test)]
  few, median, many = np.quantile(counts, (0.1, 0.5, 0.9))
  return (
    f'| {name} | {len(counts):,} | {counts.sum():,} | {labels[0]} |'
    f' {len(dataset.test.y):,} | {labels[1]} | {counts.min()} | {few:.4g} |'
    f' {median:.4g} | {counts.mean():.4g} | {many:.4g} | {counts.max():,} |'
  )


HEADER = (
  '| federation | clients | training examples | tokens | test examples | tokens'
  ' | min | 10 % | median | mean | 90 % | max |\n' + '|' + '---|' * 12
)


def draw(path: pathlib.Path, found: dict[str, np.ndarray]) -> None:
  """Draws a histogram of client sizes for every federation, on a log axis."""
  columns, most = 2, max(counts.max() for counts in found.values())
  rows = -(-len(found) // columns)
  figure = new_figure(11, 2.4 * rows)
  panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False).ravel())
  for axes in panels[len(found) :]:
    axes.axis('off')
  for axes, (name, counts) in zip(panels, found.items(), strict=False):
    axes.hist(counts, np.geomspace(0.9, 1.1 * most, 60), color='#1f5f99')
    axes.set_xscale('log')
    axes.axvline(np.median(counts), color='#b8541a', label='median')
    axes.set_title(f'{name}: {len(counts):,} clients', fontsize=10)
    axes.set_xlabel('training examples per client')
    axes.set_ylabel('clients')
    axes.legend(fontsize=8)
  figure.savefig(path, dpi=100)


def main() -> None:
  """Prints the table and draws the picture of the available data sets."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder of the data sets; default $FEDAVG_DATA',
  )
  parser.add_argument(
    '--picture',
    type=pathlib.Path,
    default=figures.PICTURES / 'federations.png',
    help='file of the picture',
  )
  args = parser.parse_args()
  if not args.data:
    raise fa.InputError('--data: must be a folder with data sets')
  found, lines = {}, [HEADER]
  for federation in FEDERATIONS:
    try:
      dataset = cells.load(federation.dataset, args.data)
    except fa.InputError as error:
      say(f'{federation.name} is left out: {error}')
      continue
    found[federation.name] = sizes(federation, dataset)
    lines.append(line(federation.name, found[federation.name], dataset))
  if not found:
    raise fa.InputError(f'--data {args.data}: contains no data set')
  print('\n'.join(lines))
  draw(args.picture, found)
  say(f'saved {args.picture}')


if __name__ == '__main__':
  command.guarded(main)
