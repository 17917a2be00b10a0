"""Reads files into arrays, and partitions them into clients. NumPy only."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from fedavg_jax.data.readers import read_cifar10
  from fedavg_jax.data.readers import read_leaf
  from fedavg_jax.data.tables import Columns
  from fedavg_jax.data.texts import read_authors
  from fedavg_jax.data.texts import read_complete_works
  from fedavg_jax.data.texts import read_play

__all__ = [
  'Columns',
  'read_authors',
  'read_cifar10',
  'read_complete_works',
  'read_leaf',
  'read_play',
]
