"""Checks models, losses and metrics on three rows before compilation.

An error is one line that names the function, its return value and the expected
one. User-defined functions also run on two batches that differ in a masked row,
on which neither losses nor state may depend.
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

_ROWS = 3  # A batch has two real rows and one that is masked.


def check_task(
  task: Task,
  algorithm: Algorithm,
  variables: Params | Variables,
  x: Any,
  y: Any,
  seed: int,
) -> None:
  """Raises InputError where a function returns an unexpected value.

  Args:
    task: the task to check.
    algorithm: the algorithm of the run; the context has its states.
    variables: the model's variables, or their shapes.
    x: [n, ...] inputs, or a pytree of them; the first two are used.
    y: [n, ...] targets, or a pytree of them.
    seed: the seed of the run.
  """
  few = [
    trees.map_arrays(np.asarray, trees.take(own, slice(2))) for own in (x, y)
  ]
  first = batch_of(*few)

  def train(variables, batch):
    return train_once(task, algorithm, variables, batch)

  losses, new_state, old_state = _traced(
    'the model or the loss', train, variables, first
  )
  if not hasattr(losses, 'shape') or losses.shape != (_ROWS,):
    raise InputError(
      f'loss: returns {describe_shapes(losses)} for a batch of {_ROWS} rows,'
      f' must be one number per row, [{_ROWS}]'
    )
  if not jnp.issubdtype(losses.dtype, jnp.floating):
    raise InputError(
      f'loss: returns {losses.dtype}, must be floating-point numbers'
    )
  got, expected = describe_shapes(new_state), describe_shapes(old_state)
  if got != expected:
    raise InputError(
      f'model {task.model.name!r}: train returns the state {got}, must be'
      f' {expected}, as in the input'
    )
  _check_metrics(task, variables, first)
  if all(map(_is_ours, (task.model.apply, task.loss))) and (
    task.model.train is None
  ):
    return
  # Outside jit, so that initialisation compiles only once, here or in round 1.
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
        ' reads other rows of a batch must ignore these'
      )


def train_once(
  task: Task,
  algorithm: Algorithm,
  variables: Params | Variables,
  batch: Batch,
) -> tuple[jax.Array, Any, Any]:
  """Computes the model and the loss as the first step of client 0 would.

  Returns:
    Losses [B], and the untrained state of the model after and before the step.
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
  """Raises InputError for invalid rows or results, or a duplicate name."""
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
        f'{name}.rows: returns {describe_shapes(rows)} for a batch of'
        f' {_ROWS} rows, must be [{_ROWS}, ...]'
      )
  sums = jax.tree.map(lambda leaf: np.ones(leaf.shape[1:]), rows)
  try:
    results = metric.result(sums)
  except Exception as error:  # User code may raise anything.
    raise InputError(f'{name}.result: fails ({first_lines(error)})') from error
  if not isinstance(results, dict) or not results:
    raise InputError(
      f'{name}.result: returns {results!r}, must return a dictionary of'
      ' numbers by name'
    )
  for key, value in results.items():
    if not isinstance(key, str) or np.shape(value) != ():
      raise InputError(
        f'{name}.result: returns {key!r} = {value!r}, must be one number with'
        ' a string as its key'
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
  """Returns the real rows' losses and the state, free of the masked row."""
  losses, state, _ = trained
  return losses[:2], jax.tree.map(np.asarray, state)


def _traced(what: str, fn: Callable, *args: Any) -> Any:
  """Traces a function and returns the shapes of its results."""
  try:
    return jax.eval_shape(fn, *args)
  except InputError:
    raise
  except Exception as error:  # User code may raise anything.
    raise InputError(
      f'{what}: fails on a batch ({first_lines(error)})'
    ) from error


def _is_ours(function: Callable) -> bool:
  module = getattr(function, '__module__', None) or ''
  return module.partition('.')[0] == __name__.partition('.')[0]
