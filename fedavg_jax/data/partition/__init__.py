"""Partitions a data set into K clients. NumPy only, seeded.

A partition is a list of K index arrays; every example is in exactly one of
them, except that `few_labels` may leave some examples out. Sources: McMahan et
al. 2017, section 3 (`iid`, `shards`); Hsu et al. 2019 (`dirichlet`); Acar et
al. 2021 (`inner_dirichlet`); Li et al. 2020 (`few_labels`). Names and meanings
follow Flower Datasets; its Linear-, Square-, Exponential- and SizePartitioner
are laws of `sizes` here, for all partitions that take sizes. The random draws
differ from Flower's, and partitions of all examples assign every class to at
least one client.

`fedavg-jax partition NAME` prints and plots the partition of a config.
"""

from fedavg_jax.data.partition.any_data import by_owner
from fedavg_jax.data.partition.any_data import hold_out
from fedavg_jax.data.partition.any_data import iid
from fedavg_jax.data.partition.any_data import label_counts
from fedavg_jax.data.partition.by_label import dirichlet
from fedavg_jax.data.partition.by_label import inner_dirichlet
from fedavg_jax.data.partition.by_label import pathological
from fedavg_jax.data.partition.by_label import shards
from fedavg_jax.data.partition.few_labels import few_labels
from fedavg_jax.data.partition.sizes import sizes

__all__ = [
  'by_owner',
  'dirichlet',
  'few_labels',
  'hold_out',
  'iid',
  'inner_dirichlet',
  'label_counts',
  'pathological',
  'shards',
  'sizes',
]
