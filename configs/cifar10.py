"""CIFAR-10, Table 3 and Figure 4: FedAvg with E = 5, B = 50, C = 0.1, to 80 %.

TensorFlow's tutorial network on random crops of 24 x 24. The paper needs 280
rounds to 80 %, 2,000 to 85 %. It decays the rate by 0.99 "per round", which
would have ended learning long before; here every 10 rounds, which is a guess.
Not run to the end here.

python -m fedavg_jax.main --config configs/cifar10.py
python -m fedavg_jax.main --config configs/cifar10.py \
  --config.data_dir=cifar-10-batches-bin
"""

import ml_collections

import fedavg_jax as fa


def get_config() -> ml_collections.ConfigDict:
  """Returns the setting."""
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
