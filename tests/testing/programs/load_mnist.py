"""Loads MNIST from the download folder; prints its size and heavy imports."""

import sys

from fedavg_jax.data import catalog

print(len(catalog.load_dataset('mnist').train.y))
heavy = ('tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'jax')
print([name for name in heavy if name in sys.modules])
