"""Accuracy and loss on test sets, on every device of the mesh.

Of the central one, or of what every client has held out.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts import losses
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import collectives

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
    mesh: from `compiled_round.lane_mesh`.

  Returns:
    x [D * batches, B, ...] and y [D * batches, B, ...]; examples without any
    label are padding.
  """
  if test.y.ndim > 1:  # Sequences of about one length: few steps on padding.
    lengths = np.sum(test.y != NO_LABEL, axis=1)
    order = np.argsort(lengths, kind='stable')
    test = Examples(test.x[order], test.y[order])
  return Examples(_dealt(test.x, mesh, 0), _dealt(test.y, mesh, NO_LABEL))


def place_held_out(
  held: Clients, mesh: jax.sharding.Mesh
) -> tuple[Examples, Any]:
  """The same for what clients have held out, in the order of the clients.

  Returns:
    Examples as of `place_test_set`, and owner [D * batches, B]; padding belongs
    to client K.
  """
  owner = np.repeat(
    np.arange(held.num_clients, dtype=np.int32), held.num_examples
  )
  return (
    Examples(_dealt(held.x, mesh, 0), _dealt(held.y, mesh, NO_LABEL)),
    _dealt(owner, mesh, held.num_clients),
  )


def _dealt(array, mesh, padding) -> Any:
  """[n, ...] -> [D * batches, B, ...], on its devices."""
  batches = -(-len(array) // (_BATCH * mesh.size)) * mesh.size
  missing = batches * _BATCH - len(array)
  array = np.concatenate(
    [array, np.full((missing, *array.shape[1:]), padding, array.dtype)]
  )
  # Device d gets the batches d, d + D, ...
  array = array.reshape(-1, mesh.size, _BATCH, *array.shape[1:])
  array = array.swapaxes(0, 1).reshape(batches, _BATCH, *array.shape[3:])
  return collectives.put(
    array, jax.sharding.NamedSharding(mesh, jax.P('lanes'))
  )


def examples_metrics(
  apply: Callable, params: Any, x: jax.Array, y: jax.Array
) -> TestMetrics:
  """The metrics of every example of a batch, [B] each.

  Args:
    apply: (params, x [B, ...]) -> logits [B, ..., classes].
    params: the model.
    x: [B, ...].
    y: [B, ...], `NO_LABEL` where there is none.
  """
  logits = apply(params, x)
  correct = jnp.argmax(logits, axis=-1) == y  # Never where there is none.

  def of_each(values):
    return jnp.sum(values.reshape(len(y), -1), axis=1)

  return TestMetrics(
    correct=of_each(correct.astype(jnp.float32)),
    loss_sum=of_each(losses.label_losses(logits, y)),
    count=of_each((y != NO_LABEL).astype(jnp.float32)),
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
    return jax.tree.map(jnp.sum, examples_metrics(apply, params, *batch))

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
    return collectives.sum_over_devices(sums)

  return _over_devices(device_sums, mesh)


def build_evaluate_clients(
  apply: Callable, num_clients: int, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
  """Builds the jitted `evaluate(params, (held, owner)) -> TestMetrics` of [K].

  Args:
    apply: as of `build_evaluate`.
    num_clients: K.
    mesh: the devices that `place_held_out` dealt to.
  """

  def device_sums(params, held):
    def add(sums, batch):
      (x, y), owner = batch
      told = examples_metrics(apply, params, x, y)
      # Padding lies past the end, which a scatter drops.
      return jax.tree.map(
        lambda sums, own: sums.at[owner].add(own, mode='drop'), sums, told
      ), None

    zeros = jnp.zeros(num_clients, jnp.float32)
    sums, _ = lax.scan(add, TestMetrics(zeros, zeros, zeros), held)
    return collectives.sum_over_devices(sums)

  return _over_devices(device_sums, mesh)


def _over_devices(device_sums: Callable, mesh) -> jax.stages.Wrapped:
  """(params, what was dealt) -> sums, jitted; each device has its own part."""
  return jax.jit(
    jax.shard_map(
      device_sums,
      mesh=mesh,
      in_specs=(jax.P(), jax.P('lanes')),
      out_specs=jax.P(),
      check_vma=False,
    )
  )
