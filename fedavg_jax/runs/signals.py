"""SIGINT and SIGTERM: the first asks for an end, a later one takes it."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
import time
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Some send a signal to a process and again to its group: one wish, not two.
_SECONDS_OF_ONE_WISH = 1.0


class Stop:
  """Called, tells whether a signal has asked for an end.

  Attributes:
    signum: the signal, 0 before there was one.
  """

  def __init__(self):
    self.signum = 0

  def __call__(self) -> bool:
    return bool(self.signum)


_asked: list[Stop] = []  # Of the main thread, while its signals are taken.


@contextlib.contextmanager
def stop_on_signals(*, raises: bool = False) -> Iterator[Stop]:
  """Turns the first SIGINT or SIGTERM into a question that a loop may ask.

  One that comes a second later ends the process at once, as the system does it.
  Signals that the process ignores stay ignored; outside the main thread, where
  Python takes no signals, nothing changes. Inside another one, such as the runs
  of a sweep, it is the same question: no signal is lost between two of them.

  Args:
    raises: whether a second SIGINT raises KeyboardInterrupt instead, so that a
      notebook's kernel survives it.
  """
  main = threading.current_thread() is threading.main_thread()
  if main and _asked:
    yield _asked[-1]
    return
  stop = Stop()
  before = {}
  first = 0.0

  def handler(signum: int, frame: FrameType | None) -> None:
    nonlocal first
    del frame
    if not stop():
      stop.signum, first = signum, time.monotonic()
      # Not print: the signal may have come in the middle of one. And it may
      # have ended who reads us.
      with contextlib.suppress(OSError):
        os.write(1, b'\nstopping after this round; once more to exit now\n')
    elif time.monotonic() - first > _SECONDS_OF_ONE_WISH:
      signal.signal(signum, before[signum] if raises else signal.SIG_DFL)
      signal.raise_signal(signum)

  if main:
    _asked.append(stop)
    for taken in _SIGNALS:
      if signal.getsignal(taken) is not signal.SIG_IGN:
        before[taken] = signal.signal(taken, handler)
  try:
    yield stop
  finally:
    if main:
      _asked.remove(stop)
    for taken, previous in before.items():
      signal.signal(taken, previous)
