"""Runs a loop that never checks for signals: the second one ends it."""

import signal
import time

from fedavg_jax.runs import signals

with signals.stop_on_signals() as stop:
  assert not stop()
  signal.raise_signal(signal.SIGTERM)
  signal.raise_signal(signal.SIGTERM)  # The same request.
  assert stop() and stop.signum == signal.SIGTERM
  time.sleep(1.1)
  signal.raise_signal(signal.SIGINT)
  print('still here')
