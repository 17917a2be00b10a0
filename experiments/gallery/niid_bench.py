"""Defines the cells of NIID-Bench (Li et al. 2022), as Flower reproduces it.

Ten clients with a LeNet train in every round: 50 rounds, E = 10, B = 64, SGD
with eta = 0.01, momentum 0.9 and weight decay 1e-5; a tenth of a client's
examples is left out. Images of CIFAR-10 are extended by four pixels, cropped at
random and mirrored at random. A number is the best test accuracy of all rounds.
The leaderboard of the benchmark's authors has 100 clients, a tenth of which
train in each of 500 rounds.
"""

from collections.abc import Iterator

import jax
import optax

from experiments.gallery import cell as cell_lib
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Published
from experiments.gallery.cell import Source
import fedavg_jax as fa
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.run_config import RunConfig

DECAY = 1e-5
ALGORITHMS = ('fedavg', 'scaffold', 'fedprox', 'fednova')
# Partition -> accuracy and deviation in percent of each algorithm.
_MNIST = {
  'iid': ((99.09, 0.05), (99.06, 0.15), (99.16, 0.04), (99.05, 0.06)),
  'dirichlet': ((98.89, 0.07), (99.07, 0.06), (99.02, 0.02), (98.03, 0.06)),
  '1_label': ((19.33, 11.82), (9.93, 0.12), (51.79, 26.75), (52.58, 14.08)),
  '2_labels': ((96.86, 0.30), (96.92, 0.52), (96.85, 0.15), (96.65, 0.39)),
  '3_labels': ((97.86, 0.34), (97.91, 0.10), (97.85, 0.06), (97.62, 0.07)),
}
_CIFAR10 = {
  'iid': ((71.32, 0.33), (71.66, 1.13)),
  'dirichlet': ((62.47, 0.43), (68.08, 0.96)),
  '2_labels': ((51.17, 1.09), (49.42, 2.18)),
}
# The authors' leaderboard, CIFAR-10 with 100 clients: means of three seeds.
_HUNDRED = {
  'iid': (65.6, 10.0),
  'dirichlet': (59.4, 10.0),
  '2_labels': (45.3, 10.0),
}
# Examples per second of training on one core of an AMD EPYC.
_SPEED = {'mnist': 7_500, 'cifar10': 2_000}

SOURCE = Source(
  key='niid_bench',
  title='NIID-Bench, ten clients',
  published="Flower's reproduction of Li et al. 2022, `baselines/niid_bench`:"
  ' mean and deviation over seeds, in percent.',
  inside='within two published deviations; no verdict where these exceed 5'
  ' points',
  differences='FedProx has mu = 0.01, the published number is that of the best'
  ' of four values. SCAFFOLD corrects each gradient, the baseline each step'
  ' after momentum, with control variates that momentum makes larger: the'
  ' corrections add up to the same.',
)
HUNDRED = Source(
  key='niid_bench_100',
  title='NIID-Bench, 100 clients, C = 0.1',
  published="The leaderboard of the benchmark's authors: means of three seeds,"
  ' in percent, without deviations.',
  inside='within one point',
  differences='A tenth of the examples is left out, as in the baseline of'
  ' Flower. The published 10.0 of SCAFFOLD is that of a guess; known faults of'
  ' its implementation are in docs/mistakes.md.',
)


def algorithm(config: RunConfig, *, kind: str) -> fa.Algorithm:
  """Builds an algorithm whose clients' SGD has momentum and weight decay.

  Args:
    config: the setting, for learning rate, momentum and mu.
    kind: one of `ALGORITHMS`.
  """
  local = config.client
  sgd = optax.sgd(local.learning_rate, momentum=local.momentum)
  one = optax.sgd(1.0)
  if kind == 'scaffold':
    plain = fa.scaffold(local.learning_rate, momentum=local.momentum)
  elif kind == 'fedprox':
    plain = fa.fedprox(local.proximal, sgd, one)
  elif kind == 'fednova':
    plain = fa.experimental.fednova(sgd, one)
  else:
    plain = fa.fedavg(sgd, one)
  return with_decay(plain, DECAY)


def with_decay(plain: fa.Algorithm, decay: float) -> fa.Algorithm:
  """Adds the gradient of `decay / 2 * |x|^2` to every local gradient."""
  inner = optax.with_extra_args_support(plain.client_optimizer)

  def update(updates, state, params=None, **extra):
    updates = jax.tree.map(lambda g, x: g + decay * x, updates, params)
    return inner.update(updates, state, params, **extra)

  optimizer = optax.GradientTransformationExtraArgs(inner.init, update)
  return plain._replace(client_optimizer=optimizer)


def setting(
  dataset: str, partition: str, kind: str, *, clients: int = 10
) -> RunConfig:
  """Returns the setting of a cell.

  Args:
    dataset: 'mnist' or 'cifar10'.
    partition: a key of the published tables.
    kind: one of `ALGORITHMS`.
    clients: K; with 100, a tenth of them train in each of 500 rounds.
  """
  labels = partition.partition('_')[0]
  return RunConfig(
    dataset=dataset,
    model='experiments.gallery.lenet:lenet',
    algorithm='experiments.gallery.niid_bench:algorithm',
    options={
      'model': {'augment': dataset == 'cifar10'},
      'algorithm': {'kind': kind},
    },
    num_clients=clients,
    self_balancing=True,
    alpha=0.5,
    holdout_fraction=0.1,
    client_fraction=1.0 if clients == 10 else 0.1,
    rounds=50 if clients == 10 else 500,
    client=ClientConfig(
      epochs=10, batch_size=64, learning_rate=0.01, momentum=0.9, proximal=0.01
    ),
    partition='pathological' if labels.isdigit() else partition,
    classes_per_client=int(labels) if labels.isdigit() else 2,
    class_assignment='first_deterministic',
  )


def _cells() -> Iterator[Cell]:
  for dataset, table in (('mnist', _MNIST), ('cifar10', _CIFAR10)):
    for partition, row in table.items():
      for kind, (mean, deviation) in zip(ALGORITHMS, row, strict=False):
        published = Published(mean / 100, deviation / 100)
        yield _cell(SOURCE, dataset, partition, kind, published)
  for partition, means in _HUNDRED.items():
    for kind, mean in zip(ALGORITHMS, means, strict=False):
      yield _cell(HUNDRED, 'cifar10', partition, kind, Published(mean / 100))


def _cell(source, dataset, partition, kind, published) -> Cell:
  clients = 100 if source is HUNDRED else 10
  config = setting(dataset, partition, kind, clients=clients)
  examples = 54_000 if dataset == 'mnist' else 45_000
  steps = examples * config.client_fraction * config.client.epochs
  return Cell(
    f'{source.key}/{dataset}/{partition}/{kind}',
    source,
    config,
    cell_lib.BEST,
    minutes=steps * config.rounds / _SPEED[dataset] / 60,
    published=published,
  )


CELLS = tuple(_cells())
