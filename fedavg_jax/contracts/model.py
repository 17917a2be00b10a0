"""What a model is to the engine: pure functions."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

Params = Any
# Of a device, or of the host and traced.
Array = jax.Array | np.ndarray
# (key, x of one example) -> x, perhaps of another shape and dtype.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class Batch(NamedTuple):
  """A minibatch of ONE client or of a test set, or a part of one.

  Every batch has B rows, whatever a client has left: rows that are masked out
  repeat others of its own, and must not count.

  Attributes:
    x: [B, ...] inputs.
    y: [B, ...] targets.
    mask: [B] bool, the rows that are real.
    size: int32 scalar, real rows of the whole minibatch, of which a large one
      comes in several parts.
  """

  x: jax.Array
  y: jax.Array
  mask: jax.Array
  size: jax.Array


class Variables(NamedTuple):
  """What a model with state that is not trained consists of.

  Attributes:
    params: what is trained; algorithms see this alone.
    state: what `Model.train` returns anew, such as the running statistics of
      BatchNorm.
  """

  params: Params
  state: Any


class Model(NamedTuple):
  """A model for one kind of example.

  Attributes:
    name: for people.
    init: key -> params, or `Variables` where there is state that is not
      trained.
    apply: (params or variables, x [B, ...] raw pixels) -> outputs [B, ...], of
      each row by itself; of a classifier logits [B, classes], of sequences
      [B, T] -> [B, T, V]. Tests use it, and training where there is no `train`.
    augment: (key, x of one example) -> x as training sees it; None changes
      nothing.
    train: (params or variables, batch: Batch, context: ClientContext) ->
      (outputs, state), `()` where there is no state. `context.key` is that of
      the minibatch, for dropout. Rows that `batch.mask` excludes must change
      neither the outputs of others nor the state.
    state_of: 'everybody' averages the clients' states like messages, by
      weight; 'client' has each client keep its own, and tests see the mean;
      'nobody' leaves it as `init` made it.
    as_written: compute the functions as they are written. If false, the engine
      may compute them in forms that are faster on its devices, equal up to
      rounding.
  """

  name: str
  init: Callable[[jax.Array], Params]
  apply: Callable[[Params, jax.Array], Any]
  augment: Augment | None = None
  train: Callable[[Params, Batch, Any], tuple[Any, Any]] | None = None
  state_of: str = 'everybody'
  as_written: bool = False


def split(variables: Params | Variables) -> tuple[Params, Any]:
  """Returns what is trained, and the state beside it; `()` if there is none.

  >>> split({'w': 1.0})
  ({'w': 1.0}, ())
  """
  if isinstance(variables, Variables):
    return variables.params, variables.state
  return variables, ()


def join(params: Params, state: Any) -> Params | Variables:
  """Returns what a model's functions take; the inverse of `split`."""
  if isinstance(state, tuple) and state == ():
    return params
  return Variables(params, state)


def forward(
  model: Model, variables: Params | Variables, batch: Batch, context: Any
) -> tuple[Any, Any]:
  """Computes what a model makes of a batch that it trains on.

  Args:
    model: any.
    variables: of one client.
    batch: that it reads.
    context: of the client, a `ClientContext`.

  Returns:
    Outputs, and the state after the batch; with no `train` the one before.
  """
  if model.train is None:
    return model.apply(variables, batch.x), split(variables)[1]
  return model.train(variables, batch, context)


def describe_shapes(tree: Any) -> str:
  """Writes what a function returns, its types and shapes in a few words."""
  return str(jax.tree.map(lambda leaf: f'{leaf.dtype}{[*leaf.shape]}', tree))


def num_parameters(params: Params) -> int:
  """How many numbers a model has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def num_bytes(tree: Any) -> int:
  """Of all arrays of a tree, or of their shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
