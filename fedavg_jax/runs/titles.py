"""Describes a config in one line, for the first line of a run and figures."""

from fedavg_jax.core import choices
from fedavg_jax.core import references
from fedavg_jax.runs.run_config import RunConfig


def describe(cfg: RunConfig) -> str:
  """Returns one line that describes a config, with the paper's letters."""
  local = cfg.client
  algorithm = f'{references.short(cfg.algorithm)}, '
  if cfg.algorithm == 'fedavg':
    algorithm = ''
  return (
    f'{algorithm}{references.short(cfg.model)} on'
    f' {references.short(cfg.dataset)},'
    f' {partition_name(cfg)}: K={cfg.num_clients or "natural"}'
    f' C={cfg.client_fraction:g}'
    f' E={local.epochs} B={local.batch_size or "inf"}'
    f' lr={local.learning_rate:g}'
  )


def partition_name(cfg: RunConfig) -> str:
  """Returns a short description of a partition, such as 'dirichlet 0.5'."""
  kind = cfg.partition
  numbers = {
    'shards': 'shards_per_client',
    'dirichlet': 'alpha',
    'inner_dirichlet': 'alpha',
    'pathological': 'classes_per_client',
    'few_labels': 'classes_per_client',
  }
  text = f'{kind} {getattr(cfg, numbers[kind]):g}' if kind in numbers else kind
  if kind in ('iid', 'inner_dirichlet', 'few_labels') and cfg.sizes != 'equal':
    law = cfg.sizes if cfg.sizes in choices.SIZE_LAWS else 'given'
    text += f', {law} sizes'
  return text
