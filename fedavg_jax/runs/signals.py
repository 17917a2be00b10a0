"""Handles SIGINT and SIGTERM: the first requests a stop, a later one exits."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
import time
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Some programs signal a process and then its group, which is one request.
_SECONDS_OF_ONE_WISH = 1.0


class Stop:
  """Returns, when called, whether a signal has requested a stop.

  Attributes:
    signum: the number of the signal, 0 before one has arrived.
  """

  def __init__(self):
    self.signum = 0

  def __call__(self) -> bool:
    return bool(self.signum)


_active: list[Stop] = []  # That of the main thread, while it has handlers.


@contextlib.contextmanager
def stop_on_signals(*, raises: bool = False) -> Iterator[Stop]:
  """Turns the first SIGINT or SIGTERM into a flag that a loop can check.

  One that arrives more than a second later ends the process at once, by the
  default action of the system. Ignored signals stay ignored; outside the main
  thread, where Python handles no signals, nothing changes. A nested context, as
  of the runs of a sweep, yields the outer flag, so that no signal between two
  runs is lost.

  Args:
    raises: whether a later signal goes to the previous handler instead; that of
      SIGINT raises KeyboardInterrupt, which a notebook's kernel survives.
  """
  main = threading.current_thread() is threading.main_thread()
  if main and _active:
    yield _active[-1]
    return
  stop = Stop()
  before = {}
  first = 0.0

  def handler(signum: int, frame: FrameType | None) -> None:
    nonlocal first
    del frame
    if not stop():
      stop.signum, first = signum, time.monotonic()
      # Not `print`, which the signal may have interrupted. The signal may also
      # have ended the reader of the output.
      with contextlib.suppress(OSError):
        os.write(1, b'\nstopping after this round; a second signal exits now\n')
    elif time.monotonic() - first > _SECONDS_OF_ONE_WISH:
      signal.signal(signum, before[signum] if raises else signal.SIG_DFL)
      signal.raise_signal(signum)

  if main:
    _active.append(stop)
    for handled in _SIGNALS:
      if signal.getsignal(handled) is not signal.SIG_IGN:
        before[handled] = signal.signal(handled, handler)
  try:
    yield stop
  finally:
    if main:
      _active.remove(stop)
    for handled, previous in before.items():
      signal.signal(handled, previous)
