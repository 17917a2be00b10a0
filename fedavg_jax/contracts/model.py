"""Defines a model as pure functions, the engine's only view of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.core.trees import PyTree

if TYPE_CHECKING:  # That module imports this one.
  from fedavg_jax.contracts.algorithm import ClientContext

# A pytree of floating-point arrays.
Params = Any
# An array of a device, traced or not, or of the host.
Array = jax.Array | np.ndarray
# A Python number, or an array of shape [].
Scalar = Any
# (key, x of one example) -> x, perhaps of another shape and dtype.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class Batch(NamedTuple):
  """Holds a minibatch of ONE client or of a test set, or a part of one.

  Every batch has B rows. If fewer examples are left, the others are padding:
  they repeat rows of the same client, and they must not count.

  Attributes:
    x: [B, ...] inputs, or a pytree of them.
    y: [B, ...] targets, or a pytree of them.
    mask: [B] bool, True for real rows.
    size: int32 scalar, the number of real rows of the complete minibatch; a
      large one is split into several batches.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> batch = fa.Batch(
  ...     x=jnp.ones((4, 2)), y=jnp.zeros(4, jnp.int32),
  ...     mask=jnp.arange(4) < 3, size=jnp.int32(3))
  >>> int(batch.mask.sum()) == int(batch.size)
  True
  """

  x: jax.Array
  y: jax.Array
  mask: jax.Array
  size: jax.Array


class Variables(NamedTuple):
  """Holds the parameters and the untrained state of a model.

  Attributes:
    params: the trained parameters, the only part that algorithms receive.
    state: the untrained state, such as BatchNorm's running statistics, which
      `Model.train` updates.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> variables = fa.Variables({'scale': jnp.ones(3)}, {'mean': jnp.zeros(3)})
  >>> sorted(variables.params), sorted(variables.state)
  (['scale'], ['mean'])
  """

  params: Params
  state: PyTree


class Model(NamedTuple):
  """Defines a model for one kind of example.

  Attributes:
    name: the name in messages and results.
    init: key -> params, or `Variables` if the model has untrained state.
    apply: (params or variables, x [B, ...], raw inputs such as pixels) ->
      outputs [B, ...], each row independent of the others; logits [B, C] of a
      classifier, [B, T, V] of sequences [B, T]. It is used in tests, and in
      training if `train` is None.
    augment: (key, x of one example) -> augmented x for training; None changes
      nothing.
    train: (params or variables, batch: Batch, context: ClientContext) ->
      (outputs, state), with state `()` if the model has none. `context.key`
      belongs to the minibatch, for dropout. Rows that `batch.mask` excludes
      must affect neither the outputs of other rows nor the state.
    state_of: the owner of the untrained state. With 'everybody', the server
      averages the clients' states by weight, like messages; with 'client', each
      client has its own, and tests use their mean; with 'nobody', it stays as
      `init` returned it.
    as_written: whether the engine must compute the functions as they are
      written. If False, it may use forms that are faster on its devices and
      equal up to rounding.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> model = fa.Model(
  ...     'linear', init=lambda key: jnp.zeros((2, 3)),
  ...     apply=lambda params, x: x @ params)
  >>> model.apply(model.init(jax.random.key(0)), jnp.ones((4, 2))).shape
  (4, 3)
  """

  name: str
  init: Callable[[jax.Array], Params | Variables]
  apply: Callable[[Any, PyTree], PyTree]
  augment: Augment | None = None
  train: (
    Callable[[Any, Batch, 'ClientContext'], tuple[PyTree, PyTree]] | None
  ) = None
  state_of: str = 'everybody'
  as_written: bool = False


def split(variables: Params | Variables) -> tuple[Params, PyTree]:
  """Returns the parameters and the untrained state; `()` if there is none.

  >>> split({'w': 1.0})
  ({'w': 1.0}, ())
  """
  if isinstance(variables, Variables):
    return variables.params, variables.state
  return variables, ()


def join(params: Params, state: PyTree) -> Params | Variables:
  """Returns the variables of a model; the inverse of `split`."""
  if isinstance(state, tuple) and state == ():
    return params
  return Variables(params, state)


def forward(
  model: Model,
  variables: Params | Variables,
  batch: Batch,
  context: 'ClientContext',
) -> tuple[PyTree, PyTree]:
  """Computes the outputs of a model for a training batch.

  Args:
    model: the model to run.
    variables: the variables of one client.
    batch: the rows to run it on.
    context: the client's context.

  Returns:
    Outputs [B, ...] and the untrained state after the batch, which is unchanged
    if the model has no `train`.
  """
  if model.train is None:
    return model.apply(variables, batch.x), split(variables)[1]
  return model.train(variables, batch, context)


def describe_shapes(tree: Any) -> str:
  """Formats the dtypes and shapes of a pytree for a message."""
  return str(jax.tree.map(lambda leaf: f'{leaf.dtype}{[*leaf.shape]}', tree))


def num_parameters(params: Params) -> int:
  """Counts the parameters of a model."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def num_bytes(tree: Any) -> int:
  """Counts the bytes of the arrays of a pytree, or of their shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
