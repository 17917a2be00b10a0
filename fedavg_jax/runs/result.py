"""What a run from Python gives: its history, its models, where it continues."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.contracts.model import split
from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import examples
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.models import layers
from fedavg_jax.runs.snapshots import are_stored

# Examples at a time: enough to be fast, few enough to bound memory.
_BATCH = 256


class Best(NamedTuple):
  """The model whose test was the best of a run.

  Attributes:
    round: after which it was tested, the first of equal ones.
    value: of the first metric.
    variables: its parameters, or `Variables` with its state too, on the host.
  """

  round: int
  value: float
  variables: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Result(Mapping[str, np.ndarray]):
  """What a run from Python gave; as a mapping it is the history.

  The history has an entry per round, round 0 included, under 'round',
  'train_loss', 'examples', 'seconds' and 'test_<name>' of each test's results,
  such as 'test_accuracy'; NaN where there was none. Of a sweep [R, G], but for
  round and seconds, and with 'finite', which tells where a value diverged. A
  run that starts from states has the rounds behind them.

  Attributes:
    simulation: that was run.
    history: name -> [R + 1] of numbers, see `history`.
    state: of the server after the last round.
    client_states: what all clients keep after it. A run that starts from here
      takes them along: a second one cannot.
    best: the model of the best test; None unless it was asked for.
  """

  simulation: Simulation = dataclasses.field(repr=False)
  history: dict[str, np.ndarray]
  state: ServerState = dataclasses.field(repr=False)
  client_states: Any = dataclasses.field(repr=False)
  best: Best | None = dataclasses.field(default=None, repr=False)
  _changes: int = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    # States on the host are changed in their place by whoever continues.
    changes = getattr(self.client_states, 'changes', 0)
    object.__setattr__(self, '_changes', changes)

  def to_start(self) -> tuple[ServerState, Any]:
    """Returns server state and client states to continue from.

    Raises:
      InputError: another run has taken the client states along.
    """
    if not are_stored(self.client_states, self._changes):
      raise InputError(
        'start: another run has taken along what its clients keep; start from'
        ' the result of that run, or save runs in folders'
      )
    return self.state, self.client_states

  @property
  def variables(self) -> Any:
    """The final model as `Model.apply` takes it, on the host."""
    return jax.device_get(self.state.variables)

  @property
  def params(self) -> Any:
    """The final parameters, on the host; of a sweep with a leading axis [G]."""
    return split(self.variables)[0]

  def predict(self, x: Any, *, best: bool = False) -> Any:
    """Runs the final model on examples.

    Args:
      x: [n, ...], in the form and on the scale of the clients' examples.
      best: takes the best model in its place.

    Returns:
      What the model makes of them, on the host: [n, classes] of logits for a
      classifier, whose classes are `argmax(axis=-1)`.

    Raises:
      InputError: it was a sweep, x does not fit, or no best model was kept.
    """
    if self.simulation.sweep is not None:
      raise InputError('predict: a sweep has a model per value; run one value')
    if best and self.best is None:
      raise InputError('best = True: needs a run with keep_best=True')
    variables = self.best.variables if best and self.best else self.variables
    x = exact.inputs(x, 'x')
    test = jax.tree.map(lambda array: array[0], self.simulation.test.x)
    examples.check_alike(test, x, 'x', 'the test set')
    if not trees.num_rows(x):
      raise InputError('x: holds no example, must hold at least one')
    apply = jax.jit(self.simulation.task.model.apply)
    # One size for all, so that it compiles once.
    number = trees.num_rows(x)
    rows = np.minimum(np.arange(-(-number // _BATCH) * _BATCH), number - 1)
    platform = self.simulation.mesh.devices.flat[0].platform
    with layers.for_platform(platform):
      outputs = [
        jax.device_get(apply(variables, trees.take(x, rows[i : i + _BATCH])))
        for i in range(0, len(rows), _BATCH)
      ]
    return jax.tree.map(lambda *a: np.concatenate(a)[:number], *outputs)

  def __getitem__(self, name: str) -> np.ndarray:
    return self.history[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.history)

  def __len__(self) -> int:
    return len(self.history)


def history(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Returns the columns of rows; what a row lacks, and null of JSON, is NaN.

  >>> history([{'round': 0}, {'round': 1, 'test_loss': [0.5, None]}])
  {'round': array([0, 1]), 'test_loss': array([[nan, nan],
         [0.5, nan]])}
  """
  names = list(dict.fromkeys(name for row in rows for name in row))
  return {
    name: np.array(
      np.broadcast_arrays(*(_number(row.get(name)) for row in rows))
    )
    for name in names
  }


def _number(value: Any) -> Any:
  """Returns a number, or an array of them, of JSON."""
  if isinstance(value, list):
    return np.array([_number(one) for one in value])
  return np.nan if value is None else value
