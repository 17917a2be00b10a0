"""Runs the rounds and writes their results, even if they fail."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import time
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.driver import simulate
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import loggers
from fedavg_jax.runs import plots
from fedavg_jax.runs.privacy_builder import Spending
from fedavg_jax.runs.private_parts_builder import LocalSpending
from fedavg_jax.runs.progress import Progress
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.snapshots import Snapshot
from fedavg_jax.runs.snapshots import Snapshots
from fedavg_jax.runs.summary import end_status
from fedavg_jax.runs.summary import finish
from fedavg_jax.runs.summary import to_line
from fedavg_jax.runs.targets import Measure
from fedavg_jax.runs.titles import describe


class Run(NamedTuple):
  """Holds the components of a run, on every process.

  Attributes:
    cfg: the checked config.
    simulation: the compiled simulation.
    client_tests: a function of server state and client states that tests the
      models on every client's held-out examples, None if there are no such
      tests.
    last_test: a function of the variables that tests them on the test set, None
      if every evaluation uses the test set.
    start: the server state and the client states of a run that resumes.
    host_states: the states of the clients if they stay on the host, else None.
    stopping: a function that returns whether a signal has requested a stop.
    measure: the measure of the run.
    began: the `time.monotonic()` at which the command or `train` began.
    spending: the report of its privacy, None if it has none.
  """

  cfg: RunConfig
  simulation: Simulation
  client_tests: Callable[..., client_evaluation.ClientTests] | None
  last_test: Callable[[Any], dict[str, float]] | None
  start: tuple[compiled_round.ServerState, Any] | None
  host_states: ClientStates | None
  stopping: Callable[[], bool]
  measure: Measure
  began: float
  spending: Spending | LocalSpending | None = None

  def saves(self, number: int) -> bool:
    """Returns whether a checkpoint is due after a round, by its number."""
    every = self.cfg.checkpoint.rounds
    return bool(every and number and number % every == 0)

  def tests(self, number: int) -> bool:
    """Returns whether the tests on held-out examples are due after a round."""
    return self.client_tests is not None and (
      number % self.cfg.client_eval_every == 0 or number == self.cfg.rounds
    )

  def rounds(
    self, looking: Callable[[], bool]
  ) -> Iterator[tuple[Record | None, client_evaluation.ClientTests | None]]:
    """Yields the rounds until the run ends; every process does the same.

    Args:
      looking: the argument of `simulate` of this name.

    Yields:
      A record, and the clients' tests after it, None without them. The record
      is None if an earlier process finished the last round, but was killed
      before it wrote all files.
    """
    cfg, record = self.cfg, None
    for record in simulate(
      self.simulation,
      rounds=cfg.rounds,
      eval_every=cfg.eval_every,
      target=cfg.ends_at,
      start=self.start,
      host_states=self.host_states,
      needs_state=lambda number: self.saves(number) or self.tests(number),
      state_requested=looking,
      should_stop=self.stopping,
    ):
      tests = None
      if self.client_tests and record.state is not None and record.finite:
        test = {self.measure.key: record.test.get(self.measure.name)}
        if self.measure.reached(test, cfg.ends_at) or self.tests(record.round):
          tests = self.client_tests(record.state, record.client_states)
      yield record, tests
    if record is None and self.client_tests and self.start:
      yield None, self.client_tests(*self.start)


def follow_rounds(run: Run) -> dict[str, Any]:
  """Computes the rounds on a process other than 0, which writes the files."""
  for _ in run.rounds(lambda: False):
    pass
  return {}


def record_rounds(run: Run, folder: Workdir) -> dict[str, Any]:
  """Computes the rounds and writes their results, even if one fails.

  Returns:
    The content of summary.json.
  """
  with Recorder(run, folder) as recorder:
    for record, tests in run.rounds(recorder.snapshots.due):
      recorder.take(record, tests)
    recorder.ended = True
  return recorder.summary


class Recorder:
  """Writes the results of the rounds into the folder of the run.

  Attributes:
    snapshots: the states to resume from.
    ended: whether the rounds ended without an error.
    summary: the content of summary.json, once everything is written.
  """

  def __init__(self, run: Run, folder: Workdir):
    """Opens the files of a run.

    Args:
      run: the components of the run.
      folder: the folder of the run, with a config.json.
    """
    cfg = run.cfg
    done = None if run.start is None else int(run.start[0].round)
    self._run, self._folder = run, folder
    self._tests: client_evaluation.ClientTests | None = None  # The latest.
    self._finite, self._lanes = True, run.simulation.planner.lanes
    self._start_seconds: float | None = None
    self.ended, self.summary = False, {}
    folder.open_metrics()  # From now on the folder must not be replaced.
    with contextlib.ExitStack() as stack:
      checkpoints = checkpoint.Checkpoints(
        folder.path, keep=cfg.checkpoint.keep
      )
      stack.callback(checkpoints.close)
      self.snapshots = Snapshots(
        checkpoints,
        seconds=60 * cfg.checkpoint.minutes,
        rounds=cfg.checkpoint.rounds,
        saved_round=done,
        before=folder.sync,  # A checkpoint never has more lines than the disk.
        after=folder.mark_saved,
      )
      self._loggers = loggers.open_loggers(
        cfg.log,
        folder.path,
        cfg.to_dict(),
        before=folder.lines(),
        check=folder.check_held,
      )
      for logger in self._loggers:
        stack.callback(logger.close)
      self._progress = Progress(
        cfg.rounds,
        done=done or 0,
        may_end_sooner=cfg.ends_at != 0,
        measure=run.measure,
        began=run.began,
      )
      self._open = stack.pop_all()

  def __enter__(self) -> 'Recorder':
    return self

  def take(
    self, record: Record | None, tests: client_evaluation.ClientTests | None
  ) -> None:
    """Writes the line of a round, and a checkpoint if one is due.

    Args:
      record: the record that `Run.rounds` yields.
      tests: the clients' tests, None without them.
    """
    self._tests = tests or self._tests
    if self._start_seconds is None:
      self._start_seconds = time.monotonic() - self._run.began
      if record is not None and record.round:  # The first one of a resumed run.
        self._start_seconds -= record.seconds
    if record is None:
      return
    folder, before = self._folder, self._folder.seal()
    self._finite = record.finite
    line = to_line(
      record,
      self._run.simulation.planner,
      self._run.cfg.measured_on,
      self._run.spending,
    )
    if tests is not None:
      line |= client_evaluation.line(tests)
    folder.line(line)
    for logger in self._loggers:
      logger.line(line)
    self._progress.update(line)
    if record.state is None or record.client_states is None:
      return
    self._lanes = record.lanes
    snapshot = snapshot_of(record, before, folder.seal())
    value = self._run.measure.of(line) if record.finite else None
    if value is not None:
      snapshot = snapshot._replace(score=self._run.measure.score(value))
    self.snapshots.hold(snapshot)

  def __exit__(self, *raised: object) -> None:
    """Saves the last snapshot, then writes tables, pictures and summary."""
    self._progress.close()
    with self._open:
      self.snapshots.save()
    if lines := self._folder.lines():
      self._write(lines)

  def _write(self, lines: list[dict[str, Any]]) -> None:
    """Writes tables and pictures, and the summary last."""
    cfg, simulation, folder = self._run.cfg, self._run.simulation, self._folder
    if (tests := self._tests) is not None:
      with folder.replacing('clients.csv') as path:
        client_evaluation.write_csv(
          path, simulation.planner.num_examples, tests
        )
      if cfg.pictures:
        with folder.replacing('clients.png') as path:
          plots.draw_clients(
            path,
            title=describe(cfg),
            records=lines,
            tests=tests,
            measure=self._run.measure,
          )
    measure, status = self._run.measure, 'failed'
    if self.ended:
      status = end_status(cfg, lines[-1], self._finite, measure)
    test = None
    if self._run.last_test and status in ('finished', 'target reached'):
      test = functools.partial(
        self._run.last_test, self._last_state().variables
      )
    self.summary = finish(
      cfg,
      simulation,
      folder,
      lines,
      status,
      self._lanes,
      measure,
      test,
      self._start_seconds,
      self._run.spending,
    )

  def _last_state(self) -> compiled_round.ServerState:
    """Returns the last state: the saved one if no round was left."""
    if (held := self.snapshots.held) is not None:
      return held.state
    assert self._run.start is not None
    return self._run.start[0]


def snapshot_of(
  record: Record, before: dict[str, Any], after: dict[str, Any]
) -> Snapshot:
  """Returns the snapshot of a record that has its states.

  A round with non-finite values leaves the states of the round before it.

  Args:
    record: the record of a round.
    before: the seal of metrics.jsonl up to the round before.
    after: the seal up to this round.
  """
  assert record.state is not None
  number, seal = record.round, after
  if not np.any(record.finite):
    number, seal = number - 1, before
  return Snapshot(
    round=number,
    state=record.state,
    client_states=record.client_states,
    beside=lambda: _beside(number, record, seal),
    changes=getattr(record.client_states, 'changes', 0),
  )


def _beside(
  number: int, record: Record, seal: dict[str, Any]
) -> dict[str, Any]:
  """Returns the JSON that a checkpoint holds in addition to its arrays.

  Args:
    number: the round after which the checkpoint is saved.
    record: the record of that round, or of the non-finite one after it.
    seal: the seal of metrics.jsonl up to the round.
  """
  metadata = {'round': number, 'lanes': record.lanes, 'metrics': seal}
  if isinstance(record.client_states, ClientStates):
    metadata['clients'] = len(record.client_states.clients)
  return metadata
