"""Runs FedProx on MNIST with 90 % stragglers, as in Flower's baseline.

What the baseline claims (Flower, `baselines/fedprox`, after Li et al. 2020):
where nine of ten clients have no time for all their epochs, dropping them costs
much accuracy (FedAvg), using their partial work helps (mu = 0), and a proximal
term makes the result better and steadier (mu = 2).

What to look for: the order of the three curves, and how much each fluctuates.

python -m experiments.gallery.fedprox_stragglers --data FOLDER --seeds 3 \
  --out experiments/gallery/results/fedprox_stragglers.jsonl

The 1,000 clients have two labels each, in Flower's log-normal sizes, and train
on nine tenths of their examples; logistic regression, E = 10, B = 10, eta =
0.03, weight decay 0.001, 10 clients per round, 100 rounds. Each drawn client is
a straggler with probability 0.9 and then does 1 to 9 epochs. The reported
accuracy is the mean test accuracy of rounds 81 to 100.

It differs from the baseline in two respects: a client is weighted by its
examples, in the baseline by its minibatches, which are about a tenth as many;
and another random tenth of a client's examples is left out.

The file has a line per seed and setting; those that it has are not run again.
The curves of all lines are drawn to a picture next to the file.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.paper import cells
from experiments.paper import command
from experiments.paper import results
from experiments.paper import sweeps
import fedavg_jax as fa
from fedavg_jax.core import rules
from fedavg_jax.runs import provenance
from fedavg_jax.runs.plots import new_figure
from fedavg_jax.runs.progress import say

DEFAULT = pathlib.Path(__file__).parent / 'results' / 'fedprox_stragglers.jsonl'
CLIENTS, LABELS, LEAST = 1000, 2, 5  # Labels per client, examples per label.
ROUNDS, LAST, EPOCHS, RATE, DECAY = 100, 20, 10, 0.03, 1e-3
STRAGGLERS = 0.9
PARTITION_SEED = 42  # The baseline uses it in all its repetitions.


class Setting(NamedTuple):
  """Defines a curve of the figure.

  Attributes:
    name: the name of the curve.
    mu: the coefficient of the proximal term.
    stragglers: 'keep' or 'drop', as in `fa.Participation`.
    published: the accuracy in Flower's plot, rounds 81 to 100, read by eye.
  """

  name: str
  mu: float
  stragglers: str
  published: float


SETTINGS = (
  Setting('FedAvg, stragglers dropped', 0.0, 'drop', 0.63),
  Setting('FedProx, mu = 0', 0.0, 'keep', 0.75),
  Setting('FedProx, mu = 2', 2.0, 'keep', 0.85),
)


def divide(labels: np.ndarray, seed: int) -> list[np.ndarray]:
  """Divides examples among clients as Flower's partitioner does.

  Client i has the labels i and i + 1, modulo their number. Every client with a
  label gets 5 of its examples and a log-normal share of the remaining ones; a
  random client gets those that rounding leaves.

  Args:
    labels: integers, [n].
    seed: the seed of the shares.

  Returns:
    [K] arrays of row indices.
  """
  kinds = np.unique(labels)
  holders = CLIENTS * LABELS // len(kinds)
  shares = np.random.default_rng(seed).lognormal(0, 2, (len(kinds), holders))
  shares /= shares.sum(axis=1, keepdims=True)
  rng = np.random.default_rng(PARTITION_SEED)
  parts: list[list[np.ndarray]] = [[] for _ in range(CLIENTS)]
  for c, kind in enumerate(kinds):
    rows = np.flatnonzero(labels == kind)
    counts = LEAST + (shares[c] * (len(rows) - LEAST * holders)).astype(int)
    counts[rng.integers(holders)] += len(rows) - counts.sum()
    has = [k for k in range(CLIENTS) if (c - k) % len(kinds) < LABELS]
    for k, own in zip(has, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
      parts[k].append(own)
  return [np.concatenate(own) for own in parts]


def to_train_on(parts: list[np.ndarray]) -> list[np.ndarray]:
  """Returns nine tenths of each client's rows, drawn at random."""
  rng = np.random.default_rng(PARTITION_SEED)
  return [rng.permutation(rows)[: len(rows) * 9 // 10] for rows in parts]


def some_epochs(
  rng: np.random.Generator, work: fa.schedule.WorkContext
) -> np.ndarray:
  """Draws the local steps of each client; stragglers do 1 to E - 1 epochs."""
  number = len(work.clients)
  late = rng.random(number) < STRAGGLERS
  some = rng.integers(1, work.epochs, number)
  return np.where(late, some, work.epochs) * work.updates_per_epoch


def logistic_regression() -> fa.Model:
  """Returns logistic regression, 784 x 10, initialised as in PyTorch."""

  def init(key):
    weights, biases = jax.random.split(key)
    bound = 784**-0.5
    return {
      'w': jax.random.uniform(weights, (784, 10), minval=-bound, maxval=bound),
      'b': jax.random.uniform(biases, (10,), minval=-bound, maxval=bound),
    }

  def apply(params, x):
    x = x.astype(jnp.float32).reshape(len(x), -1) / 255
    return (x - 0.1307) / 0.3081 @ params['w'] + params['b'][None]

  return fa.Model('logistic_regression', init, apply)


def accuracies(dataset: fa.Dataset, setting: Setting, seed: int) -> np.ndarray:
  """Trains once; returns the test accuracy of rounds 0 to 100, [101]."""
  sgd = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))
  parts = to_train_on(divide(dataset.train.y, PARTITION_SEED))
  federation = fa.Federation(
    fa.build_clients(dataset.train, parts),
    dataset.test,
    client_fraction=0.01,
    epochs=EPOCHS,
    batch_size=10,
    participation=fa.Participation(
      completion=some_epochs, stragglers=setting.stragglers
    ),
    seed=seed,
  )
  simulation = fa.build_simulation(
    logistic_regression(),
    federation,
    fa.fedprox(setting.mu, sgd, optax.sgd(1.0)),
  )
  return fa.run(simulation, rounds=ROUNDS)['test_accuracy']


def end_of(curve: Sequence[float]) -> float:
  """Returns the mean accuracy of the last 20 rounds."""
  return float(np.mean(curve[-LAST:]))


def results_in(path: pathlib.Path) -> results.Lines:
  """Opens a file of results; lines of other experiments are ignored."""
  kinds = {'seed': int, 'setting': str, 'curve': list}

  def is_valid(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(k), kind) for k, kind in kinds.items())

  return results.Lines(path, is_valid, flag='--out')


def run_missing(
  store: results.Lines,
  seeds: int,
  train: Callable[[Setting, int], np.ndarray],
  beside: dict[str, Any],
) -> None:
  """Trains the settings and seeds that a file lacks, and appends their lines.

  Args:
    store: the file.
    seeds: the number of seeds, counted from 0.
    train: (setting, seed) -> test accuracies from round 0 on.
    beside: further entries of each line.
  """
  done = {(row['seed'], row['setting']) for row in store.rows}
  for seed in range(seeds):
    for setting in SETTINGS:
      if (seed, setting.name) in done:
        continue
      curve = [round(float(a), 4) for a in train(setting, seed)]
      row = {'setting': setting.name, 'seed': seed, 'rounds': ROUNDS}
      row |= {'accuracy': round(end_of(curve), 4), 'curve': curve}
      store.append([row | beside])
      say(f'{setting.name}, seed {seed}: {end_of(curve):.3f}')


def summarize(rows: Sequence[dict[str, Any]]) -> str:
  """Returns a table: our mean, each seed, and the value in Flower's plot."""
  lines = [
    '| setting | mean | seeds | plot |',
    '|---|---|---|---|',
  ]
  for setting in SETTINGS:
    ends = [end_of(r['curve']) for r in rows if r['setting'] == setting.name]
    if ends:
      each = ', '.join(f'{end:.3f}' for end in ends)
      lines.append(
        f'| {setting.name} | {np.mean(ends):.3f} | {each} |'
        f' {setting.published:.2f} |'
      )
  return '\n'.join(lines)


def draw(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Draws the mean curve of each setting, and the range of its seeds."""
  figure = new_figure(7, 4.5)
  axes = figure.subplots()
  for i, setting in enumerate(SETTINGS):
    curves = [r['curve'] for r in rows if r['setting'] == setting.name]
    if not curves:
      continue
    color, numbers = f'C{i}', np.arange(len(curves[0]))
    axes.fill_between(
      numbers,
      np.min(curves, axis=0),
      np.max(curves, axis=0),
      color=color,
      alpha=0.2,
      linewidth=0,
    )
    axes.plot(numbers, np.mean(curves, axis=0), color=color, label=setting.name)
    axes.plot(
      [ROUNDS - LAST, ROUNDS],
      [setting.published] * 2,
      color=color,
      linestyle='--',
      label=f"{setting.name}, Flower's plot: {setting.published:.2f}",
    )
  axes.set_xlabel('communication round')
  axes.set_ylabel('test accuracy')
  axes.set_title('MNIST, 1,000 clients, 90 % stragglers')
  axes.grid(alpha=0.3)
  axes.legend(loc='lower right', fontsize='small')
  figure.savefig(path, dpi=100)


def main() -> None:
  """Trains the settings that the file lacks, then draws and prints all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--seeds', type=int, default=3, help='number of seeds, counted from 0'
  )
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder with mnist/; default $FEDAVG_DATA; without it MNIST is'
    ' downloaded',
  )
  parser.add_argument('--out', type=pathlib.Path, default=DEFAULT)
  args = parser.parse_args()
  rules.check_whole('--seeds', args.seeds, 1)
  store = results_in(args.out)
  store.append([])  # Fails before any work where it cannot be written.
  fa.use_cpu_devices(0)
  beside = sweeps.beside_numbers(provenance.environment())
  dataset = cells.load('mnist', args.data)
  run_missing(
    store,
    args.seeds,
    lambda setting, seed: accuracies(dataset, setting, seed),
    beside,
  )
  draw(args.out.with_suffix('.png'), store.rows)
  print(summarize(store.rows))


if __name__ == '__main__':
  command.guarded(main)
