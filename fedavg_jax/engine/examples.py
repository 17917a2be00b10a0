"""Checks examples against the model and the loss before anything is compiled.

Values are checked before they are cast.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import describe_shapes
from fedavg_jax.contracts.model import split
from fedavg_jax.contracts.task import Task
from fedavg_jax.core import choices
from fedavg_jax.core import client_data
from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import first_lines
from fedavg_jax.core.rows_on_disk import RowsOnDisk


def init_shapes(model: Model, seed: int) -> Any:
  """Traces `model.init`; raises InputError if it raises anything."""
  try:
    return jax.eval_shape(model.init, jax.random.key(seed))
  except Exception as error:  # A user-defined model may raise anything.
    raise InputError(
      f'model {model.name!r}: init(key) fails ({first_lines(error)})'
    ) from error


def check(
  task: Task,
  variables: Any,
  clients: Clients,
  test: Examples,
  *,
  on_nan: str,
  stream: bool,
) -> tuple[Clients, Examples]:
  """Checks that examples fit the model and the loss.

  Args:
    task: the task of the simulation.
    variables: the variables of its model, or their shapes.
    clients: the clients, with x [n, ...] or a tree. With cross entropy, y are
      class numbers, [n] or [n, T] for sequences; with another loss, any numbers
      or a tree of them. The values of rows on disk are not read: the conversion
      has checked them.
    test: the test set, equal to the clients in dtypes and shapes.
    on_nan: the reaction to values that are not finite, one of `choices.ON_NAN`.
    stream: True if the clients' inputs are read only for training.

  Returns:
    Clients and test set in dtypes of JAX, labels as int32.

  Raises:
    InputError: the examples do not fit; the message names the array, the value
      and the rule.
  """
  _check_state(task.model, variables)
  checked = []
  for name, (x, y) in (('clients', clients[:2]), ('test', test)):
    x = _inputs(x, f'{name}.x', stream and name == 'clients')
    y = client_data.targets(y, f'{name}.y')
    if not client_data.count_examples(Examples(x, y), name):
      raise InputError(f'{name}: holds no example; must hold at least one')
    checked.append((x, y))
  (x, y), (test_x, test_y) = checked
  clients = Clients(x, y, client_data.check_offsets(clients.offsets, y))
  targets = _Targets(task, _outputs(task.model, variables, clients))
  check_alike(x, test_x, 'test.x', 'clients.x')
  y = targets.check(y, 'clients.y')
  test_y = targets.check(test_y, 'test.y')
  check_alike(y, test_y, 'test.y', 'clients.y')
  if not stream:  # Training checks streamed examples.
    _check_finite(x, 'clients.x', clients.offsets, on_nan)
  _check_finite(y, 'clients.y', clients.offsets, on_nan)
  _check_finite(test_x, 'test.x', None, on_nan)
  _check_finite(test_y, 'test.y', None, on_nan)
  return clients._replace(y=y), Examples(test_x, test_y)


def check_held(task: Task, variables: Any, held: Clients) -> Clients:
  """Checks clients' held-out examples as `check` does the test set.

  Args:
    task: the task that is tested.
    variables: the variables of its model, or their shapes.
    held: the held-out examples, x [n, ...] and y [n, ...] with n at least 1.

  Returns:
    The examples in dtypes of JAX, labels as int32.

  Raises:
    InputError: the examples do not fit; the message names the array, the value
      and the rule.
  """
  targets = _Targets(task, _outputs(task.model, variables, held))
  x = exact.inputs(held.x, 'held.x')
  y = targets.check(client_data.targets(held.y, 'held.y'), 'held.y')
  client_data.count_examples(Examples(x, y), 'held')
  return held._replace(x=x, y=y)


@contextlib.contextmanager
def lowering(model: Model, x: Any) -> Iterator[None]:
  """Converts errors of lowering a model's gradients to XLA to InputError.

  A forward pass may be valid for a shape for which its gradient is not, such as
  a convolution of a single column.

  Args:
    model: the model that is compiled.
    x: the inputs of the clients.

  Raises:
    InputError: the gradients cannot be lowered.
  """
  try:
    yield
  except ValueError as error:  # JAX's error for a failure of MLIR's verifier.
    if 'Cannot lower' not in str(error):
      raise
    raise InputError(
      f'model {model.name!r}: cannot be trained on examples {_form(x)}'
      f' ({first_lines(error)})'
    ) from error


def _outputs(model: Model, variables: Any, clients: Clients) -> Any:
  """Traces the model; returns the shapes of its outputs for one example."""

  def of_one(array):
    dtype = array.dtype
    if dtype.kind in 'iuf' and dtype.itemsize == 8:  # As in `exact.inputs`.
      dtype = np.dtype(np.float32 if dtype.kind == 'f' else np.int32)
    return jax.ShapeDtypeStruct((1, *array.shape[1:]), dtype)

  x = trees.map_arrays(of_one, clients.x)
  try:
    return jax.eval_shape(model.apply, variables, x)
  except Exception as error:  # A user-defined model may raise anything.
    raise InputError(
      f'model {model.name!r}: cannot take examples {_form(x)}'
      f' ({first_lines(error)})'
    ) from error


class _Targets:
  """Checks targets against the loss and the outputs of the model."""

  def __init__(self, task: Task, outputs: Any):
    """Checks that outputs are logits if the loss is cross entropy.

    Args:
      task: the task that is compiled.
      outputs: the shapes of the model's outputs for one example.

    Raises:
      InputError: the outputs are not logits.
    """
    self._axes: tuple[int, ...] | None = None
    if not task.classifies:
      return
    name = task.model.name
    if (
      not hasattr(outputs, 'shape')
      or len(outputs.shape) < 2
      or outputs.shape[0] != 1
    ):
      raise InputError(
        f'model {name!r}: apply(params, x) must return logits'
        f' [B, ..., classes], got {describe_shapes(outputs)} for one example'
      )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
      raise InputError(
        f'model {name!r}: apply(params, x) must return floating-point logits,'
        f' got {outputs.dtype}'
      )
    self._axes = outputs.shape[1:]

  def check(self, y: Any, name: str) -> Any:
    """Returns class numbers as int32, and other targets unchanged.

    Args:
      y: [n, ...] targets, or a tree of them.
      name: the name of the targets in messages.

    Raises:
      InputError: the targets do not fit the loss or the outputs.
    """
    if self._axes is None:
      return y
    if trees.is_tree(y):
      raise InputError(
        f'{name}: expected class numbers with cross entropy, got a tree;'
        ' use another loss for it'
      )
    *positions, classes = self._axes
    if tuple(y.shape[1:]) != tuple(positions):
      raise InputError(
        f'{name}: has the shape {["n", *y.shape[1:]]}, the model returns logits'
        f' for {["n", *positions]}'.replace("'", '')
      )
    return exact.class_numbers(
      y,
      name,
      num_classes=classes,
      ndim=y.ndim,
      # Positions of sequences may have no label; examples must have one.
      least=client_data.NO_LABEL if positions else 0,
    )


def _check_state(model: Model, variables: Any) -> None:
  """Raises InputError if a model has a state that `train` does not update."""
  choices.check_choice(
    f'model {model.name!r}: state_of', model.state_of, choices.STATE_OF
  )
  _, state = split(variables)
  if jax.tree.leaves(state) and model.train is None:
    raise InputError(
      f'model {model.name!r}: init(key) returns Variables with a state, which'
      ' needs a `train` that returns the new state'
    )


def _inputs(x: Any, name: str, stays_on_disk: bool) -> Any:
  """Returns inputs in dtypes of JAX; arrays that stay on disk must have one."""
  if not stays_on_disk:
    return exact.inputs(x, name)

  def check_small(array, name):
    if array.dtype.itemsize == 8:
      raise InputError(
        f'{name}: is {array.dtype}; must have at most 32 bits with examples_on'
        " = 'host'"
      )
    return array

  return trees.map_named(check_small, x, name)


def _check_finite(
  values: Any, name: str, offsets: np.ndarray | None, on_nan: str
) -> None:
  """Raises InputError for NaN and Inf, which would silently spoil training.

  Args:
    values: [n, ...] inputs or targets, or a tree of them.
    name: the name of the values in the message.
    offsets: [K + 1] the offsets of the clients; None for a test set.
    on_nan: the reaction to such clients, one of `choices.ON_NAN`.
  """
  finite = np.ones(trees.num_rows(values), bool)
  for array in trees.arrays(values):
    if jnp.issubdtype(array.dtype, jnp.floating) and not isinstance(
      array,
      RowsOnDisk,  # The conversion has checked rows on disk.
    ):
      finite &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
  row = int(finite.argmin())
  if finite[row] or (offsets is not None and on_nan == 'skip_client'):
    return
  owner = ''
  if offsets is not None:
    k = int(np.searchsorted(offsets, row, 'right')) - 1
    owner = f" of client {k}; on_nan = 'skip_client' would drop the client"
  raise InputError(
    f'{name}: {int((~finite).sum())} examples are not finite, the first is row'
    f' {row}{owner}'
  )


def check_alike(expected: Any, found: Any, name: str, like: str) -> None:
  """Raises InputError if two sets of examples differ in dtypes or shapes.

  Args:
    expected: an array, or a tree of arrays.
    found: the array or tree to compare; its number of rows may differ.
    name: the name of `found` in the message.
    like: the name of `expected` in the message.
  """
  if _form(found) != _form(expected):
    raise InputError(
      f'{name}: expected {_form(expected)} as in {like}, got {_form(found)}'
    )


def _form(examples: Any) -> str:
  """Describes the dtypes and shapes of an example, as in uint8[28, 28, 1]."""
  form = trees.map_arrays(
    lambda array: f'{array.dtype}{[*array.shape[1:]]}', examples
  )
  return str(form).replace('"', '').replace("'", '')
