"""Models, losses and metrics are tried on three examples before they compile.

What is wrong is one line that names the function, what must come of it and what
came. Functions of a person's own are also run on two batches that differ in a
row that does not count: nothing that counts may depend on it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import Variables
from fedavg_jax.contracts.model import describe_shapes
from fedavg_jax.contracts.model import forward
from fedavg_jax.contracts.model import split
from fedavg_jax.contracts.task import Task
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import first_lines

_ROWS = 3  # Of a batch: two that count, and one that does not.


def check_task(
  task: Task,
  algorithm: Algorithm,
  variables: Params | Variables,
  x: Any,
  y: Any,
  seed: int,
) -> None:
  """Raises InputError where a function does not return what it must.

  Args:
    task: to be trained.
    algorithm: that trains it; what server and clients keep is in the context.
    variables: of the model, or their shapes.
    x: [n, ...] inputs, or a tree of them, of which the first two are read.
    y: [n, ...] targets.
    seed: of the run.
  """
  few = [
    trees.map_arrays(np.asarray, trees.take(own, slice(2))) for own in (x, y)
  ]
  first = batch_of(*few)

  def train(variables, batch):
    return train_once(task, algorithm, variables, batch)

  losses, state, like = _traced(
    'the model or the loss', train, variables, first
  )
  if not hasattr(losses, 'shape') or losses.shape != (_ROWS,):
    raise InputError(
      f'loss: returns {describe_shapes(losses)} of a batch of {_ROWS} examples,'
      f' must be one number each, [{_ROWS}]'
    )
  if not jnp.issubdtype(losses.dtype, jnp.floating):
    raise InputError(
      f'loss: returns {losses.dtype}, must be floating-point numbers'
    )
  came, went_in = describe_shapes(state), describe_shapes(like)
  if came != went_in:
    raise InputError(
      f'model {task.model.name!r}: train returns the state {came}, must be'
      f' {went_in}, as it went in'
    )
  _check_metrics(task, variables, first)
  if all(map(_is_ours, (task.model.apply, task.loss))) and (
    task.model.train is None
  ):
    return
  # Outside jit: what draws weights is compiled once, here or for round 1.
  weights = task.model.init(jax.random.key(seed))
  run = jax.jit(train)
  for here, there in zip(
    jax.tree.leaves(_of_real(run(weights, first))),
    jax.tree.leaves(_of_real(run(weights, batch_of(*few, padding=1)))),
    strict=True,
  ):
    if not np.allclose(here, there, rtol=1e-3, atol=1e-5, equal_nan=True):
      raise InputError(
        f'model {task.model.name!r}: the loss of an example, or the state,'
        ' depends on rows that batch.mask excludes; a model or a loss that'
        ' looks at other rows of a batch must leave these out'
      )


def train_once(
  task: Task,
  algorithm: Algorithm,
  variables: Params | Variables,
  batch: Batch,
) -> tuple[jax.Array, Any, Any]:
  """Runs the model and the loss as the first step of client 0 does.

  Returns:
    Losses [B]; the state of the model after it, and the one before.
  """
  params, state = split(variables)
  client, number = jnp.int32(0), jnp.int32(1)
  context = ClientContext(
    global_params=params,
    server_state=algorithm.server_init(params),
    client_state=algorithm.client_init(params, client),
    client_id=client,
    num_examples=batch.size,
    round=number,
    key=jax.random.key(0),
  )
  trained = forward(task.model, variables, batch, context)
  if not isinstance(trained, tuple) or len(trained) != 2:
    raise InputError(
      f'model {task.model.name!r}: train returns {type(trained).__name__}, must'
      ' return outputs and state'
    )
  return task.loss(trained[0], batch), trained[1], state


def _check_metrics(
  task: Task, variables: Params | Variables, batch: Batch
) -> None:
  """Raises InputError where metrics have no rows, no results or one name."""
  if not task.metrics:
    raise InputError('metrics: must hold at least one')
  outputs = _traced('the model', task.model.apply, variables, batch.x)
  names: list[str] = []
  for i, metric in enumerate(task.metrics):
    if not isinstance(metric, Metric):
      raise InputError(
        f'metrics[{i}]: is {type(metric).__name__}, must be a Metric'
      )
    names += _names(metric, f'metrics[{i}]', outputs, batch)
  if len(set(names)) < len(names):
    raise InputError(f'metrics: the names {names} must differ')


def _names(metric: Metric, name: str, outputs: Any, batch: Batch) -> list[str]:
  """Returns the names of a metric's results."""
  rows = _traced(f'{name}.rows', metric.rows, outputs, batch)
  for leaf in jax.tree.leaves(rows):
    if not leaf.shape or leaf.shape[0] != _ROWS:
      raise InputError(
        f'{name}.rows: returns {describe_shapes(rows)} of a batch of {_ROWS}'
        f' examples, must have a row for each, [{_ROWS}, ...]'
      )
  sums = jax.tree.map(lambda leaf: np.ones(leaf.shape[1:]), rows)
  try:
    results = metric.result(sums)
  except Exception as error:  # Of a person's own metric, anything.
    raise InputError(f'{name}.result: fails ({first_lines(error)})') from error
  if not isinstance(results, dict) or not results:
    raise InputError(
      f'{name}.result: returns {results!r}, must return a number under a name'
    )
  for key, value in results.items():
    if not isinstance(key, str) or np.shape(value) != ():
      raise InputError(
        f'{name}.result: returns {key!r} = {value!r}, must be one number under'
        ' a name'
      )
  return list(results)


def batch_of(x: Any, y: Any, *, padding: int = 0) -> Batch:
  """Makes a batch of three rows, the last of which is masked out.

  Args:
    x: [n, ...] inputs, or a pytree of them.
    y: [n, ...] targets.
    padding: the row that the last one repeats, 0 or 1.
  """
  last = trees.num_rows(x) - 1
  rows = np.array([0, last, min(padding, last)])
  return Batch(
    trees.map_arrays(jnp.asarray, trees.take(x, rows)),
    trees.map_arrays(jnp.asarray, trees.take(y, rows)),
    jnp.array([True, True, False]),
    jnp.int32(2),
  )


def _of_real(trained: tuple[jax.Array, Any, Any]) -> Any:
  """Returns what may not depend on the last row."""
  losses, state, _ = trained
  return losses[:2], jax.tree.map(np.asarray, state)


def _traced(what: str, fn: Callable, *args: Any) -> Any:
  """Returns the shapes of what a function returns."""
  try:
    return jax.eval_shape(fn, *args)
  except InputError:
    raise
  except Exception as error:  # Of a person's own function, anything.
    raise InputError(
      f'{what}: fails on a batch ({first_lines(error)})'
    ) from error


def _is_ours(function: Callable) -> bool:
  module = getattr(function, '__module__', None) or ''
  return module.partition('.')[0] == __name__.partition('.')[0]
