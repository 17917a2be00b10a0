"""Applies the compression that a config names to an algorithm."""

from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs.config_compression import CompressionConfig
from fedavg_jax.runs.run_config import RunConfig


def compressed(cfg: RunConfig, algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with the messages of `config.compression`."""
  compression = cfg.compression
  if compression.scheme == 'none':
    return algorithm
  return experimental.compress(
    algorithm,
    _compressor(compression),
    error_feedback=compression.error_feedback,
    per_leaf=compression.per_leaf,
  )


def _compressor(compression: CompressionConfig) -> experimental.Compressor:
  match compression.scheme:
    case 'qsgd':
      return experimental.qsgd(compression.levels)
    case 'top_k':
      return experimental.top_k(compression.fraction)
    case 'random_k':
      return experimental.random_k(compression.fraction)
    case 'sign':
      return experimental.scaled_sign()
    case 'drive':
      return experimental.drive()
    case _:
      return experimental.eden(compression.bits)
