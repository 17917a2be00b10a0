"""Runs FedAvg with FedJAX's own algorithm, model and client sampler.

FedJAX trains on full batches only: it fills up a client's last batch with
examples drawn again.

python worker.py WORKLOAD
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from importlib import metadata  # noqa: E402

import fedjax  # noqa: E402
import haiku as hk  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import protocol  # noqa: E402


def forward(workload):
  """Returns the workload's model in haiku."""

  def cnn(batch):
    x = batch['x']
    for features in (32, 64):
      x = jax.nn.relu(hk.Conv2D(features, 5, padding='SAME')(x))
      x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    x = jax.nn.relu(hk.Linear(512)(hk.Flatten()(x)))
    return hk.Linear(10)(x)

  def simple_cnn(batch):
    x = batch['x']
    for features in (32, 64):
      x = jax.nn.relu(hk.Conv2D(features, 3, padding='VALID')(x))
    x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    return hk.Linear(10)(jax.nn.relu(hk.Linear(128)(hk.Flatten()(x))))

  def two_hidden_layers(batch):
    x = hk.Flatten()(batch['x'])
    return hk.Linear(10)(hk.nets.MLP([200, 200], activate_final=True)(x))

  def logistic_regression(batch):
    return hk.Linear(10)(hk.Flatten()(batch['x']))

  return {
    'cnn': cnn,
    'simple_cnn': simple_cnn,
    '2nn': two_hidden_layers,
    'lr': logistic_regression,
  }[workload['model']]


def main() -> None:
  """Builds the federation, then runs the requested rounds."""
  workload = protocol.workload()
  rng = np.random.default_rng(0)
  data = fedjax.InMemoryFederatedData(
    {
      b'%d' % k: {
        'x': rng.random((n, *workload['shape']), np.float32),
        'y': rng.integers(0, workload['classes'], n).astype(np.int32),
      }
      for k, n in enumerate(workload['sizes'])
    }
  )
  model = fedjax.create_model_from_haiku(
    transformed_forward_pass=hk.transform(forward(workload)),
    sample_batch={
      'x': np.zeros((1, *workload['shape']), np.float32),
      'y': np.zeros(1, np.int32),
    },
    train_loss=lambda batch, logits: (
      fedjax.metrics.unreduced_cross_entropy_loss(batch['y'], logits)
    ),
  )
  algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model),
    client_optimizer=fedjax.optimizers.sgd(workload['learning_rate']),
    server_optimizer=fedjax.optimizers.sgd(1.0),
    client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
      batch_size=workload['batch'], num_epochs=workload['epochs']
    ),
  )
  sampler = fedjax.client_samplers.UniformGetClientSampler(
    data, num_clients=workload['cohort'], seed=0
  )
  state = algorithm.init(model.init(jax.random.PRNGKey(0)))

  def run_rounds(rounds: int) -> None:
    nonlocal state
    for _ in range(rounds):
      state, _ = algorithm.apply(state, sampler.sample())
    jax.block_until_ready(state.params)

  protocol.serve(
    run_rounds,
    versions={'fedjax': metadata.version('fedjax'), 'jax': jax.__version__},
    device=jax.devices()[0].device_kind,
  )


if __name__ == '__main__':
  main()
