"""Defines the result of a run from Python: history, models and states."""

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
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import examples
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs.prediction import predict
from fedavg_jax.runs.snapshots import are_stored


class Best(NamedTuple):
  """Holds the model whose test was the best of a run.

  Attributes:
    round: the round after which it was tested, the first of equal ones.
    value: the value of the first metric.
    variables: the parameters, or `Variables` with a state too, on the host.
  """

  round: int
  value: float
  variables: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Result(Mapping[str, np.ndarray]):
  """Holds the result of a run from Python; as a mapping it is the history.

  The history has one entry per round, from round 0 on, under 'round',
  'train_loss', 'examples', 'seconds', 'info_<name>' for each of the algorithm's
  `info`, and 'test_<name>' for each metric, such as 'test_accuracy'; NaN where
  there is none. In a sweep of G values, the columns
  other than 'round' and 'seconds' have a second axis, [R + 1, G], and 'finite'
  is False where a value has diverged. A run that starts from states has only
  the rounds after them.

  >>> import fedavg_jax as fa
  >>> import optax
  >>> data = fa.load_dataset('digits')
  >>> parts = fa.partition.iid(1500, num_clients=30, seed=0)
  >>> simulation = fa.build_simulation(
  ...     fa.build_model('2nn', data),
  ...     fa.Federation(fa.build_clients(data.train, parts), data.test,
  ...                   client_fraction=0.1, epochs=1, batch_size=10),
  ...     fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)))
  >>> result = fa.run(simulation, rounds=1, keep_best=True)
  >>> result['test_accuracy'].shape, result.predict(data.test.x[:3]).shape
  ((2,), (3, 10))
  >>> len(fa.run(simulation, rounds=2, start=result)['round'])
  3

  Attributes:
    simulation: the simulation that was run.
    history: name -> column of numbers, [R + 1]; see `history`.
    state: the server state after the last round.
    client_states: the client states after the last round. They are moved to a
      run that starts from this result; a second run cannot start from it.
    best: the model of the best test, None without keep_best=True.
  """

  simulation: Simulation = dataclasses.field(repr=False)
  history: dict[str, np.ndarray]
  state: ServerState = dataclasses.field(repr=False)
  client_states: Any = dataclasses.field(repr=False)
  best: Best | None = dataclasses.field(default=None, repr=False)
  _changes: int = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    # A run that continues changes states on the host in place.
    changes = getattr(self.client_states, 'changes', 0)
    object.__setattr__(self, '_changes', changes)

  def to_start(self) -> tuple[ServerState, Any]:
    """Returns server state and client states to continue from.

    Raises:
      InputError: another run has started from this result already.
    """
    if not are_stored(self.client_states, self._changes):
      raise InputError(
        'start: another run has continued from its client states; start from'
        ' the result of that run, or save runs in folders'
      )
    return self.state, self.client_states

  @property
  def variables(self) -> Any:
    """Returns the final model on the host, as `Model.apply` takes it."""
    return jax.device_get(self.state.variables)

  @property
  def params(self) -> Any:
    """Returns the final parameters on the host; a sweep adds an axis [G]."""
    return split(self.variables)[0]

  def predict(self, x: Any, *, best: bool = False) -> Any:
    """Applies the final model to examples.

    Args:
      x: the examples, [n, ...], in the form and on the scale of the clients'.
      best: whether to apply the best model instead.

    Returns:
      The outputs of the model, on the host: for a classifier the logits,
      [n, classes], whose `argmax(axis=-1)` are the predicted classes.

    Raises:
      InputError: the run was a sweep, x does not fit, or no best model was
        kept.
    """
    if self.simulation.sweep is not None:
      raise InputError('predict: is not supported with a sweep; run one value')
    if best and self.best is None:
      raise InputError('best = True: needs a run with keep_best=True')
    variables = self.best.variables if best and self.best else self.variables
    x = exact.inputs(x, 'x')
    test = jax.tree.map(lambda array: array[0], self.simulation.test.x)
    examples.check_alike(test, x, 'x', 'the test set')
    task = self.simulation.task
    return predict(task.model, variables, x, self.simulation.arithmetic)

  def __getitem__(self, name: str) -> np.ndarray:
    return self.history[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.history)

  def __len__(self) -> int:
    return len(self.history)


def history(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Returns the columns of rows; missing values and JSON's null are NaN.

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
  """Turns a number or a list of JSON into a number or an array."""
  if isinstance(value, list):
    return np.array([_number(one) for one in value])
  return np.nan if value is None else value
