"""Examples that enter the engine: they fit the model, or one line says why not.

Nothing is cast before it was checked; nothing is compiled before it fits.
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
  """Traces `model.init`; raises InputError, one line, where that fails."""
  try:
    return jax.eval_shape(model.init, jax.random.key(seed))
  except Exception as error:  # Of a person's own model, anything.
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
  """Makes sure that examples are what the model and the loss can learn.

  Args:
    task: of the simulation.
    variables: of its model, or their shapes.
    clients: x [n, ...], or a tree; with cross entropy y [n] class numbers or
      [n, T] of sequences, with another loss any numbers or a tree of them;
      arrays that are on a disk were read when they were converted.
    test: of the same type, shape and form of targets.
    on_nan: one of `choices.ON_NAN`.
    stream: whether the clients' inputs are only read as they are trained on.

  Returns:
    Clients and test set in types that JAX holds, their labels in int32.

  Raises:
    InputError: names the array, the value and the rule.
  """
  _check_state(task.model, variables)
  checked = []
  for name, (x, y) in (('clients', clients[:2]), ('test', test)):
    x = _inputs(x, f'{name}.x', stream and name == 'clients')
    y = client_data.targets(y, f'{name}.y')
    if not client_data.count_examples(Examples(x, y), name):
      raise InputError(f'{name}: holds no example, must hold at least one')
    checked.append((x, y))
  (x, y), (test_x, test_y) = checked
  clients = Clients(x, y, client_data.check_offsets(clients.offsets, y))
  targets = _Targets(task, _outputs(task.model, variables, clients))
  check_alike(x, test_x, 'test.x', 'clients.x')
  y = targets.check(y, 'clients.y')
  test_y = targets.check(test_y, 'test.y')
  check_alike(y, test_y, 'test.y', 'clients.y')
  if not stream:  # Streamed examples are checked when they are trained on.
    _check_finite(x, 'clients.x', clients.offsets, on_nan)
  _check_finite(y, 'clients.y', clients.offsets, on_nan)
  _check_finite(test_x, 'test.x', None, on_nan)
  _check_finite(test_y, 'test.y', None, on_nan)
  return clients._replace(y=y), Examples(test_x, test_y)


def check_held(task: Task, variables: Any, held: Clients) -> Clients:
  """Does for what clients hold out what `check` does for the test set.

  Args:
    task: that is tested.
    variables: of its model, or their shapes.
    held: x [n, ...] and y [n, ...], n at least 1.

  Raises:
    InputError: names the array, the value and the rule.
  """
  targets = _Targets(task, _outputs(task.model, variables, held))
  x = exact.inputs(held.x, 'held.x')
  y = targets.check(client_data.targets(held.y, 'held.y'), 'held.y')
  client_data.count_examples(Examples(x, y), 'held')
  return held._replace(x=x, y=y)


@contextlib.contextmanager
def lowering(model: Model, x: Any) -> Iterator[None]:
  """Raises InputError where gradients of a model cannot be lowered to XLA.

  A forward pass may have a shape where its gradient has none, as a convolution
  of a single column.

  Args:
    model: that is compiled.
    x: inputs.
  """
  try:
    yield
  except ValueError as error:  # As MLIR's verifier ends in JAX.
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
    if dtype.kind in 'iuf' and dtype.itemsize == 8:  # As `exact.inputs` has it.
      dtype = np.dtype(np.float32 if dtype.kind == 'f' else np.int32)
    return jax.ShapeDtypeStruct((1, *array.shape[1:]), dtype)

  x = trees.map_arrays(of_one, clients.x)
  try:
    return jax.eval_shape(model.apply, variables, x)
  except Exception as error:  # Of a person's own model, anything.
    raise InputError(
      f'model {model.name!r}: cannot take examples {_form(x)}'
      f' ({first_lines(error)})'
    ) from error


class _Targets:
  """What targets must be, by the loss and the outputs of the model."""

  def __init__(self, task: Task, outputs: Any):
    """Takes any outputs but with cross entropy, which needs logits.

    Raises:
      InputError: they are no logits.
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
        ' [B, ..., classes], of one example it returns'
        f' {describe_shapes(outputs)}'
      )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
      raise InputError(
        f'model {name!r}: apply(params, x) must return floating-point logits,'
        f' returns {outputs.dtype}'
      )
    self._axes = outputs.shape[1:]

  def check(self, y: Any, name: str) -> Any:
    """Returns class numbers in int32, or other targets as they are.

    Raises:
      InputError: names the array, the value and the rule.
    """
    if self._axes is None:
      return y
    if trees.is_tree(y):
      raise InputError(
        f'{name}: is a tree, must be class numbers with cross entropy; another'
        ' loss takes it'
      )
    *positions, classes = self._axes
    if tuple(y.shape[1:]) != tuple(positions):
      raise InputError(
        f'{name}: has the shape {["n", *y.shape[1:]]}, the model makes logits'
        f' for {["n", *positions]}'.replace("'", '')
      )
    return exact.class_numbers(
      y,
      name,
      num_classes=classes,
      ndim=y.ndim,
      # Positions of sequences may have no label, examples must have one.
      least=client_data.NO_LABEL if positions else 0,
    )


def _check_state(model: Model, variables: Any) -> None:
  """Raises InputError where a model's state and its functions do not agree."""
  choices.check_choice(
    f'model {model.name!r}: state_of', model.state_of, choices.STATE_OF
  )
  _, state = split(variables)
  if jax.tree.leaves(state) and model.train is None:
    raise InputError(
      f'model {model.name!r}: init(key) returns Variables with a state, which'
      ' needs a `train` that returns it anew'
    )


def _inputs(x: Any, name: str, stays_on_disk: bool) -> Any:
  """Inputs in a type that JAX holds; arrays that are read later have one."""
  if not stays_on_disk:
    return exact.inputs(x, name)

  def check_small(array, name):
    if array.dtype.itemsize == 8:
      raise InputError(
        f'{name}: is {array.dtype}; must be of at most 32 bits where examples'
        ' stay on the host'
      )
    return array

  return trees.map_named(check_small, x, name)


def _check_finite(
  values: Any, name: str, offsets: np.ndarray | None, on_nan: str
) -> None:
  """Raises InputError for numbers that would silently spoil what is learnt.

  Args:
    values: [n, ...] inputs or targets, or a tree of them.
    name: what the message calls them.
    offsets: of the clients, None of a test set.
    on_nan: one of `choices.ON_NAN`.
  """
  finite = np.ones(trees.num_rows(values), bool)
  for array in trees.arrays(values):
    if jnp.issubdtype(array.dtype, jnp.floating) and not isinstance(
      array,
      RowsOnDisk,  # What is on disk was read when it was converted.
    ):
      finite &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
  row = int(finite.argmin())
  if finite[row] or (offsets is not None and on_nan == 'skip_client'):
    return
  whose = ''
  if offsets is not None:
    k = int(np.searchsorted(offsets, row, 'right')) - 1
    whose = f" of client {k}; on_nan = 'skip_client' would leave it out"
  raise InputError(
    f'{name}: {int((~finite).sum())} examples are not finite, the first is row'
    f' {row}{whose}'
  )


def check_alike(expected: Any, found: Any, name: str, like: str) -> None:
  """Raises InputError where examples have another form than others.

  Args:
    expected: arrays, or trees of them.
    found: what must have their types and shapes, but for the number of rows.
    name: what a message calls `found`.
    like: what it calls `expected`.
  """
  if _form(found) != _form(expected):
    raise InputError(
      f'{name}: is {_form(found)}, but {like} {_form(expected)}; must be alike'
    )


def _form(examples: Any) -> str:
  """Writes types and shapes of an example, such as uint8[28, 28, 1]."""
  form = trees.map_arrays(
    lambda array: f'{array.dtype}{[*array.shape[1:]]}', examples
  )
  return str(form).replace('"', '').replace("'", '')
