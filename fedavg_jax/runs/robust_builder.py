"""Applies the defence and the attack that a config names to an algorithm."""

from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs.run_config import RunConfig


def defended(cfg: RunConfig, algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with the rule of `config.robust`."""
  robust = cfg.robust
  if robust.rule == 'none':
    return algorithm
  if robust.rule == 'norm_bound':
    return experimental.bound_norms(algorithm, robust.clip)
  if robust.rule == 'median':
    rule = experimental.coordinate_median()
  elif robust.rule == 'trimmed_mean':
    rule = experimental.trimmed_mean(robust.trimmed_fraction)
  elif robust.rule == 'krum':
    rule = experimental.krum(robust.attackers, robust.selected)
  elif robust.rule == 'geometric_median':
    rule = experimental.geometric_median(robust.iterations or 8)
  else:
    rule = experimental.centred_clipping(robust.clip, robust.iterations or 1)
  return experimental.robust(algorithm, rule, robust.bucket_size)


def attacked(
  cfg: RunConfig, algorithm: Algorithm, num_clients: int, num_classes: int
) -> Algorithm:
  """Returns the algorithm under the attack of `config.attack`.

  Args:
    cfg: the checked config.
    algorithm: the algorithm, with its defence.
    num_clients: K, the number of clients of which some attack.
    num_classes: the number of classes, for flips of labels.
  """
  attack = cfg.attack
  if attack.kind == 'none' or not attack.fraction:
    return algorithm
  if attack.kind == 'label_flip':
    kind = experimental.label_flip(num_classes)
  else:
    kind = getattr(experimental, attack.kind)(attack.scale)
  attackers = experimental.draw_attackers(
    num_clients, attack.fraction, cfg.seed
  )
  return experimental.attack(algorithm, attackers, kind)
