"""What a person watches: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from typing import Any
from typing import TextIO

from absl import logging
from tqdm import tqdm

from fedavg_jax.runs.targets import Measure

# However long a run, its log stays short.
_SECONDS_BETWEEN_LINES, _MOST_LINES = 5.0, 500
_LONG_RUN_SECONDS = 60.0


def say(text: str) -> None:
  """Prints a line about work, which continues where that cannot be written."""
  try:
    show(text)
  except OSError as error:
    logging.warning(
      'standard output cannot be written (%s): what follows is not shown',
      error.strerror,
    )


def show(text: str) -> None:
  """Prints what a command was asked for.

  Raises:
    OSError: it cannot be written; a reader that has left has had enough.
  """
  try:
    try:
      print(text, flush=True)
    except UnicodeEncodeError:  # Of a name, on a terminal of plain ASCII.
      print(text.encode('ascii', 'backslashreplace').decode(), flush=True)
  except OSError as error:
    drop(sys.stdout)
    if not isinstance(error, BrokenPipeError):
      raise OSError(error.errno, error.strerror, 'standard output') from error


def drop(stream: TextIO) -> None:
  """Writes a stream that has failed to nowhere, or its end fails again."""
  with open(os.devnull, 'w') as nobody:
    os.dup2(nobody.fileno(), stream.fileno())


class Progress:
  """Shows rounds as they end. Says how long a long run will take."""

  def __init__(
    self,
    rounds: int,
    *,
    done: int,
    may_end_sooner: bool,
    measure: Measure = Measure(),  # noqa: B008 (it is frozen)
  ):
    """Begins to show.

    Args:
      rounds: of the whole run.
      done: rounds of an earlier process.
      may_end_sooner: whether the rounds are but the most there can be.
      measure: that the run is judged by.
    """
    self._rounds = rounds
    self._done = done
    self._may_end_sooner = may_end_sooner
    self._seconds = 0.0  # Of all rounds so far.
    self._last_line = time.monotonic()
    self._last_number = done
    self._measure = measure
    self._value: float | None = None  # Of the last test.
    self._told_duration = False
    self._bar = None
    if sys.stdout.isatty():
      self._bar = tqdm(
        total=rounds, initial=done, unit='round', file=sys.stdout
      )

  def update(self, record: dict[str, Any]) -> None:
    """Takes a record of metrics.jsonl; the first one is round 0."""
    number = record['round']
    self._seconds += record['seconds']
    if (value := self._measure.of(record)) is not None:
      self._value = value
    if self._bar is not None:
      if self._value is not None:
        self._bar.set_postfix_str(self._tested(self._value), refresh=False)
      self._bar.update(1 if number else 0)
    else:
      self._line(number, record)
    self._expect(number)

  def close(self) -> None:
    """Leaves the last state of the bar on the terminal."""
    if self._bar is not None:
      self._bar.close()

  def _tested(self, value: float) -> str:
    measure = self._measure
    return f'{measure.on} {measure.name} {measure.show(value)}'

  def _line(self, number, record) -> None:
    now = time.monotonic()
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
    if number:
      pace = (number - self._done) / max(self._seconds, 1e-9)
      left = (self._rounds - number) / pace
      text += f'  {pace:.3g} rounds/s  {duration(left)} left'
    say(text)

  def _expect(self, number) -> None:
    """Once, after three rounds."""
    mine, left = number - self._done, self._rounds - self._done
    if self._told_duration or mine < min(3, left):
      return
    self._told_duration = True
    seconds = self._seconds / max(mine, 1)
    total = seconds * left
    if total > _LONG_RUN_SECONDS:
      text = (
        f'{seconds:.2g} s a round: all {left} rounds take about'
        f' {duration(total)}'
      )
      if self._may_end_sooner:
        text += '; the target, once reached, ends it sooner'
      tqdm.write(text) if self._bar is not None else say(text)


def duration(seconds: float) -> str:
  """A duration as one says it.

  >>> duration(40), duration(720), duration(19_800)
  ('40 s', '12 min', '5.5 h')
  """
  if seconds < 100:
    return f'{seconds:.0f} s'
  if seconds < 6000:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'
