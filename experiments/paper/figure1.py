"""Reproduces Figure 1: the loss between two models, by their initialisation.

What the paper claims: two 2NNs are trained on disjoint sets of 600 digits until
they overfit. Their average is far worse than either of them if they started
from different weights, and better than both if they started from the same.

What to look for: on the left a hill between theta = 0 and 1, on the right a
valley below the horizontal line, which is the loss of the better parent.

python -m experiments.paper.figure1
python -m experiments.paper.figure1 --seeds 0,1,2

Each model takes 240 updates with B = 50 and the learning rate 0.1; the loss is
that of all 60,000 training images, at 50 values of theta. It takes 20 seconds
on two CPU cores.
"""

import argparse
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.paper import cells
from experiments.paper import command
from experiments.paper import figures
from experiments.paper import results
from experiments.paper import sweeps
import fedavg_jax as fa
from fedavg_jax.contracts import task as tasks
from fedavg_jax.engine import evaluation
from fedavg_jax.runs import provenance
from fedavg_jax.runs.plots import new_figure
from fedavg_jax.runs.progress import say

EXAMPLES, EPOCHS, BATCH, RATE = 600, 20, 50, 0.1
THETAS = np.linspace(-0.2, 1.2, 50)
RESULTS = figures.PICTURES / 'figure1.jsonl'


def parents(dataset: fa.Dataset, seed: int, *, shared: bool) -> list[Any]:
  """Trains two models, each on one client with 600 other examples.

  Args:
    dataset: MNIST.
    seed: the seed of the two disjoint samples and of the initial weights.
    shared: whether both start from the same weights.

  Returns:
    The parameters of both models.
  """
  order = np.random.default_rng(seed).permutation(len(dataset.train.y))
  samples = np.split(order[: 2 * EXAMPLES], 2)
  trained = []
  for number, sample in enumerate(samples):
    federation = fa.Federation(
      fa.build_clients(dataset.train, [sample]),
      dataset.test,
      client_fraction=1.0,
      epochs=EPOCHS,
      batch_size=BATCH,
      seed=2 * seed if shared else 2 * seed + number,
    )
    simulation = fa.build_simulation(
      fa.build_model('2nn', dataset),
      federation,
      fa.fedavg(optax.sgd(RATE), optax.sgd(1.0)),
    )
    *_, record = fa.simulate(simulation, rounds=1, eval_every=1)
    assert record.state is not None
    trained.append(jax.device_get(record.state.params))
  return trained


def losses(dataset: fa.Dataset, models: list[Any]) -> np.ndarray:
  """Returns the training loss of theta w + (1 - theta) w' for each theta, [50].

  Args:
    dataset: MNIST.
    models: the parameters w and w'.
  """
  model = fa.build_model('2nn', dataset)
  mesh = fa.engine.lane_mesh(jax.devices())
  train = evaluation.place_test_set(dataset.train, mesh)
  task = tasks.make_task(model)
  measure = evaluation.build_evaluate(task, mesh)

  @jax.jit
  def between(w, other, theta):
    return jax.tree.map(lambda a, b: theta * a + (1 - theta) * b, w, other)

  return np.array(
    [
      tasks.results(task, measure(between(*models, theta), train))['loss']
      for theta in map(jnp.float32, THETAS)
    ]
  )


def draw(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Draws both panels: a curve for every seed, and the paper's curve."""
  figure = new_figure(11, 4.5)
  names = {
    False: ('different initialisation', 'fig1_left_diff_init.csv'),
    True: ('shared initialisation', 'fig1_right_shared_init.csv'),
  }
  for axes, (shared, (title, paper)) in zip(
    figure.subplots(1, 2), names.items(), strict=True
  ):
    for i, row in enumerate(row for row in rows if row['shared'] == shared):
      label = f'ours, seed {row["seed"]}'
      axes.plot(row['thetas'], row['losses'], color=f'C{i}', label=label)
      axes.axhline(min(row['parents']), color=f'C{i}', linewidth=0.6)
    ((x, y),) = figures.read_paper(paper).values()
    axes.plot(x, y, 'x:', color='0.3', markersize=3, label='the paper')
    axes.set_title(title)
    axes.set_xlabel('theta')
    axes.set_ylabel('loss on all training images')
    axes.grid(alpha=0.3)
    axes.legend()
  figure.savefig(path, dpi=110)


def summarize(rows: list[dict[str, Any]]) -> str:
  """Returns a table of losses with the paper's numbers, in Markdown."""
  lines = [
    '| initialisation | seed | parents | theta = 0.5 | minimum, at theta |',
    '|---|---|---|---|---|',
    '| different, the paper | | 0.482, 0.453 | 1.256 | 0.431 at 0.91 |',
    '| shared, the paper | | 0.462, 0.460 | 0.40 | 0.399 at 0.51 |',
  ]
  for row in rows:
    least = int(np.argmin(row['losses']))
    middle = np.interp(0.5, row['thetas'], row['losses'])
    lines.append(
      f'| {"shared" if row["shared"] else "different"} | {row["seed"]} |'
      f' {row["parents"][0]:.3f}, {row["parents"][1]:.3f} | {middle:.3f} |'
      f' {row["losses"][least]:.3f} at {row["thetas"][least]:.2f} |'
    )
  return '\n'.join(lines)


def results_in(path: pathlib.Path) -> results.Lines:
  """Opens a file of results; rows of other experiments are not used."""
  kinds = {'seed': int, 'shared': bool, 'losses': list, 'thetas': list}
  kinds |= {'parents': list}
  return results.Lines(
    path,
    lambda row: all(isinstance(row.get(k), kind) for k, kind in kinds.items()),
  )


def main() -> None:
  """Computes the rows that the file of results lacks, then draws all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seeds', default='0,1,2', help='seeds, such as 0,1,2')
  parser.add_argument(
    '--data',
    default=os.environ.get('FEDAVG_DATA', ''),
    help='folder with mnist/; default $FEDAVG_DATA; without it MNIST is'
    ' downloaded',
  )
  parser.add_argument(
    '--results',
    type=pathlib.Path,
    default=RESULTS,
    help='file of the results, JSON lines',
  )
  parser.add_argument(
    '--picture',
    type=pathlib.Path,
    default=figures.PICTURES / 'figure1.png',
    help='file of the picture',
  )
  args = parser.parse_args()
  store = results_in(args.results)
  done = {(row['seed'], row['shared']) for row in store.rows}
  fa.use_cpu_devices(0)
  for seed in command.numbers_from_zero('--seeds', args.seeds):
    for shared in (False, True):
      if (seed, shared) in done:
        continue
      dataset = cells.load('mnist', args.data)
      models = parents(dataset, seed, shared=shared)
      found = losses(dataset, models)
      row = {
        'figure': 1,
        'seed': seed,
        'shared': shared,
        'thetas': [round(float(theta), 4) for theta in THETAS],
        'losses': [round(float(loss), 5) for loss in found],
        'parents': [
          round(float(np.interp(theta, THETAS, found)), 5) for theta in (1, 0)
        ],
        **sweeps.beside_numbers(provenance.environment()),
      }
      store.append([row])
  draw(args.picture, store.rows)
  print(summarize(store.rows))
  say(f'saved {args.picture}')


if __name__ == '__main__':
  command.guarded(main)
