"""Shows progress: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from typing import Any
from typing import TextIO

from absl import logging
from tqdm import tqdm

from fedavg_jax.runs.targets import Measure

# These keep the log of a long run short.
_SECONDS_BETWEEN_LINES, _MOST_LINES = 5.0, 500
_LONG_RUN_SECONDS = 60.0
_BAR = '{l_bar}{bar}| {n_fmt}/{total_fmt} rounds in {elapsed}{postfix}'


def say(text: str) -> None:
  """Prints a line; if that fails, logs a warning and lets the work continue."""
  try:
    show(text)
  except OSError as error:
    logging.warning(
      'standard output cannot be written (%s): further lines are not shown',
      error.strerror,
    )


def show(text: str) -> None:
  """Prints the output of a command.

  Raises:
    OSError: the output cannot be written; a closed pipe is not an error.
  """
  try:
    try:
      print(text, flush=True)
    except UnicodeEncodeError:  # A name may not fit an ASCII terminal.
      print(text.encode('ascii', 'backslashreplace').decode(), flush=True)
  except OSError as error:
    drop(sys.stdout)
    if not isinstance(error, BrokenPipeError):
      raise OSError(error.errno, error.strerror, 'standard output') from error


def drop(stream: TextIO) -> None:
  """Redirects a failed stream to os.devnull, so that its close succeeds."""
  with open(os.devnull, 'w', encoding='utf-8') as devnull:
    os.dup2(devnull.fileno(), stream.fileno())


class Progress:
  """Shows finished rounds, and how long a long run will take."""

  def __init__(
    self,
    rounds: int,
    *,
    done: int,
    may_end_sooner: bool,
    measure: Measure = Measure(),  # noqa: B008 (it is frozen)
    began: float | None = None,
  ):
    """Opens the bar where there is a terminal.

    Args:
      rounds: the number of rounds of the entire run.
      done: the number of rounds that an earlier process has finished.
      may_end_sooner: whether a target may end the run before its last round.
      measure: the measure of the run.
      began: the `time.monotonic()` from which the bar counts; None is now.
    """
    self._rounds = rounds
    self._done = done
    self._may_end_sooner = may_end_sooner
    # Rounds, and the times at which their records arrived. Those of one call
    # arrive together, and have the same `seconds`.
    self._first: tuple[int, float] | None = None
    self._last_call: tuple[int, float] | None = None  # The last complete one.
    self._call_arrived, self._call_seconds = 0.0, None
    self._last_line = time.monotonic()
    self._last_number = done
    self._measure = measure
    self._value: float | None = None  # The measure at the last test.
    self._estimated = False
    self._bar = None
    if sys.stdout is not None and sys.stdout.isatty():
      self._bar = tqdm(
        total=rounds, initial=done, bar_format=_BAR, file=sys.stdout
      )
      if began is not None:
        self._bar.start_t -= time.monotonic() - began

  def update(self, record: dict[str, Any]) -> None:
    """Shows a line of metrics.jsonl; the first one is that of round 0."""
    number, now = record['round'], time.monotonic()
    if self._first is None:  # A resumed run has no round 0.
      took = record['seconds'] if number else 0.0
      self._first = max(number - 1, 0), now - took
    if record['seconds'] != self._call_seconds:
      self._last_call = number - 1, self._call_arrived
      self._call_arrived, self._call_seconds = now, record['seconds']
    if (value := self._measure.of(record)) is not None:
      self._value = value
    if self._bar is not None:
      shown = [] if self._value is None else [self._tested(self._value)]
      if left := self._left(number):
        shown.append(left)
      self._bar.set_postfix_str('  '.join(shown), refresh=False)
      self._bar.update(1 if number else 0)
    else:
      self._line(number, now, record)
    self._expect(number)

  def close(self) -> None:
    """Closes the bar, whose last state stays on the terminal."""
    if self._bar is not None:
      self._bar.close()

  def _tested(self, value: float) -> str:
    measure = self._measure
    return f'{measure.on} {measure.name} {measure.show(value)}'

  def _per_round(self) -> float | None:
    """Returns the seconds per round, with all that comes between rounds.

    The call whose records arrive now has an unknown number of rounds. So this
    is of the calls before it; None if there is none.
    """
    if self._first is None or self._last_call is None:
      return None
    (first, then), (number, arrived) = self._first, self._last_call
    return (arrived - then) / (number - first) if number > first else None

  def _left(self, number: int) -> str:
    """Returns how long the remaining rounds will take; '' if unknown."""
    left, seconds = self._rounds - number, self._per_round()
    if seconds is None or not left:
      return ''
    return f'{duration(seconds * left)} left'

  def _line(self, number, now, record) -> None:
    tenth = number % max(1, self._rounds // 10) == 0
    due = tenth or (
      now - self._last_line >= _SECONDS_BETWEEN_LINES
      and number - self._last_number >= self._rounds / _MOST_LINES
    )
    if not due and 3 < number - self._done and number < self._rounds:
      return
    self._last_line, self._last_number = now, number
    text = f'round {number}/{self._rounds}'
    if self._value is not None:
      text += f'  {self._tested(self._value)}'
    if record.get('train_loss') is not None:
      text += f'  train loss {record["train_loss"]:.4f}'
    if left := self._left(number):
      text += f'  {left}'
    say(text)

  def _expect(self, number) -> None:
    """Prints the expected duration of a long run, once, after three rounds."""
    mine, left = number - self._done, self._rounds - self._done
    seconds = self._per_round()
    if self._estimated or mine < min(3, left) or seconds is None:
      return
    self._estimated = True
    total = seconds * left
    if total > _LONG_RUN_SECONDS:
      text = (
        f'{seconds:.2g} s per round: all {left} rounds take about'
        f' {duration(total)}'
      )
      if self._may_end_sooner:
        text += '; reaching the target ends the run sooner'
      tqdm.write(text) if self._bar is not None else say(text)


def duration(seconds: float) -> str:
  """Formats a duration in its natural unit.

  >>> duration(40), duration(720), duration(19_800)
  ('40 s', '12 min', '5.5 h')
  """
  if seconds < 100:
    return f'{seconds:.0f} s'
  if seconds < 6000:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'
