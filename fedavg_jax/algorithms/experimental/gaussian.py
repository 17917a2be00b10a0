"""Clips and adds Gaussian noise, and computes the epsilon of what was added."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.contracts.aggregation import Aggregator
from fedavg_jax.contracts.aggregation import weighted_mean
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.mechanism import Mechanism
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core import optional
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

_BLOCK = 64  # Numbers that are added in sequence.
_TINY = float(jnp.finfo(jnp.float32).tiny)


def clipped(message: PyTree, clip: Scalar) -> tuple[PyTree, Array]:
  """Returns ONE client's clipped message, and its bit of adaptive clipping.

  Args:
    message: any tree of arrays.
    clip: S, a number or [], the largest norm over all leaves together.

  Returns:
    The message in float32 with a norm of at most S up to rounding, zeros if a
    value is not finite; and the bit, 1/2 or -1/2, 0 if a value is not finite.
  """
  # Rounding to fewer bits after the clip would make a message longer.
  message = jax.tree.map(lambda m: m.astype(jnp.float32), message)
  leaves = jax.tree.leaves(message)
  largest = jnp.max(
    jnp.stack([jnp.max(jnp.abs(m), initial=0.0) for m in leaves])
  )
  finite = jnp.isfinite(largest)
  # Squares of numbers of at most 1 do not overflow.
  scale = jnp.where(finite & (largest > 0), largest, 1.0)
  squares = [_sum_of_squares(m / scale) for m in leaves]
  norm = jnp.sqrt(sum(squares, jnp.float32(0)))  # Of message / scale.
  below = norm <= clip / scale

  def cut(leaf):
    short = leaf / scale * (clip / jnp.maximum(norm, _TINY))
    return jnp.where(finite, jnp.where(below, leaf, short), 0.0)

  bit = jnp.where(finite, below.astype(jnp.float32) - 0.5, 0.0)
  return jax.tree.map(cut, message), bit


def _sum_of_squares(x: Array) -> Array:
  """Returns the sum of the squares of [...], in blocks, [].

  XLA adds a long array one number after another in float32 and loses small
  squares, so that a clipped message would be longer than the clip by 1e-3.
  """
  sums = jnp.square(x).ravel()
  while sums.size > _BLOCK:
    sums = jnp.pad(sums, (0, -sums.size % _BLOCK)).reshape(-1, _BLOCK)
    # Else XLA joins the sums of all levels into one.
    sums = lax.optimization_barrier(jnp.sum(sums, axis=1))
  return jnp.sum(sums)


def add_noise(
  key: Array, total: PyTree, deviation: Scalar, unit: Scalar
) -> PyTree:
  """Adds independent Gaussian noise of `deviation * unit` to each number.

  Args:
    key: a random key, from which each leaf derives its own.
    total: a tree of arrays.
    deviation: the standard deviation, in units; with a Python 0 the arrays are
      returned as they are.
    unit: the unit.
  """
  if not rules.is_traced(deviation) and deviation == 0:
    return total
  leaves, structure = jax.tree.flatten(total)
  noise = [
    deviation * unit * jax.random.normal(key, leaf.shape, jnp.float32)
    for key, leaf in zip(
      jax.random.split(key, len(leaves)), leaves, strict=True
    )
  ]
  return structure.unflatten(
    leaf + own.astype(leaf.dtype)
    for leaf, own in zip(leaves, noise, strict=True)
  )


def unweighted_sum() -> Aggregator:
  """Builds the sum of messages in which every client has the weight 1."""
  return _SUM


def _add(
  sums: PyTree, messages: PyTree, weights: Array, positions: Array
) -> PyTree:
  """Adds messages [L, ...] with equal weights; those of nobody are zeros."""
  del weights, positions
  return jax.tree.map(
    lambda total, all_: total + jnp.sum(all_.astype(jnp.float32), axis=0),
    sums,
    messages,
  )


def _total(sums: PyTree, weight: jax.Array) -> PyTree:
  """Returns the sum itself: the realized weight depends on the clients."""
  del weight
  return sums


_SUM = weighted_mean()._replace(add=_add, result=_total)


def describe(
  algorithm: Algorithm,
  clip: Scalar,
  noise_multiplier: Scalar,
  denominator: float,
  check_schedule: Callable | None = None,
) -> Mechanism:
  """Describes the mechanism of an algorithm that clips, adds and adds noise.

  Args:
    algorithm: the complete private algorithm.
    clip: S.
    noise_multiplier: sigma.
    denominator: the constant that divides the sum.
    check_schedule: the attribute of `Mechanism`.
  """
  hooks = ('client_finish', 'aggregate', 'server_update')
  return Mechanism(
    clip,
    noise_multiplier,
    denominator,
    {name: getattr(algorithm, name) for name in hooks},
    check_schedule,
  )


def check_no_model_state(wrapper: str, model_state: PyTree) -> None:
  """Raises InputError if a model's untrained state would be sent in the clear.

  Args:
    wrapper: the name of the wrapper that would not protect it.
    model_state: the state of a client's model.
  """
  if jax.tree.leaves(model_state):
    raise InputError(
      f'{wrapper}: the model has untrained state, such as statistics of'
      ' BatchNorm, to which no noise is added; must have none'
    )


def gaussian_epsilon(
  noise_multiplier: float, delta: float, releases: int = 1
) -> float:
  """Computes the epsilon of Gaussian mechanisms, without amplification.

  T releases of sensitivity 1 with noise of standard deviation sigma are
  together one Gaussian mechanism with sigma / sqrt(T), also if each is chosen
  after the others were seen (Dong et al. 2022, "Gaussian Differential
  Privacy"); its epsilon is exact (Balle and Wang 2018, Theorem 8).

  Args:
    noise_multiplier: sigma over the sensitivity of a release, at least 0.
    delta: delta, in (0, 1).
    releases: T, the number of releases, at least 0.

  Returns:
    Epsilon; infinite without noise, and 0 without releases.

  Raises:
    InputError: a number is out of range, or dp-accounting is not installed.

  >>> import fedavg_jax as fa
  >>> one = fa.experimental.gaussian_epsilon(1.0, delta=1e-5)
  >>> four = fa.experimental.gaussian_epsilon(2.0, delta=1e-5, releases=4)
  >>> round(one, 2), abs(one - four) < 1e-9
  (4.38, True)
  """
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_positive('delta', delta, 1)
  rules.check_fraction('delta', delta)
  rules.check_whole('releases', releases, 0)
  if not releases:
    return 0.0
  if not noise_multiplier:
    return float('inf')
  accounting = optional.load(
    'dp_accounting', 'gaussian_epsilon', "'fedavg_jax[privacy]'"
  )
  return float(
    accounting.get_epsilon_gaussian(noise_multiplier / releases**0.5, delta)
  )
