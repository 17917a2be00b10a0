"""Defines `fa.run`, which runs, saves and resumes a run from Python."""

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
  """Trains a federation; returns its history, states and models.

  The rounds are those of McMahan et al. (2017), Algorithm 1, with the algorithm
  of the simulation.

  >>> import fedavg_jax as fa
  >>> import optax
  >>> data = fa.load_dataset('digits')
  >>> parts = fa.partition.iid(1500, num_clients=30, seed=0)
  >>> simulation = fa.build_simulation(
  ...     fa.build_model('2nn', data),
  ...     fa.Federation(fa.build_clients(data.train, parts), data.test,
  ...                   client_fraction=0.1, epochs=1, batch_size=10),
  ...     fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)))
  >>> result = fa.run(simulation, rounds=2)
  >>> result['round'].tolist(), result['examples'].tolist()
  ([0, 1, 2], [0, 150, 150])

  Args:
    simulation: the output of `build_simulation` or `build_sweep`.
    rounds: the number of rounds of the entire run, including those before
      `start`.
    eval_every: the number of rounds between two tests; the last round is tested
      too.
    target: the value of the first metric that ends the run; 0 is none.
    start: a result to continue from, or server state and client states, of this
      simulation or of one with the same model and algorithm.
    on_round: a function of the `Record` of every round, with its states; if it
      returns True, the run ends. Every round is then a separate compiled call.
    keep_best: whether to keep the model of the best test, which may be that of
      `start` if its run kept one; every tested round then ends a compiled call.
    progress: whether to show a progress bar, in a notebook or on a terminal.
    folder: a folder in which the run is saved every minute, at its end and at
      an error, Ctrl-C or SIGTERM. The same call resumes from it to the same
      bits, and is an error if examples, model, algorithm or a setting differ.

  Returns:
    A `Result`, with the history from round 0 on.

  Raises:
    InputError: a value breaks its rule, or the folder belongs to another run.
    DivergedError: the loss or the model became NaN or infinite.
    InterruptedRunError: SIGTERM arrived; the folder has the finished rounds.
    KeyboardInterrupt: Ctrl-C was pressed.
  """
  check_rounds(simulation, rounds, eval_every, target)
  _check_arguments(simulation, on_round, keep_best, folder)
  with contextlib.ExitStack() as stack:
    saved, stop = None, Stop()
    if folder is not None:
      if start is not None:
        raise InputError('start: must be None with a folder, which has the run')
      stop = stack.enter_context(stop_on_signals(raises=True))
      saved = stack.enter_context(PythonFolder(folder, simulation, keep_best))
      start = saved.result
    tracked = _Tracker(simulation, start, keep_best, same_run=saved is not None)
    if tracked.round > rounds:
      raise InputError(
        f'rounds = {rounds}: must be at least {tracked.round}, the number of'
        ' finished rounds'
      )
    bar = _bar(rounds, tracked.round) if progress else None
    if bar is not None:
      stack.callback(bar.close)
    for record in simulate(
      simulation,
      rounds=rounds,
      eval_every=eval_every,
      target=target,
      start=tracked.start,
      needs_state=lambda number: (
        on_round is not None
        or (keep_best and (number % eval_every == 0 or number == rounds))
      ),
      state_requested=saved.due if saved else lambda: False,
      should_stop=stop,
    ):
      row = tracked.take(record)
      if saved is not None:
        saved.take(record, row, tracked.best)
      if bar is not None:
        _show(bar, record)
      if not np.any(record.finite):
        raise DivergedError(f'round {record.round}: {DIVERGED}')
      if on_round is not None and on_round(record):
        break
  _check_end(stop, tracked.round, folder)
  return tracked.result()


def _check_arguments(
  simulation: Simulation, on_round: Any, keep_best: Any, folder: Any
) -> None:
  """Raises InputError if an argument of `run` has a wrong type."""
  if not isinstance(keep_best, bool):
    raise InputError(f'keep_best = {keep_best!r}: must be True or False')
  if keep_best and simulation.sweep is not None:
    raise InputError('keep_best = True: is not supported with a sweep')
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
    raise InputError("folder = '': must be the path of a folder")


def _check_end(
  stop: Stop, number: int, folder: str | pathlib.Path | None
) -> None:
  """Raises the error of a signal, once all finished rounds are saved."""
  if stop.signum == signal.SIGINT:
    raise KeyboardInterrupt
  if stop():
    raise InterruptedRunError(
      f'round {number} is saved; the same call with folder={str(folder)!r}'
      ' resumes from there',
      signum=stop.signum,
    )


class _Tracker:
  """Tracks the history, the last states and the best model of a run.

  Attributes:
    start: the states that its first call starts from, None for round 0.
    best: the model of the best test, None if none was tested or kept.
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
    if isinstance(start, Result):
      names = list(start.history)
      self._rows = [
        dict(zip(names, row, strict=True))
        for row in zip(*start.history.values(), strict=True)
      ]
      before, start = start.best, start.to_start()
    if start is not None:
      _check_start(start, simulation)
    self.start = self._reached = start
    if same_run:
      self.best = before
    elif keep_best and start is not None:
      # The earlier test may have used another metric, or other examples.
      last = Best(self.round, 0.0, start[0].variables)
      for model in filter(None, (before, last)):
        variables = place(model.variables, simulation)
        self._hold_best(model.round, variables, simulation.evaluate(variables))

  @property
  def round(self) -> int:
    """Returns the last round whose state is available."""
    if self._reached is None:
      return 0
    return int(np.max(jax.device_get(self._reached[0].round)))

  def take(self, record: Record) -> dict[str, Any]:
    """Adds a round and returns its row of the history."""
    row = {name: getattr(record, name) for name in _NAMES}
    if self._simulation.sweep is not None:
      row['finite'] = record.finite
    row |= {f'info_{name}': value for name, value in record.info.items()}
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
    """Keeps a model if it is better than the best one so far.

    Args:
      number: the round after which the model was tested.
      variables: the variables of the model.
      test: name -> result of its test.
    """
    name, value = next(iter(test.items()))
    lower = self._simulation.task.metrics[0].lower_is_better
    measure, value = Measure(name, lower), float(value)
    if np.isfinite(value) and (
      self.best is None or measure.score(value) > measure.score(self.best.value)
    ):
      self.best = Best(number, value, jax.device_get(variables))

  def result(self) -> Result:
    """Returns the result of the run."""
    assert self._reached is not None
    state, client_states = self._reached
    return Result(
      self._simulation, history(self._rows), state, client_states, self.best
    )


def _check_start(start: Any, simulation: Simulation) -> None:
  """Raises InputError if a simulation cannot start from the given states."""
  if (
    not isinstance(start, tuple)
    or len(start) != 2
    or not isinstance(start[0], ServerState)
  ):
    raise InputError(
      f'start: is {type(start).__name__}, must be a result of `run`, or a pair'
      ' of server state and client states'
    )
  server, clients = jax.eval_shape(simulation.init)
  parts = [('server state', start[0], server)]
  if simulation.host_states is None or not isinstance(start[1], ClientStates):
    parts.append(('client states', start[1], clients))
  for what, found, like in parts:
    for got, expected in itertools.zip_longest(
      _form(found), _form(like), fillvalue='nothing'
    ):
      if got != expected:
        raise InputError(
          f'start: {what}: expected {expected}, got {got}; must be of the same'
          ' model and algorithm'
        )


def _form(tree: Any) -> list[str]:
  """Returns the paths, dtypes and shapes of the leaves of a tree."""
  return [
    f'{jax.tree_util.keystr(path)} {jnp.result_type(leaf)}{[*np.shape(leaf)]}'
    for path, leaf in jax.tree.leaves_with_path(tree)
  ]


def _bar(rounds: int, done: int) -> Any:
  """Returns a progress bar, with widgets in a notebook that has them."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Without widgets, the bar is text.
    from tqdm.auto import tqdm
  return tqdm(total=rounds, initial=done, unit='round')


def _show(bar: Any, record: Record) -> None:
  """Moves a progress bar to a round."""
  if record.test:
    name, value = next(iter(record.test.items()))
    bar.set_postfix({f'test {name}': np.round(value, 4)}, refresh=False)
  bar.update(record.round - bar.n)
