"""Parts of a run that `train` is given as objects, in the place of names.

A config then has their names, so that a run knows whether it resumes with
the same parts.
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
  """What was given from Python, None for what a config names.

  Attributes:
    dataset: in memory, or opened on disk.
    model: any.
    algorithm: any.
    loss: (outputs, batch) -> [B].
    metrics: at least one.
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
  """Returns what was given, each of its kind; metrics may be a single one.

  Raises:
    InputError: something is of another kind.
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
  """Returns settings that have the names of what was given.

  Raises:
    InputError: they name something from Python that was not given.
  """
  for part, own in given._asdict().items():
    text = getattr(cfg, part)
    if own is None and references.is_from_python(text):
      raise InputError(
        f'{part} = {text!r}: was given from Python; must be given again, as'
        f' fedavg_jax.train(config, workdir, {part}=...)'
      )
  names = {
    part: references.from_python(name_of(own))
    for part, own in given._asdict().items()
    if own is not None
  }
  return cfg.replace(names) if names else cfg


def name_of(part: Any) -> str:
  """Returns by whose functions something was made; of a data set its name.

  A person's own functions name it; else ours, or the first of whoever's.
  """
  if isinstance(part, Dataset):
    return part.name
  if isinstance(part, Metric):
    return _maker(part.rows)
  if not isinstance(part, (Model, Algorithm)) and isinstance(part, tuple):
    return ', '.join(map(name_of, part))
  functions = list(_functions(part, set()))
  own = [function for function in functions if is_own_object(_made(function))]
  makers = list(dict.fromkeys(map(_maker, own or functions)))
  # Defaults of the contracts are in all of them.
  ours = [
    name
    for name in makers
    if name.startswith(f'{_OURS}.')
    and not name.startswith(f'{_OURS}.contracts')
  ]
  return ', '.join(makers if own else ours or makers[:1])


def _functions(part: Any, seen: set[int]) -> Iterator[Callable]:
  """Yields all functions within tuples, and within those that they hold.

  Args:
    part: a function, or tuples of them.
    seen: what was yielded before, by `id`; functions may hold each other.
  """
  if isinstance(part, (list, tuple)):
    for inner in part:
      yield from _functions(inner, seen)
  elif callable(part) and id(part) not in seen:
    seen.add(id(part))
    yield part
    for cell in getattr(part, '__closure__', None) or ():
      with contextlib.suppress(ValueError):  # It is empty yet.
        yield from _functions(cell.cell_contents, seen)


def _made(function: Any) -> Any:
  """Returns the function or the class that something callable is from."""
  while isinstance(function, functools.partial):
    function = function.func
  return function if hasattr(function, '__qualname__') else type(function)


def _maker(function: Any) -> str:
  """Returns the module and name of the function that a closure is from."""
  made = _made(function)
  return f'{made.__module__}.{made.__qualname__.partition(".<locals>")[0]}'
