"""Defines the cells on the synthetic data of FedProx (Li et al. 2020).

Thirty devices have log-normal numbers of examples and each its own labels and
inputs; `data` has the recipe. Softmax regression, 10 devices per round, E = 20,
B = 10, eta = 0.01, 200 rounds. A fraction of the devices of a round are
stragglers, which do 1 to 19 epochs; they are dropped (FedAvg) or their work is
kept (FedProx, with mu = 0 or 1).

The paper prints curves of three quantities, all measured on the global model w:
the loss on the training examples of all devices, the accuracy on the test
examples of all devices, and the dissimilarity of the devices' gradients,

    mean over k of |grad F_k(w) - grad f(w)|^2,    grad f = sum n_k grad F_k / n

with F_k the mean loss on the n_k training examples of device k. The gradient of
softmax regression is a sum over examples, so that `measures` is a metric: its
examples are those of training and test together, the first with their device.

Shape letters: K devices; F features; C classes; n examples; B rows of a batch.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gallery import cell as cell_lib
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Claim
from experiments.gallery.cell import Source
import fedavg_jax as fa
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.run_config import RunConfig

DEVICES, FEATURES, CLASSES = 30, 60, 10
# Name -> alpha (the spread of the models) and beta (that of the inputs).
DATA = {
  'iid': (0.0, 0.0),
  '0_0': (0.0, 0.0),
  '0.5_0.5': (0.5, 0.5),
  '1_1': (1.0, 1.0),
}
STRAGGLERS = (0.0, 0.5, 0.9)
_TEST = -1  # In the last column of x, in place of a device.

CLAIMS = (
  *(
    Claim(
      f'Figure 1: with {stragglers} % stragglers on (1, 1), {more} leaves a'
      f' lower training loss than {less}',
      'training_loss',
      f'1_1/stragglers_{stragglers}/{lower}',
      f'1_1/stragglers_{stragglers}/{higher}',
    )
    for stragglers in (50, 90)
    for more, less, lower, higher in (
      ('keeping their work', 'dropping them', 'mu_0', 'dropped'),
      ('mu = 1', 'mu = 0', 'mu_1', 'mu_0'),
    )
  ),
  *(
    Claim(
      f'Figure 2: on ({name.replace("_", ", ")}) without stragglers, mu = 1'
      f' leaves {what} than mu = 0',
      curve,
      f'{name}/stragglers_0/mu_1',
      f'{name}/stragglers_0/mu_0',
    )
    for name in ('0_0', '0.5_0.5', '1_1')
    for curve, what in (
      ('training_loss', 'a lower training loss'),
      ('dissimilarity', 'less dissimilar gradients'),
    )
  ),
  Claim(
    'Figure 2: on IID data mu = 1 is slower than mu = 0',
    'training_loss',
    'iid/stragglers_0/mu_0',
    'iid/stragglers_0/mu_1',
  ),
)
SOURCE = Source(
  key='fedprox_synthetic',
  title='FedProx, synthetic data',
  published='Li et al. 2020, Figures 1 and 2: curves, without numbers. What'
  ' they show is restated from memory.',
  inside='what a figure shows is so in every seed, in the mean of the last 20'
  ' rounds',
  differences='The data of a seed are drawn anew by the published recipe; the'
  " paper has one draw. The authors' code applies the same permutation to a"
  " device's examples before each epoch, ours draws a new one.",
  claims=CLAIMS,
)


def data(*, alpha: float, beta: float, iid: bool, seed: int) -> fa.Dataset:
  """Draws synthetic(alpha, beta), Li et al. 2020, section 5.1.

    y = argmax(W_k x + b_k),  W_k, b_k ~ N(u_k, 1),  u_k ~ N(0, alpha)
    x ~ N(v_k, diag(j^-1.2)),  v_k ~ N(B_k, 1),      B_k ~ N(0, beta)

  with standard deviations alpha and beta, as in the authors' code. A device has
  int(exp(z)) + 50 examples, z ~ N(4, 2); a tenth of them, rounded up, is for
  tests.

  Args:
    alpha: the deviation of u_k.
    beta: the deviation of B_k.
    iid: whether all devices have one model and v_k = 0.
    seed: the seed of all draws.

  Returns:
    A data set with K natural clients; x [n, F + 1] has the device in its last
    column, and `test` has the examples of training too.
  """
  rng = np.random.default_rng(seed)
  sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
  deviations = np.arange(1, FEATURES + 1) ** -0.6
  common = rng.normal(size=(FEATURES + 1, CLASSES))
  train, test = [], []
  for device, size in enumerate(sizes):
    model, center = common, np.zeros(FEATURES)
    if not iid:
      model = rng.normal(rng.normal(0, alpha), 1, (FEATURES + 1, CLASSES))
      center = rng.normal(rng.normal(0, beta), 1, FEATURES)
    x = center + deviations * rng.normal(size=(size, FEATURES))
    y = (x @ model[:-1] + model[-1]).argmax(axis=1)
    cut = int(0.9 * size)
    for part, rows, owner in (
      (train, slice(cut), device),
      (test, slice(cut, None), _TEST),
    ):
      tagged = np.pad(x[rows], ((0, 0), (0, 1)), constant_values=owner)
      part.append(fa.Examples(tagged.astype(np.float32), y[rows]))
  examples = fa.Examples(*_joined(train))
  return fa.Dataset(
    f'synthetic_{"iid" if iid else f"{alpha:g}_{beta:g}"}',
    examples,
    fa.Examples(*_joined(train + test)),
    num_classes=CLASSES,
    max_value=1.0,
    owners=np.repeat(
      np.arange(DEVICES, dtype=np.int32), [len(p.y) for p in train]
    ),
  )


def _joined(parts) -> tuple[np.ndarray, np.ndarray]:
  x = np.concatenate([part.x for part in parts])
  return x, np.concatenate([part.y for part in parts]).astype(np.int32)


def regression(dataset: fa.Dataset) -> fa.Model:
  """Builds softmax regression, Glorot uniform; it ignores the last column."""
  del dataset
  bound = (6 / (FEATURES + CLASSES)) ** 0.5

  def init(key):
    shape = (FEATURES, CLASSES)
    return {
      'w': jax.random.uniform(key, shape, minval=-bound, maxval=bound),
      'b': jnp.zeros(CLASSES),
    }

  def apply(params, x):
    return x[:, :FEATURES] @ params['w'] + params['b'][None]

  return fa.Model('softmax_regression', init, apply)


def measures(dataset: fa.Dataset) -> fa.Metric:
  """Builds the metric of test accuracy, training loss and dissimilarity."""
  del dataset

  def rows(logits, batch):
    device = batch.x[:, FEATURES].astype(jnp.int32)
    of_device = jax.nn.one_hot(device, DEVICES)  # [B, K], 0 for the test.
    logs = jax.nn.log_softmax(logits)
    labels = jax.nn.one_hot(batch.y, CLASSES)
    inputs = batch.x.at[:, FEATURES].set(1.0)  # The bias is the last weight.
    errors = jnp.exp(logs) - labels
    gradients = inputs[:, :, None] * errors[:, None, :]  # [B, F + 1, C]
    is_test = device == _TEST
    correct = is_test & (jnp.argmax(logits, axis=1) == batch.y)
    return {
      'tested': is_test.astype(jnp.float32),
      'correct': correct.astype(jnp.float32),
      'loss': jnp.where(is_test, 0.0, -jnp.sum(logs * labels, axis=1)),
      'examples': of_device,
      'gradients': of_device[:, :, None, None] * gradients[:, None],
    }

  return fa.Metric(rows, of_sums)


def of_sums(sums: dict[str, Any]) -> dict[str, Any]:
  """Returns accuracy, training loss and dissimilarity from sums.

  Args:
    sums: 'tested', 'correct' and 'loss' [], 'examples' [K] and 'gradients' [K,
      F + 1, C], the sums over examples.
  """
  number = sums['examples']
  mean = sums['gradients'].sum(axis=0) / number.sum()
  of_device = sums['gradients'] / number[:, None, None]
  return {
    'accuracy': sums['correct'] / sums['tested'],
    'training_loss': sums['loss'] / number.sum(),
    'dissimilarity': ((of_device - mean) ** 2).sum(axis=(1, 2)).mean(),
  }


def setting(
  name: str, stragglers: float, mu: float, *, drop: bool
) -> RunConfig:
  """Returns the setting of a cell.

  Args:
    name: a key of `DATA`.
    stragglers: the fraction of a cohort that are stragglers.
    mu: the weight of the proximal term.
    drop: whether the work of stragglers is left out.
  """
  alpha, beta = DATA[name]
  return RunConfig(
    dataset='experiments.gallery.fedprox_synthetic:data',
    model='experiments.gallery.fedprox_synthetic:regression',
    metrics='experiments.gallery.fedprox_synthetic:measures',
    options={
      'dataset': {'alpha': alpha, 'beta': beta, 'iid': name == 'iid', 'seed': 0}
    },
    partition='natural',
    num_clients=0,
    client_fraction=10 / DEVICES,
    algorithm='fedprox',
    straggler_fraction=stragglers,
    straggler_work='epochs',
    stragglers='drop' if drop else 'keep',
    rounds=200,
    client=ClientConfig(
      epochs=20, batch_size=10, learning_rate=0.01, proximal=mu
    ),
  )


def _cells() -> Iterator[Cell]:
  for name in DATA:
    for stragglers in STRAGGLERS:
      for mu, drop in ((0.0, True), (0.0, False), (1.0, False)):
        if drop and not stragglers:
          continue  # Without stragglers there is nothing to drop.
        kind = 'dropped' if drop else f'mu_{mu:g}'
        yield Cell(
          f'{SOURCE.key}/{name}/stragglers_{100 * stragglers:g}/{kind}',
          SOURCE,
          setting(name, stragglers, mu, drop=drop),
          cell_lib.mean_of_last(20),
          minutes=1.0,
        )


CELLS = tuple(_cells())
