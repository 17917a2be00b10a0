"""Computes metrics on test sets, on every device of the mesh.

A test set is the central one, or the held-out examples of all clients.

Shape letters: B examples of a batch, D devices, K clients.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.metrics import num_labels
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.task import Sums
from fedavg_jax.contracts.task import Task
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.engine import step_cost
from fedavg_jax.engine.devices import total_bytes
from fedavg_jax.models import layers

# Examples of a batch on a CPU: large enough to be fast, and its caches hold it.
_BATCH = 125
# On an accelerator as many as hide the launch of kernels, within a part of the
# memory, of which the lanes may take 0.8.
_MOST, _LEAST = 2000, 125
_MOST_BYTES, _MEMORY_SHARE = 2**31, 1 / 16


class TestSet(NamedTuple):
  """Holds a test set in batches, distributed over the devices.

  Attributes:
    x: [D * batches, B, ...] inputs.
    y: [D * batches, B, ...] targets.
    mask: [D * batches, B] bool, False for padding.
  """

  __test__ = False  # Not a test, though pytest collects classes of this name.

  x: Any
  y: Any
  mask: Any

  def batch(self) -> Batch:
    """Returns one batch in the form that metrics take."""
    return Batch(self.x, self.y, self.mask, jnp.sum(self.mask, dtype=jnp.int32))


def batch_size(
  task: Task, test: Examples, mesh: jax.sharding.Mesh, values: int = 1
) -> int:
  """Chooses B for the platform that models are traced for.

  On a CPU it is 125. On an accelerator it is 1,000 to 2,000 for a larger test
  set, so that few batches are needed, or fewer if their results would take more
  than a part of the memory. The choice depends on the kind of device, not on
  its free memory: a resumed run makes the same one.

  Args:
    task: the task that is tested.
    test: the test set, or the held-out examples of clients.
    mesh: the devices of the test.
    values: the number of models that are tested in parallel, those of a sweep.
  """
  if layers.traced_platform() == 'cpu':
    return _BATCH
  x, y = (
    trees.map_arrays(
      lambda array: jax.ShapeDtypeStruct(
        (_LEAST, *array.shape[1:]), array.dtype
      ),
      own,
    )
    for own in test
  )
  size = step_cost.estimate(
    lambda variables, *own: rows(task, variables, TestSet(*own).batch()),
    jax.eval_shape(task.model.init, jax.random.key(0)),
    *(x, y, jax.ShapeDtypeStruct((_LEAST,), bool)),
  )
  # All processes need the same B, and each knows its own devices.
  devices = list(mesh.devices.flat)
  mine = [d for d in devices if d.process_index == jax.process_index()]
  memory = total_bytes((mine or devices)[0]) or math.inf
  room = processes.smallest(int(min(_MOST_BYTES, _MEMORY_SHARE * memory)))
  each = _MOST_BYTES if size is None else max(size.memory, 1)
  most = min(_MOST, max(_LEAST, _LEAST * room // (values * each)))
  number = -(-trees.num_rows(test.y) // mesh.size)
  even = -(-number // -(-number // most))  # Batches of almost equal sizes.
  return -(-even // 8) * 8  # The rows of a TPU's registers.


def place_test_set(
  test: Examples, mesh: jax.sharding.Mesh, batch: int = _BATCH
) -> TestSet:
  """Splits a test set into batches and distributes them over the devices.

  Args:
    test: the test set, x [n, ...] and y [n, ...], or trees of such arrays.
    mesh: the devices, from `compiled_round.lane_mesh`.
    batch: B, from `batch_size`.
  """
  if not trees.is_tree(test.y) and test.y.ndim == 2:
    # Batches of sequences of similar length have few steps on padding.
    lengths = np.sum(test.y != NO_LABEL, axis=1)
    order = np.argsort(lengths, kind='stable')
    test = Examples(*(trees.take(own, order) for own in test))
  return _deal_examples(test, mesh, batch)


def _deal_examples(
  test: Examples, mesh: jax.sharding.Mesh, batch: int
) -> TestSet:
  def deal(array, padding):
    return _deal(array, mesh, batch, padding)

  return TestSet(
    trees.map_arrays(lambda array: deal(array, 0), test.x),
    trees.map_arrays(lambda array: deal(array, _padding(array)), test.y),
    deal(np.ones(trees.num_rows(test.y), bool), False),
  )


def place_held_out(
  held: Clients, mesh: jax.sharding.Mesh, batch: int = _BATCH
) -> tuple[TestSet, Any]:
  """Distributes clients' held-out examples, in the order of the clients.

  Args:
    held: the held-out examples.
    mesh: the devices, from `compiled_round.lane_mesh`.
    batch: B, from `batch_size`.

  Returns:
    The test set, and the client id of each example, [D * batches, B] int32;
    padding has the id K.
  """
  owner = np.repeat(
    np.arange(held.num_clients, dtype=np.int32), held.num_examples
  )
  return (
    _deal_examples(Examples(held.x, held.y), mesh, batch),
    _deal(owner, mesh, batch, held.num_clients),
  )


def _padding(y: np.ndarray) -> int:
  """Returns the value that pads targets; masks exclude it."""
  return NO_LABEL if y.dtype.kind == 'i' else 0


def _deal(array, mesh, batch, padding) -> Any:
  """Places an array [n, ...] on the devices as [D * batches, B, ...]."""
  batches = -(-len(array) // (batch * mesh.size)) * mesh.size
  missing = batches * batch - len(array)
  array = np.concatenate(
    [array, np.full((missing, *array.shape[1:]), padding, array.dtype)]
  )
  # Device d gets the batches d, d + D, ...
  array = array.reshape(-1, mesh.size, batch, *array.shape[1:])
  array = array.swapaxes(0, 1).reshape(batches, batch, *array.shape[3:])
  return collectives.put(
    array, jax.sharding.NamedSharding(mesh, jax.P('lanes'))
  )


def rows(task: Task, variables: Any, batch: Batch) -> Sums:
  """Evaluates a batch; returns each example's contribution to the sums.

  Args:
    task: the task that is tested.
    variables: the variables of its model.
    batch: the batch, of B examples.

  Returns:
    The contributions, [B, ...]; zero for examples that are masked out.
  """
  outputs = task.model.apply(variables, batch.x)
  found = Sums(
    tuple(metric.rows(outputs, batch) for metric in task.metrics),
    # Only class numbers have a value that stands for no label.
    num_labels(batch) if task.classifies else jnp.ones(len(batch.mask)),
  )

  def of_real(values):
    mask = batch.mask.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(mask, values.astype(jnp.float32), 0.0)

  return jax.tree.map(of_real, found)


def no_sums(task: Task, variables: Any, test: TestSet) -> Sums:
  """Returns the initial sums of a test, all zero.

  Args:
    task: the task that is tested.
    variables: the variables of its model.
    test: a test set [n, B, ...], one batch of which is traced.
  """
  first = jax.tree.map(lambda array: array[0], test)
  shapes = jax.eval_shape(lambda: rows(task, variables, first.batch()))
  return jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), shapes
  )


def build_evaluate(task: Task, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
  """Builds the jitted `evaluate(variables, test) -> Sums`.

  Args:
    task: the task that is tested.
    mesh: the devices of the test set, as in `place_test_set`.
  """

  def device_sums(variables, test: TestSet):
    def add(sums, own: TestSet):
      found = rows(task, variables, own.batch())
      return jax.tree.map(
        lambda total, new: total + jnp.sum(new, axis=0), sums, found
      ), None

    sums, _ = lax.scan(add, no_sums(task, variables, test), test)
    return collectives.sum_over_devices(sums)

  return _over_devices(device_sums, mesh)


def build_evaluate_clients(
  task: Task, num_clients: int, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
  """Builds the jitted `evaluate(variables, (held, owner)) -> Sums`, [K, ...].

  Args:
    task: the task that is tested.
    num_clients: K, the number of clients.
    mesh: the devices of the examples, as in `place_held_out`.
  """

  def device_sums(variables, held):
    def add(sums, batch):
      own, owner = batch
      # Padding is past the end: the scatter drops it.
      return jax.tree.map(
        lambda sums, new: sums.at[owner].add(new, mode='drop'),
        sums,
        rows(task, variables, own.batch()),
      ), None

    one = no_sums(task, variables, held[0])
    sums = jax.tree.map(
      lambda leaf: jnp.zeros((num_clients, *leaf.shape), leaf.dtype), one
    )
    sums, _ = lax.scan(add, sums, held)
    return collectives.sum_over_devices(sums)

  return _over_devices(device_sums, mesh)


def _over_devices(device_sums: Callable, mesh) -> jax.stages.Wrapped:
  """Jits (variables, examples) -> sums; each device sees its own examples."""
  return jax.jit(
    jax.shard_map(
      device_sums,
      mesh=mesh,
      in_specs=(jax.P(), jax.P('lanes')),
      out_specs=jax.P(),
      check_vma=False,
    )
  )
