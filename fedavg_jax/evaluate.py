"""Accuracy and loss on the central test set, on every device of the mesh."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.clients import Examples
from fedavg_jax.losses import LossFn

# Examples at a time: large enough to be fast, small enough to bound memory.
_BATCH = 125
_PADDING = -1


class TestMetrics(NamedTuple):
  """Sums over the test set; divided on the host, so 0.99 is 9,900 of 10,000.

  Attributes:
    correct: examples whose largest logit is their label's.
    loss_sum: sum of the losses.
    count: examples.
  """

  __test__ = False  # Not a test, whatever pytest thinks of its name.

  correct: jax.Array
  loss_sum: jax.Array
  count: jax.Array

  @property
  def accuracy(self) -> float:
    """Fraction that is correct."""
    return float(self.correct) / float(self.count)

  @property
  def loss(self) -> float:
    """Mean loss."""
    return float(self.loss_sum) / float(self.count)


def place_test_set(test: Examples, mesh: jax.sharding.Mesh) -> Examples:
  """Cuts a test set into batches and deals them to the devices.

  Args:
    test: x [n, ...], y [n].
    mesh: from `round.lane_mesh`.

  Returns:
    x [D * batches, B, ...] and y [D * batches, B], where y = -1 is padding.
  """
  batches = -(-len(test.y) // (_BATCH * mesh.size)) * mesh.size
  padding = batches * _BATCH - len(test.y)
  x = np.concatenate(
    [test.x, np.zeros((padding, *test.x.shape[1:]), test.x.dtype)]
  )
  y = np.concatenate([test.y, np.full(padding, _PADDING, test.y.dtype)])
  return jax.device_put(
    Examples(
      x.reshape(batches, _BATCH, *x.shape[1:]), y.reshape(batches, _BATCH)
    ),
    jax.sharding.NamedSharding(mesh, jax.P('lanes')),
  )


def build_evaluate(
  apply: Callable, loss_fn: LossFn, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
  """Builds the jitted `evaluate(params, test) -> TestMetrics`.

  Args:
    apply: (params, x [B, ...]) -> logits [B, classes].
    loss_fn: losses [B] of a batch.
    mesh: the devices that `place_test_set` dealt to.
  """

  def batch_sums(params, batch):
    x, y = batch
    real = y != _PADDING
    correct = jnp.argmax(apply(params, x), axis=-1) == y
    # A padded example has no label; any valid one will do, it does not count.
    losses = loss_fn(params, x, jnp.where(real, y, 0))
    return TestMetrics(
      correct=jnp.sum(jnp.where(real, correct, False).astype(jnp.float32)),
      loss_sum=jnp.sum(jnp.where(real, losses, 0.0)),
      count=jnp.sum(real.astype(jnp.float32)),
    )

  def device_sums(params, test: Examples):
    zero = jnp.zeros((), jnp.float32)
    sums, _ = lax.scan(
      lambda sums, batch: (
        jax.tree.map(jnp.add, sums, batch_sums(params, batch)),
        None,
      ),
      TestMetrics(zero, zero, zero),
      test,
    )
    return lax.psum(sums, 'lanes')

  return jax.jit(
    jax.shard_map(
      device_sums,
      mesh=mesh,
      in_specs=(jax.P(), jax.P('lanes')),
      out_specs=jax.P(),
      check_vma=False,
    )
  )
