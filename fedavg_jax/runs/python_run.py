"""A run from Python: one call runs it, saves it and resumes it."""

from collections.abc import Callable
import contextlib
import itertools
import os
import pathlib
import signal
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.core.errors import DivergedError
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.compiled_round import ServerState
from fedavg_jax.engine.driver import DIVERGED
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.driver import check_rounds
from fedavg_jax.engine.driver import simulate
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import place
from fedavg_jax.runs.python_folder import PythonFolder
from fedavg_jax.runs.result import Best
from fedavg_jax.runs.result import Result
from fedavg_jax.runs.result import history
from fedavg_jax.runs.signals import Stop
from fedavg_jax.runs.signals import stop_on_signals
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
    start: continues from a result, or from server state and client states, of
      this simulation or of one with the same model and algorithm.
    on_round: called with the `Record` of every round, its states included; what
      returns True ends the run. Every round is then a call of its own.
    keep_best: keeps the model of the best test, those before `start` included
      where their run kept it; every tested round then ends a call.
    progress: shows a bar, in a notebook or on a terminal.
    folder: where the run is saved, every minute, at its end and at an error,
      Ctrl-C or SIGTERM. The same call continues what is there, to the same
      bits; it is refused where examples, model, algorithm or a setting differ.

  Returns:
    A `Result`, with the history from round 0 on.

  Raises:
    InputError: a value breaks its rule, or the folder is another run's.
    DivergedError: the loss or the model is not finite any more.
    InterruptedRunError: SIGTERM, where a folder has saved what was done.
  """
  check_rounds(simulation, rounds, eval_every, target)
  _check_arguments(simulation, on_round, keep_best, folder)
  with contextlib.ExitStack() as stack:
    kept, stop = None, Stop()
    if folder is not None:
      if start is not None:
        raise InputError('start: must be left out where a folder has the run')
      stop = stack.enter_context(stop_on_signals(raises=True))
      kept = stack.enter_context(PythonFolder(folder, simulation, keep_best))
      start = kept.result
    following = _Following(
      simulation, start, keep_best, same_run=kept is not None
    )
    if following.round > rounds:
      raise InputError(
        f'rounds = {rounds}: must be at least {following.round}, those that are'
        ' done'
      )
    bar = _bar(rounds, following.round) if progress else None
    if bar is not None:
      stack.callback(bar.close)
    for record in simulate(
      simulation,
      rounds=rounds,
      eval_every=eval_every,
      target=target,
      start=following.start,
      needs_state=lambda number: (
        on_round is not None
        or (keep_best and (number % eval_every == 0 or number == rounds))
      ),
      state_requested=kept.due if kept else lambda: False,
      should_stop=stop,
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
  _check_end(stop, following.round, folder)
  return following.result()


def _check_arguments(
  simulation: Simulation, on_round: Any, keep_best: Any, folder: Any
) -> None:
  """Raises InputError where an argument of `run` is of another kind."""
  if not isinstance(keep_best, bool):
    raise InputError(f'keep_best = {keep_best!r}: must be True or False')
  if keep_best and simulation.sweep is not None:
    raise InputError('keep_best = True: must be False in a sweep')
  if on_round is not None and not callable(on_round):
    raise InputError(
      f'on_round: is {type(on_round).__name__}, must be a function of a Record'
    )
  if isinstance(folder, os.PathLike):
    folder = os.fspath(folder)
  if folder is not None and not isinstance(folder, str):
    raise InputError(
      f'folder: is {type(folder).__name__}, must be the path of a folder'
    )
  if folder == '':
    raise InputError("folder = '': must name a folder")


def _check_end(
  stop: Stop, number: int, folder: str | pathlib.Path | None
) -> None:
  """Raises what a signal means, once all that was done is saved."""
  if stop.signum == signal.SIGINT:
    raise KeyboardInterrupt
  if stop():
    raise InterruptedRunError(
      f'round {number} is saved; the same call with folder={str(folder)!r}'
      ' continues it',
      signum=stop.signum,
    )


class _Following:
  """What a run has given so far.

  Attributes:
    start: what its first call begins with, None for round 0.
    best: the model of the best test, None where none was tested or kept.
  """

  def __init__(
    self,
    simulation: Simulation,
    start: Result | tuple[ServerState, Any] | None,
    keep_best: bool,
    *,
    same_run: bool,
  ):
    self._simulation, self._keep_best = simulation, keep_best
    self._rows: list[dict[str, Any]] = []
    self.best: Best | None = None
    before = None
    if isinstance(start, Result) and start.history:
      names, columns = zip(*start.history.items(), strict=True)
      self._rows = [
        dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
      ]
    if isinstance(start, Result):
      before, start = start.best, start.to_start()
    if start is not None:
      _check_start(start, simulation)
    self.start = self._reached = start
    if same_run:
      self.best = before
    elif keep_best and start is not None:
      # Tested here: it may have been by another metric, or on other examples.
      own = Best(self.round, 0.0, start[0].variables)
      for model in filter(None, (before, own)):
        variables = place(model.variables, simulation)
        self._hold_best(model.round, variables, simulation.evaluate(variables))

  @property
  def round(self) -> int:
    """The last round whose state is here."""
    if self._reached is None:
      return 0
    return int(np.max(jax.device_get(self._reached[0].round)))

  def take(self, record: Record) -> dict[str, Any]:
    """Adds a round; returns its row of the history."""
    row = {name: getattr(record, name) for name in _NAMES}
    if self._simulation.sweep is not None:
      row['finite'] = record.finite
    row |= {f'test_{name}': value for name, value in record.test.items()}
    self._rows.append(row)
    if record.state is not None and record.client_states is not None:
      self._reached = record.state, record.client_states
    if self._keep_best and record.test and record.state is not None:
      self._hold_best(record.round, record.state.variables, record.test)
    return row

  def _hold_best(
    self, number: int, variables: Any, test: dict[str, Any]
  ) -> None:
    """Takes a model that is better than the best one so far.

    Args:
      number: of the round that it is after.
      variables: of the model.
      test: its results.
    """
    name, value = next(iter(test.items()))
    lower = self._simulation.task.metrics[0].lower_is_better
    measure, value = Measure(name, lower), float(value)
    if np.isfinite(value) and (
      self.best is None or measure.score(value) > measure.score(self.best.value)
    ):
      self.best = Best(number, value, jax.device_get(variables))

  def result(self) -> Result:
    """Returns what the run gave."""
    assert self._reached is not None
    state, client_states = self._reached
    return Result(
      self._simulation, history(self._rows), state, client_states, self.best
    )


def _check_start(start: Any, simulation: Simulation) -> None:
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
  state, kept = jax.eval_shape(simulation.init)
  parts = [('the server has', start[0], state)]
  if simulation.host_states is None or not isinstance(start[1], ClientStates):
    parts.append(('the clients keep', start[1], kept))
  for what, found, wanted in parts:
    for there, here in itertools.zip_longest(
      _form(found), _form(wanted), fillvalue='nothing'
    ):
      if there != here:
        raise InputError(
          f'start: {what} {there} where this simulation has {here}; must be of'
          ' the same model and algorithm'
        )


def _form(tree: Any) -> list[str]:
  """Returns the leaves of a tree with their types and shapes."""
  return [
    f'{jax.tree_util.keystr(path)} {jnp.result_type(leaf)}{[*np.shape(leaf)]}'
    for path, leaf in jax.tree.leaves_with_path(tree)
  ]


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
