"""Handles parts of a run that `train` receives as Python objects.

The config then has their names, which show whether a run resumes with the same
parts.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
from typing import Any
from typing import NamedTuple

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.runs.own_code import is_own_object
from fedavg_jax.runs.run_config import RunConfig

_OURS = __name__.partition('.')[0]


class Given(NamedTuple):
  """Holds the objects given from Python; None where the config names one.

  Attributes:
    dataset: a data set in memory, or opened on disk.
    model: a model.
    algorithm: an algorithm.
    loss: a loss, (outputs, batch) -> [B].
    metrics: one metric or more.
  """

  dataset: Dataset | None = None
  model: Model | None = None
  algorithm: Algorithm | None = None
  loss: Loss | None = None
  metrics: tuple[Metric, ...] | None = None


NOTHING = Given()


def check(
  dataset: Any, model: Any, algorithm: Any, loss: Any, metrics: Any
) -> Given:
  """Checks the types of the objects; `metrics` may be a single metric.

  Raises:
    InputError: an object has another type.
  """
  for name, part, kind in (
    ('dataset', dataset, Dataset),
    ('model', model, Model),
    ('algorithm', algorithm, Algorithm),
  ):
    if part is not None and not isinstance(part, kind):
      raise InputError(
        f'{name}: is {type(part).__name__}, must be an fa.{kind.__name__}'
      )
  if loss is not None and not callable(loss):
    raise InputError(
      f'loss: is {type(loss).__name__}, must be a function (outputs, batch)'
    )
  if metrics is not None:
    several = isinstance(metrics, (list, tuple))
    if isinstance(metrics, Metric) or not several:
      metrics = [metrics]
    if not metrics:
      raise InputError('metrics: must hold at least one')
    for i, metric in enumerate(metrics):
      if not isinstance(metric, Metric):
        raise InputError(
          f'metrics[{i}]: is {type(metric).__name__}, must be an fa.Metric'
        )
    metrics = tuple(metrics)
  return Given(dataset, model, algorithm, loss, metrics)


def named(cfg: RunConfig, given: Given) -> RunConfig:
  """Returns a config with the names of the given objects.

  Raises:
    InputError: the config names an object from Python that was not given.
  """
  for name, part in given._asdict().items():
    text = getattr(cfg, name)
    if part is None and references.is_from_python(text):
      raise InputError(
        f'{name} = {text!r}: was given from Python; must be given again, as'
        f' fedavg_jax.train(config, workdir, {name}=...)'
      )
  names = {
    name: references.from_python(name_of(part))
    for name, part in given._asdict().items()
    if part is not None
  }
  return cfg.replace(names) if names else cfg


def name_of(part: Any) -> str:
  """Returns the names of the functions that made a part, or of a data set.

  User-defined functions come first, else the package's, else the first one.
  """
  if isinstance(part, Dataset):
    return part.name
  if isinstance(part, Metric):
    return _maker(part.rows)
  if not isinstance(part, (Model, Algorithm)) and isinstance(part, tuple):
    return ', '.join(map(name_of, part))
  functions = list(_functions(part, set()))
  custom = [
    function for function in functions if is_own_object(_made(function))
  ]
  makers = list(dict.fromkeys(map(_maker, custom or functions)))
  # All parts have the defaults of the contracts.
  ours = [
    name
    for name in makers
    if name.startswith(f'{_OURS}.')
    and not name.startswith(f'{_OURS}.contracts')
  ]
  return ', '.join(makers if custom else ours or makers[:1])


def _functions(part: Any, seen: set[int]) -> Iterator[Callable]:
  """Yields all functions in a part, and those in their closures.

  Args:
    part: a function, or nested tuples of functions.
    seen: the `id` of every function before, since functions may refer to each
      other.
  """
  if isinstance(part, (list, tuple)):
    for inner in part:
      yield from _functions(inner, seen)
  elif callable(part) and id(part) not in seen:
    seen.add(id(part))
    yield part
    for cell in getattr(part, '__closure__', None) or ():
      with contextlib.suppress(ValueError):  # The cell is still empty.
        yield from _functions(cell.cell_contents, seen)


def _made(function: Any) -> Any:
  """Returns the function, or the class, behind a callable."""
  while isinstance(function, functools.partial):
    function = function.func
  return function if hasattr(function, '__qualname__') else type(function)


def _maker(function: Any) -> str:
  """Returns module and name of the function that defines a closure."""
  made = _made(function)
  return f'{made.__module__}.{made.__qualname__.partition(".<locals>")[0]}'
