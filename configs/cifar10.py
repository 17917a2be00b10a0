"""Trains on CIFAR-10 to 80 %: Table 3, Figure 4, E = 5, B = 50, C = 0.1.

The network is that of TensorFlow's tutorial, on random crops of 24 x 24. The
paper needs 280 rounds to 80 %, 2,000 to 85 %. It decays the learning rate by
0.99 "per round", which would have stopped learning long before that; this
config decays it every 10 rounds, which is a guess. We have not run it to the
end.

python -m fedavg_jax.main --config configs/cifar10.py
python -m fedavg_jax.main --config configs/cifar10.py \
  --config.data_dir=cifar-10-batches-bin
"""

import ml_collections

import fedavg_jax as fa


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = fa.default_config()
  config.dataset = 'cifar10'
  config.pixels = 'image'
  config.augmentation = 'tutorial'
  config.model = 'cifar_cnn'
  config.partition = 'iid'
  config.num_clients = 100  # K
  config.client_fraction = 0.1  # C
  config.client.epochs = 5  # E
  config.client.batch_size = 50  # B
  config.client.learning_rate = 0.15
  config.client.decay = 0.99
  config.client.decay_rounds = 10
  config.rounds = 3000
  config.target_accuracy = 0.8
  return config
