"""A run from Python: one call runs it, saves it and resumes it."""

import collections
from collections.abc import Callable
import contextlib
import pathlib
from typing import Any
import warnings

import jax
import numpy as np

from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.driver import DIVERGED
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.driver import simulate
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs.python_folder import PythonFolder
from fedavg_jax.runs.result import Best
from fedavg_jax.runs.result import Result
from fedavg_jax.runs.targets import Measure

_NAMES = 'round', 'train_loss', 'examples', 'seconds'


def run(
  simulation: Simulation,
  *,
  rounds: int,
  eval_every: int = 1,
  target: float = 0.0,
  start: Result | tuple[ServerState, Any] | None = None,
  on_round: Callable[[Record], bool | None] | None = None,
  keep_best: bool = False,
  progress: bool = False,
  folder: str | pathlib.Path | None = None,
) -> Result:
  """Runs a federation and returns all that it gave.

  Args:
    simulation: from `build_simulation` or `build_sweep`.
    rounds: of the whole run, those before `start` included.
    eval_every: rounds from one test to the next; the last one is tested too.
    target: of the first metric, which ends the run; 0 is none.
    start: continues from a result, or from server state and client states.
    on_round: called with the `Record` of every round, its states included; what
      returns True ends the run. Every round is then a call of its own.
    keep_best: keeps the model of the best test; every tested round then ends a
      call.
    progress: shows a bar, in a notebook or on a terminal.
    folder: where the run is saved, every minute, at its end and at an error or
      Ctrl-C. The same call continues what is there, to the same bits; it must
      have the same algorithm and training examples, which are not compared.

  Returns:
    A `Result`, with the history from round 0 on.

  Raises:
    InputError: a value breaks its rule, or the folder is another run's.
    DivergedError: the loss or the model is not finite any more.
  """
  with contextlib.ExitStack() as stack:
    kept = None
    if folder is not None:
      if start is not None:
        raise InputError('start: must be left out where a folder has the run')
      kept = stack.enter_context(PythonFolder(folder, simulation, keep_best))
      start = kept.result
    following = _Following(simulation, start, keep_best)
    bar = _bar(rounds, following.round) if progress else None
    if bar is not None:
      stack.callback(bar.close)
    for record in simulate(
      simulation,
      rounds=rounds,
      eval_every=eval_every,
      target=target,
      start=following.start,
      wanted=lambda number: (
        on_round is not None
        or (keep_best and (number % eval_every == 0 or number == rounds))
      ),
      looking=kept.due if kept else lambda: False,
    ):
      row = following.take(record)
      if kept is not None:
        kept.take(record, row, following.best)
      if bar is not None:
        _show(bar, record)
      if not np.any(record.finite):
        raise DivergedError(f'round {record.round}: {DIVERGED}')
      if on_round is not None and on_round(record):
        break
  return following.result()


class _Following:
  """What a run has given so far.

  Attributes:
    round: the last one.
    start: what its first call begins with, None for round 0.
    best: the model of the best test, None where none was tested or kept.
  """

  def __init__(
    self,
    simulation: Simulation,
    start: Result | tuple[ServerState, Any] | None,
    keep_best: bool,
  ):
    if keep_best and simulation.sweep is not None:
      raise InputError('keep_best = True: must be False in a sweep')
    self._simulation, self._keep_best = simulation, keep_best
    self._rows: dict[str, list] = collections.defaultdict(list)
    self._tests: tuple[str, ...] = ()
    self.best: Best | None = None
    if isinstance(start, Result):
      self.best = start.best
      for name, values in start.history.items():
        self._rows[name] = list(values)
      self._tests = tuple(name for name in start if name.startswith('test_'))
      start = start.to_start()
    elif start is not None:
      _check_start(start)
    self.start = self._reached = start

  @property
  def round(self) -> int:
    """The last round whose state is here."""
    if self._reached is None:
      return 0
    return int(np.max(jax.device_get(self._reached[0].round)))

  def take(self, record: Record) -> dict[str, Any]:
    """Adds a round; returns its row of the history."""
    row = {name: getattr(record, name) for name in _NAMES}
    row |= {f'test_{name}': value for name, value in record.test.items()}
    self._tests = self._tests or tuple(name for name in row if 'test_' in name)
    row = {
      name: np.nan if (value := row.get(name)) is None else value
      for name in (*_NAMES, *self._tests)
    }
    for name, value in row.items():
      self._rows[name].append(value)
    if record.state is not None and record.client_states is not None:
      self._reached = record.state, record.client_states
    if self._keep_best and record.test and record.state is not None:
      self._hold_best(record)
    return row

  def _hold_best(self, record: Record) -> None:
    """Takes a model that is better than the best one so far."""
    lower = self._simulation.task.metrics[0].lower_is_better
    measure = Measure(next(iter(record.test)), lower)
    value = float(record.test[measure.name])
    if not np.isfinite(value):
      return
    if self.best is None or (
      measure.score(value) > measure.score(self.best.value)
    ):
      assert record.state is not None
      variables = jax.device_get(record.state.variables)
      self.best = Best(record.round, value, variables)

  def result(self) -> Result:
    """Returns what the run gave."""
    assert self._reached is not None
    state, client_states = self._reached
    history = {
      # What a sweep lacks at a round, it lacks for each of its values.
      name: np.array(np.broadcast_arrays(*values))
      for name, values in self._rows.items()
    }
    return Result(self._simulation, history, state, client_states, self.best)


def _check_start(start: Any) -> None:
  """Raises InputError where a run cannot start from something."""
  if (
    not isinstance(start, tuple)
    or len(start) != 2
    or not isinstance(start[0], ServerState)
  ):
    raise InputError(
      f'start: is {type(start).__name__}, must be a result of `run`, or server'
      ' state and client states'
    )


def _bar(rounds: int, done: int) -> Any:
  """Returns a bar, of widgets in a notebook that has them."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Without widgets it is text.
    from tqdm.auto import tqdm
  return tqdm(total=rounds, initial=done, unit='round')


def _show(bar: Any, record: Record) -> None:
  """Moves a bar to a round."""
  if record.test:
    name, value = next(iter(record.test.items()))
    bar.set_postfix({f'test {name}': np.round(value, 4)}, refresh=False)
  bar.update(record.round - bar.n)
