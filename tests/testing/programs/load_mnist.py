"""Loads MNIST from the download folder; prints its size and heavy imports."""

import sys

from fedavg_jax.data import catalog

print(len(catalog.load_dataset('mnist').train.y))
heavy = ('tqdm', 'tensorflow_datasets', 'matplotlib', 'urllib.request', 'jax')
print([name for name in heavy if name in sys.modules])
