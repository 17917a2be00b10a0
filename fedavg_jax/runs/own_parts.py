"""Calls the user-defined functions that a config names for a part of a run.

The parts are data set, model, algorithm, loss and metrics: `config.model =
'module:function'` calls the function with the data set and
`config.options.model`. Importing the module runs its code.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import catalog
from fedavg_jax.data import tables
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.runs import metric_words
from fedavg_jax.runs import own_code
from fedavg_jax.runs.part_names import OWN_PARTS
from fedavg_jax.runs.part_names import own_name
from fedavg_jax.runs.run_config import RunConfig

if TYPE_CHECKING:
  from fedavg_jax.contracts.algorithm import Algorithm
  from fedavg_jax.contracts.losses import Loss
  from fedavg_jax.contracts.metrics import Metric
  from fedavg_jax.contracts.model import Model


def is_own(cfg: RunConfig, part: str) -> bool:
  """Returns whether a part is user-defined."""
  return bool(own_name(cfg, part))


def import_all(cfg: RunConfig) -> None:
  """Imports every module that a config names, so that `code_sha256` has it."""
  for part in OWN_PARTS:
    if name := own_name(cfg, part):
      references.load(name, f'{part} = {getattr(cfg, part)!r}')


def load_dataset(cfg: RunConfig) -> Dataset:
  """Loads the data set of a config, or calls `function(**options)` for it."""
  if is_own(cfg, 'dataset'):
    return _call(cfg, 'dataset', Dataset)
  columns = tables.check(cfg.options.get('dataset', {}))
  return catalog.load_dataset(cfg.dataset, cfg.data_dir, columns)


def model(cfg: RunConfig, dataset: Dataset) -> 'Model':
  """Calls `function(dataset, **options)`, which returns a model."""
  from fedavg_jax.contracts.model import Model  # Imports JAX, as below.

  return _call(cfg, 'model', Model, dataset)


def algorithm(cfg: RunConfig) -> 'Algorithm':
  """Calls `function(config, **options)`, which returns an algorithm.

  Args:
    cfg: the config, in which a sweep has traced numbers such as learning rates.
  """
  from fedavg_jax.contracts.algorithm import Algorithm

  return _call(cfg, 'algorithm', Algorithm, cfg)


def loss(cfg: RunConfig, dataset: Dataset) -> 'Loss':
  """Returns a built-in loss, or calls `function(dataset, **options)` for it."""
  from fedavg_jax.contracts import losses

  if is_own(cfg, 'loss'):
    return _call(cfg, 'loss', Callable, dataset)
  return getattr(losses, cfg.loss or 'cross_entropy')


def metrics(
  cfg: RunConfig, dataset: Dataset, loss: 'Loss'
) -> tuple['Metric', ...] | None:
  """Returns the metrics that a config names, None where it names none.

  Args:
    cfg: the checked config; a user-defined `function(dataset, **options)`
      returns one metric or several.
    dataset: the data set of the config.
    loss: the training loss, whose mean is the metric 'loss'.
  """
  found: list[Metric] = []
  for word in metric_words.split(cfg.metrics):
    found += _metrics_of(cfg, word, dataset, loss)
  return tuple(found) or None


def _metrics_of(
  cfg: RunConfig, word: str, dataset: Dataset, loss: 'Loss'
) -> Sequence['Metric']:
  """Returns the metric of a word, or those of a user-defined function."""
  from fedavg_jax.contracts import losses
  from fedavg_jax.contracts import metrics as ready_made

  if references.is_reference(word):
    found = _call(cfg, 'metrics', Sequence, dataset)
    found = [found] if isinstance(found, ready_made.Metric) else list(found)
    if not found or not all(isinstance(m, ready_made.Metric) for m in found):
      raise InputError(
        f'metrics = {cfg.metrics!r}: returns {found!r:.80}, must return a'
        ' Metric, or several'
      )
    return found
  if top := metric_words.TOP.fullmatch(word):
    return [ready_made.top_k(int(top[1]))]
  if word == 'loss' and loss is not losses.cross_entropy:
    return [ready_made.mean_loss(loss)]
  names = {'loss': 'label_loss'}
  return [getattr(ready_made, names.get(word, word))()]


def code_sha256(cfg: RunConfig) -> dict[str, str]:
  """Returns the SHA-256 of each imported user file, by its module.

  It is empty where the config has no user-defined part. Files of Python, of
  installed packages and of this one are not user files.
  """
  if not any(
    is_own(cfg, part) or references.is_from_python(getattr(cfg, part))
    for part in OWN_PARTS
  ):
    return {}
  found = own_code.file_sha256()
  if any(references.is_from_python(getattr(cfg, part)) for part in OWN_PARTS):
    # A script that calls `train` may change its rounds; parts that are objects
    # are compared by what they compute.
    found.pop('__main__', None)
  return found


def _call(cfg: RunConfig, part: str, kind: Any, *args: Any) -> Any:
  """Calls a user-defined function, which must return an object of a type."""
  text = getattr(cfg, part)
  function = references.load(own_name(cfg, part), f'{part} = {text!r}')
  try:
    found = function(*args, **cfg.options.get(part, {}))
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # User code may raise anything.
    raise InputError(
      f'{part} = {text!r}: fails ({references.reason(error)})'
    ) from error
  if not isinstance(found, kind):
    raise InputError(
      f'{part} = {text!r}: returns {type(found).__name__}, must return a'
      f' {kind.__name__}'
    )
  return found
