"""Runs the rounds and writes what they give, however they end."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import time
from typing import Any
from typing import NamedTuple

from fedavg_jax.engine import client_evaluation
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.driver import Record
from fedavg_jax.engine.driver import simulate
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import loggers
from fedavg_jax.runs import plots
from fedavg_jax.runs import resume
from fedavg_jax.runs.progress import Progress
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import Workdir
from fedavg_jax.runs.summary import describe
from fedavg_jax.runs.summary import end_status
from fedavg_jax.runs.summary import finish
from fedavg_jax.runs.summary import to_line


class Run(NamedTuple):
  """What the rounds of a run are made of, on every process.

  Attributes:
    cfg: checked.
    simulation: compiled.
    client_tests: server state -> tests, None where there are none.
    start: of a run that goes on.
    host_states: of clients, where they stay on the host.
    stopping: whether a signal has asked for an end.
  """

  cfg: RunConfig
  simulation: Simulation
  client_tests: Callable[[Any], client_evaluation.ClientTests] | None
  start: tuple[compiled_round.ServerState, Any] | None
  host_states: ClientStates | None
  stopping: Callable[[], bool]

  def saves(self, number: int) -> bool:
    """Whether a checkpoint is due after a round, by its number."""
    every = self.cfg.checkpoint.rounds
    return bool(every and number and number % every == 0)

  def tests(self, number: int) -> bool:
    """Whether the clients' own tests are due after a round."""
    return self.client_tests is not None and (
      number % self.cfg.client_eval_every == 0 or number == self.cfg.rounds
    )

  def rounds(
    self, looking: Callable[[], bool]
  ) -> Iterator[tuple[Record | None, client_evaluation.ClientTests | None]]:
    """Runs until an end; every process does the same.

    Args:
      looking: as in `simulate`.

    Yields:
      A record, None if an earlier process has had the last one but was killed
      before its files; and the clients' tests of it.
    """
    cfg, record = self.cfg, None
    for record in simulate(
      self.simulation,
      rounds=cfg.rounds,
      eval_every=cfg.eval_every,
      target_accuracy=cfg.target_accuracy,
      start=self.start,
      host_states=self.host_states,
      wanted=lambda number: self.saves(number) or self.tests(number),
      looking=looking,
      stopping=self.stopping,
    ):
      tests = None
      if self.client_tests and record.state is not None and record.finite:
        reached = 0 < cfg.target_accuracy <= (record.test_accuracy or 0.0)
        if reached or self.tests(record.round):
          tests = self.client_tests(record.state)
      yield record, tests
    if record is None and self.client_tests and self.start:
      yield None, self.client_tests(self.start[0])


def follow_rounds(run: Run) -> dict[str, Any]:
  """Runs until an end, beside process 0, which keeps what is told."""
  for _ in run.rounds(lambda: False):
    pass
  return {}


def record_rounds(run: Run, folder: Workdir) -> dict[str, Any]:
  """Runs until an end; however it ends, what was done is written."""
  cfg, simulation, start = run.cfg, run.simulation, run.start
  minutes = cfg.checkpoint.minutes
  done = 0 if start is None else int(start[0].round)
  saved_round = None if start is None else done
  saved_at = time.monotonic()
  at_hand: resume.AtHand | None = None
  finite, ended = True, False
  tests: client_evaluation.ClientTests | None = None  # The last ones.
  summary: dict[str, Any] = {}
  progress = Progress(
    cfg.rounds,
    done=done,
    may_end_sooner=cfg.target_accuracy > 0,
  )

  def by_time() -> bool:
    return bool(minutes and time.monotonic() - saved_at >= 60 * minutes)

  folder.open_metrics()  # From here on the folder must stay this one.
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      contextlib.closing(
        checkpoint.Checkpoints(folder.path, keep=cfg.checkpoint.keep)
      )
    )
    told_to = loggers.open_loggers(
      cfg.log, folder.path, cfg.to_dict(), before=folder.lines()
    )
    for logger in told_to:
      stack.callback(logger.close)
    try:
      for record, tested in run.rounds(by_time):
        tests = tested or tests
        if record is None:
          continue
        before = folder.seal()
        line, finite = to_line(record, simulation.planner), record.finite
        if tested is not None:
          line |= client_evaluation.line(tested)
        folder.line(line)
        for logger in told_to:
          logger.line(line)
        progress.update(line)
        if record.state is None or record.client_states is None:
          continue
        at_hand = resume.AtHand(
          # A round that is not finite leaves everything as it was before it.
          round=record.round if finite else record.round - 1,
          state=record.state,
          client_states=record.client_states,
          changes=getattr(record.client_states, 'changes', 0),
          seal=folder.seal() if finite else before,
          lanes=record.lanes,
          accuracy=record.test_accuracy if finite else None,
        )
        due = by_time() or run.saves(at_hand.round)
        if at_hand.round != saved_round and due:
          saved_round = at_hand.round  # Tried once, should it fail.
          at_hand.save(folder, checkpoints)
          saved_at = time.monotonic()
      ended = True
    finally:
      progress.close()
      if at_hand and at_hand.is_there() and at_hand.round != saved_round:
        at_hand.save(folder, checkpoints)
      if lines := folder.lines():
        lanes = at_hand.lanes if at_hand else simulation.planner.lanes
        status = end_status(cfg, lines[-1], finite) if ended else 'failed'
        summary = finish(cfg, simulation, folder, lines, status, lanes)
        if tests is not None:
          with folder.replacing('clients.csv') as path:
            client_evaluation.write_csv(
              path, simulation.planner.num_examples, tests
            )
          with folder.replacing('clients.png') as path:
            plots.draw_clients(
              path, title=describe(cfg), records=lines, tests=tests
            )
  return summary
