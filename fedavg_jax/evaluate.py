"""Accuracy and loss on the central test set, on every device of the mesh."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax import losses
from fedavg_jax.clients import NO_LABEL
from fedavg_jax.clients import Examples

# Examples at a time: large enough to be fast, small enough to bound memory.
_BATCH = 125


class TestMetrics(NamedTuple):
  """Sums over the test set; divided on the host, so 0.99 is 9,900 of 10,000.

  Each a number, or an array of one for each model that was tested.

  Attributes:
    correct: labels that have the largest logit.
    loss_sum: sum of the labels' losses.
    count: labels: examples, or positions of sequences.
  """

  __test__ = False  # Not a test, whatever pytest thinks of its name.

  correct: jax.Array
  loss_sum: jax.Array
  count: jax.Array

  @property
  def accuracy(self) -> Any:
    """Fraction that is correct."""
    return np.asarray(self.correct, np.float64) / self.count

  @property
  def loss(self) -> Any:
    """Mean loss."""
    return np.asarray(self.loss_sum, np.float64) / self.count


def place_test_set(test: Examples, mesh: jax.sharding.Mesh) -> Examples:
  """Cuts a test set into batches and deals them to the devices.

  Args:
    test: x [n, ...], y [n, ...].
    mesh: from `round.lane_mesh`.

  Returns:
    x [D * batches, B, ...] and y [D * batches, B, ...]; examples without any
    label are padding.
  """
  if test.y.ndim > 1:  # Sequences of about one length: few steps on padding.
    lengths = np.sum(test.y != NO_LABEL, axis=1)
    order = np.argsort(lengths, kind='stable')
    test = Examples(test.x[order], test.y[order])
  batches = -(-len(test.y) // (_BATCH * mesh.size)) * mesh.size
  padding = batches * _BATCH - len(test.y)
  x = np.concatenate(
    [test.x, np.zeros((padding, *test.x.shape[1:]), test.x.dtype)]
  )
  no_labels = np.full((padding, *test.y.shape[1:]), NO_LABEL, test.y.dtype)
  y = np.concatenate([test.y, no_labels])

  def deal(array):  # Device d gets the batches d, d + D, ...
    array = array.reshape(-1, mesh.size, _BATCH, *array.shape[1:])
    return array.swapaxes(0, 1).reshape(batches, _BATCH, *array.shape[3:])

  return jax.device_put(
    Examples(deal(x), deal(y)),
    jax.sharding.NamedSharding(mesh, jax.P('lanes')),
  )


def build_evaluate(
  apply: Callable, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
  """Builds the jitted `evaluate(params, test) -> TestMetrics`.

  Args:
    apply: (params, x [B, ...]) -> logits [B, ..., classes].
    mesh: the devices that `place_test_set` dealt to.
  """

  def batch_sums(params, batch):
    x, y = batch
    logits = apply(params, x)
    correct = jnp.argmax(logits, axis=-1) == y  # Never where there is none.
    return TestMetrics(
      correct=jnp.sum(correct.astype(jnp.float32)),
      loss_sum=jnp.sum(losses.label_losses(logits, y)),
      count=jnp.sum((y != NO_LABEL).astype(jnp.float32)),
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
