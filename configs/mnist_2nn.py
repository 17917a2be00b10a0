"""The paper's 2NN on MNIST, Table 1, E = 1, B = 10, C = 0.1, to 97 %.

The paper needs 87 and 92 rounds IID, 664 and 831 non-IID. Seen here with seed
0: 50 and 244; with --config.client.learning_rate=0.215: 35 and 175. 0.03 s a
round on two CPU cores.

python -m fedavg_jax.main --config configs/mnist_2nn.py
python -m fedavg_jax.main --config configs/mnist_2nn.py:noniid
"""

import ml_collections

import fedavg_jax as fa


def get_config(partition: str = 'iid') -> ml_collections.ConfigDict:
  """Returns the setting; `partition` is 'iid' or 'noniid'."""
  if partition not in ('iid', 'noniid'):
    raise ValueError(f':{partition} is not a federation; use :iid or :noniid')
  config = fa.default_config()
  config.dataset = 'mnist'
  config.model = '2nn'
  config.partition = 'iid' if partition == 'iid' else 'shards'
  config.num_clients = 100  # K
  config.client_fraction = 0.1  # C
  config.client.epochs = 1  # E
  config.client.batch_size = 10  # B
  config.rounds = 2000
  config.target_accuracy = 0.97
  return config
