"""Loads the folder of a finished run: its model, history and pictures."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from fedavg_jax.contracts import model as model_lib
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import exact
from fedavg_jax.core import optional
from fedavg_jax.core import references
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import atomic_write_new
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import examples
from fedavg_jax.engine.arithmetic import Arithmetic
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import compare
from fedavg_jax.runs import model_card
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import personal_builder
from fedavg_jax.runs import plots
from fedavg_jax.runs import run_config
from fedavg_jax.runs.prediction import predict
from fedavg_jax.runs.result import history
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.titles import describe


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
  """Holds a run that was loaded from its folder by `load_run`.

  >>> import fedavg_jax as fa
  >>> [field.name for field in dataclasses.fields(fa.LoadedRun)][:4]
  ['folder', 'config', 'status', 'history']

  Attributes:
    folder: the folder of the run.
    config: the settings of the run.
    status: the reason of its end, such as 'finished', or 'interrupted'.
    history: name -> column of numbers, [lines], the keys of metrics.jsonl, such
      as 'round' and 'test_accuracy'; NaN where a round has none.
    final: the value of the first metric on the test set, of the last model;
      None if unknown.
  """

  folder: pathlib.Path
  config: RunConfig = dataclasses.field(repr=False)
  status: str
  history: dict[str, np.ndarray] = dataclasses.field(repr=False)
  final: float | None
  _run: compare.Run = dataclasses.field(repr=False)
  _model: Model | None = dataclasses.field(repr=False)

  @property
  def params(self) -> Any:
    """Returns the final parameters as nested dictionaries of arrays."""
    return self._tree(best=False)['params']

  def predict(self, x: Any, *, best: bool = False) -> Any:
    """Applies the final model to examples.

    Args:
      x: the examples, [n, ...], in the form and on the scale of the clients'.
      best: whether to apply the model of the best test among the checkpoints.

    Returns:
      The outputs of the model, on the host: for a classifier the logits,
      [n, classes], whose `argmax(axis=-1)` are the predicted classes.

    Raises:
      InputError: x does not fit, or the model is needed, see `load_run`.
    """
    x = exact.inputs(x, 'x')
    model = self.model
    if self._model is None:
      test = self._dataset.test.x
      examples.check_alike(test, x, 'x', 'the test set')
    variables = _filled(model, self._tree(best=best))
    arithmetic = Arithmetic(
      jax.default_backend(), self.config.precision, self.config.deterministic
    )
    return predict(model, variables, x, arithmetic)

  @functools.cached_property
  def model(self) -> Model:
    """Returns the model, built as the run has built it.

    Raises:
      InputError: the run was given its model or its data from Python, and
        `load_run` was not given the model.
    """
    cfg = self.config
    for part in ('model', 'dataset'):
      if self._model is None and references.is_from_python(getattr(cfg, part)):
        raise InputError(
          f'{self.folder}: the run was given its {part} from Python; pass the'
          ' model: fa.load_run(folder, model=...)'
        )
    own_parts.import_all(cfg)
    model = self._model or builders.build_model(cfg, self._dataset)
    return personal_builder.build_model(cfg, model)

  @functools.cached_property
  def _dataset(self) -> Dataset:
    return own_parts.load_dataset(self.config)

  def to_frame(self) -> Any:
    """Returns the history as a pandas DataFrame, indexed by the round.

    Raises:
      InputError: pandas is not installed.
    """
    pandas = optional.load('pandas', 'to_frame', 'pandas')
    return pandas.DataFrame(self.history).set_index('round')

  def plot(self, path: str | os.PathLike) -> None:
    """Draws the curves of the run into a new PNG, PDF or SVG, by its ending.

    Raises:
      InputError: the file exists already, has another ending, or its folder
        does not exist.
    """
    path = pathlib.Path(path)
    if path.suffix not in plots.SUFFIXES:
      raise InputError(
        f'path = {str(path)!r}: must end with {", ".join(plots.SUFFIXES)}'
      )
    with _new_file(path) as part:
      plots.draw_curves(
        part,
        title=describe(self.config),
        records=self._run.records,
        measure=self._run.measure,
        target=self.config.ends_at,
        loss='cross entropy' if not self.config.loss else 'loss',
      )

  def export(self, folder: str | os.PathLike, *, best: bool = False) -> None:
    """Writes the model as safetensors, with a model card, into a new folder.

    `model.safetensors` has each array under its keys with dots, such as
    'dense.kernel', those of an untrained state after 'state.'; `README.md` is
    the card, with the settings and results of the run.

    Args:
      folder: the path of the folder, which must not exist.
      best: whether to export the model of the best test among the checkpoints.

    Raises:
      InputError: the folder exists or cannot be created, or safetensors is not
        installed.
    """
    tree = self._tree(best=best)
    arrays = trees.flat(tree['params'])
    state = tree.get('model_state')
    if state is not None:
      arrays |= trees.flat(state, 'state')
    model_card.write(
      pathlib.Path(folder), arrays, self.config, self._run, best=best
    )

  def _tree(self, *, best: bool) -> dict[str, Any]:
    return checkpoint.load_tree(self.folder, best=best)


def load_run(
  folder: str | os.PathLike, *, model: Model | None = None
) -> LoadedRun:
  """Loads a run that `fedavg-jax run`, a sweep or `train` has written.

  The model is read from its checkpoint when it is used.

  Args:
    folder: the folder of the run, which has ended or was interrupted.
    model: the model, for a run that was given its model or data from Python.

  Raises:
    InputError: it is not the folder of such a run, a file is damaged, or the
      model has another type.

  >>> import contextlib, io, tempfile
  >>> import fedavg_jax as fa
  >>> config = fa.RunConfig(rounds=1, num_clients=30, pictures=False)
  >>> data = fa.load_dataset('digits')
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with contextlib.redirect_stdout(io.StringIO()):
  ...     _ = fa.train(config, f'{folder}/run')
  ...   run = fa.load_run(f'{folder}/run')
  ...   logits = run.predict(data.test.x)
  >>> right = (logits.argmax(-1) == data.test.y).mean()
  >>> bool(np.isclose(run.history['test_accuracy'][-1], right))
  True
  """
  if model is not None and not isinstance(model, Model):
    raise InputError(f'model: is {type(model).__name__}, must be an fa.Model')
  path = pathlib.Path(folder)
  run = compare.read_run(path)
  return LoadedRun(
    folder=path,
    config=run_config.from_dict(run.config),
    status=run.status,
    history=history(run.records),
    final=run.final,
    _run=run,
    _model=model,
  )


_PARTS = 'params', 'model_state'


def _filled(model: Model, tree: dict[str, Any]) -> Any:
  """Returns the variables of a model with the arrays of a checkpoint.

  Raises:
    InputError: an array is missing, or has another shape than in the model.
  """
  found = {name: trees.flat(tree.get(name, {})) for name in _PARTS}

  def fill(name, path, leaf):
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    array = found[name].get('.'.join(keys), np.zeros(0))
    if not leaf.size:  # Checkpoints have no empty arrays.
      return np.zeros(leaf.shape, leaf.dtype)
    if array.shape != leaf.shape:
      raise InputError(
        f'model: expected {".".join(keys)} of the shape {list(leaf.shape)}, the'
        f' checkpoint has {list(array.shape)}; must be the model of the run'
      )
    return array

  like = jax.eval_shape(model.init, jax.random.key(0))
  parts = zip(_PARTS, model_lib.split(like), strict=True)
  return model_lib.join(
    *(
      jax.tree_util.tree_map_with_path(functools.partial(fill, name), part)
      for name, part in parts
    )
  )


def _new_file(
  path: pathlib.Path,
) -> contextlib.AbstractContextManager[pathlib.Path]:
  """Returns the context that writes a file, which must not exist yet."""
  if os.path.lexists(path):
    raise InputError(
      f'path = {str(path)!r}: exists already; choose a new path; existing files'
      ' are never overwritten'
    )
  if not path.parent.is_dir():
    raise InputError(
      f'path = {str(path)!r}: the folder {path.parent} does not exist'
    )
  return atomic_write_new(path)
