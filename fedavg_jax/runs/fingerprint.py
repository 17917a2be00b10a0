"""Computes the SHA-256 of the programs of the parts of a run.

Model, loss, metrics and algorithm are lowered to the programs that XLA would
compile, for clients of one or two examples. Parts that compute the same have
the same SHA-256, however their functions are written, named or wrapped; another
layer, learning rate or pretrained weight has another.
"""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
import re
from typing import Any

import jax
import numpy as np

from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task_checks import batch_of
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine.hyperparameter_axis import Trained
from fedavg_jax.engine.options import Federation
from fedavg_jax.engine.program import Program
from fedavg_jax.runs import checkpoint
from fedavg_jax.schedule.planning import Planner

# Arrays on disk may exceed memory: this number of rows is read.
_ROWS_READ = 3


def of_parts(
  task: Task, trained: Trained, clients: Clients, cohort_size: int
) -> dict[str, str]:
  """Returns the SHA-256 of model, loss, metrics and algorithm, in hexadecimal.

  Args:
    task: the model, its loss and its metrics.
    trained: the algorithm, or those of a sweep.
    clients: the clients, a few of whose examples define the shapes.
    cohort_size: M, on which an aggregation rule may depend.

  Returns:
    The SHA-256 by the name of the part.
  """
  small = _small(clients, cohort_size)
  model, batch = task.model, batch_of(*small[:2])
  variables = jax.eval_shape(model.init, jax.random.key(0))
  outputs = jax.eval_shape(model.apply, variables, batch.x)
  programs = {
    'model': [
      _lowered(model.init, jax.random.key(0)),
      _lowered(model.apply, variables, batch.x),
    ],
    'loss': [_lowered(task.loss, outputs, batch)],
    'metrics': [_of_metric(metric, outputs, batch) for metric in task.metrics],
    # A full round: if only this differs, it is the algorithm.
    'algorithm': [_of_round(task, trained, small)],
  }
  return {name: _sha256(*texts) for name, texts in programs.items()}


def of_arrays(tree: Any) -> str:
  """Returns the SHA-256 of arrays; of one on disk only three rows count.

  Args:
    tree: arrays in tuples and dictionaries.

  >>> of_arrays((np.zeros(2),)) == of_arrays((np.zeros(3),))
  False
  """
  return checkpoint.digest([_in_memory(array) for array in trees.arrays(tree)])


def of_program(text: str) -> str:
  """Returns the SHA-256 of a lowered program, without names of functions.

  Args:
    text: the result of `jax.stages.Lowered.as_text()`.
  """
  return _sha256(text)


def check(
  before: Mapping[str, Any], now: Mapping[str, str], of: str, place: str
) -> None:
  """Raises InputError if a part of a run computes something else than before.

  Args:
    before: the earlier SHA-256 of parts by name, from JSON; parts without one
      are not compared.
    now: the present SHA-256 of parts by name.
    of: the words for the run in messages.
    place: the word for its location, 'folder' or 'workdir'.
  """
  for name, sha256 in now.items():
    if before.get(name, sha256) != sha256:
      raise InputError(differs(name, of, place))


def differs(name: str, of: str, place: str) -> str:
  """Returns the message for a part that computes something else than before.

  Args:
    name: the name of the part.
    of: the words for the run.
    place: the word for its location, 'folder' or 'workdir'.
  """
  return (
    f'{name}: computes something else than {of}; restore its functions and the'
    f' numbers that they use, or choose a new {place}'
  )


def _of_metric(metric: Metric, outputs: Any, batch: Any) -> str:
  """Returns the program of a metric's rows, and its results for test sums."""
  rows = jax.eval_shape(metric.rows, outputs, batch)
  sums = jax.tree.map(
    lambda leaf: np.linspace(1, 2, leaf.size).reshape(leaf.shape).sum(0), rows
  )
  results = {name: float(value) for name, value in metric.result(sums).items()}
  text = _lowered(metric.rows, outputs, batch)
  return f'{text} {results} {metric.lower_is_better}'


def _small(clients: Clients, cohort_size: int) -> Clients:
  """Returns M clients: the first has two examples, the others one each."""
  found = []
  for arrays in clients[:2]:
    few = trees.map_arrays(np.asarray, trees.take(arrays, slice(_ROWS_READ)))
    rows = np.arange(cohort_size + 1) % trees.num_rows(few)
    found.append(trees.take(few, rows))
  x, y = found
  return Clients(x, y, np.array([0, *range(2, cohort_size + 2)]))


def _of_round(task: Task, trained: Trained, clients: Clients) -> str:
  """Returns the program of one round in which all clients train."""
  planner = Planner(
    num_examples=clients.num_examples,
    cohort_size=clients.num_clients,
    epochs=1,
    batch_size=2,
    seed=0,
  )
  federation = Federation(
    clients,
    Examples(*clients[:2]),
    client_fraction=1.0,
    epochs=1,
    batch_size=2,
  )
  device = jax.devices()[0]
  return (
    Program(
      task=task,
      federation=federation,
      trained=trained,
      planner=planner,
      mesh=compiled_round.lane_mesh([device]),
      platform=device.platform,
      rounds_per_call=1,
      counts_bytes=False,
    )
    .lower()
    .as_text()
  )


def _lowered(function: Callable, *args: Any) -> str:
  """Returns the program of a function as XLA receives it."""
  # A new function, because JAX caches traces by function.
  return jax.jit(lambda *args: function(*args)).lower(*args).as_text()


def _without_names(text: str) -> str:
  """Replaces names of functions by numbers in the order of definition.

  Addresses of Python functions called from the device are removed.
  """
  names = re.findall(r'func\.func \w+ @([\w.$]+)', text)
  numbers = {name: f'@f{i}' for i, name in enumerate(dict.fromkeys(names))}
  text = re.sub(
    r'@([\w.$]+)', lambda found: numbers.get(found[1], found[0]), text
  )
  text = re.sub(r'^module @\S+', 'module', text)
  return re.sub(r'(backend_config|index) = "?\d{6,}[^"},]*"?', r'\1', text)


def _in_memory(array: Any) -> np.ndarray:
  """Returns an array; of one on disk the shape and a few rows, flat."""
  if isinstance(array, (RowsOnDisk, np.memmap)):
    rows = np.unique(np.linspace(0, len(array) - 1, _ROWS_READ).astype(int))
    array = np.concatenate(
      [np.asarray(array.shape), *(array[row : row + 1].ravel() for row in rows)]
    )
  return np.asarray(array)


def _sha256(*texts: str) -> str:
  """Returns the SHA-256 of programs, without names of functions."""
  sha = hashlib.sha256()
  for text in map(_without_names, texts):
    sha.update(f'{len(text)} {text}'.encode())
  return sha.hexdigest()
