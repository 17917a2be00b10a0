"""A loop that does not ask: the second signal is the system's."""

import signal
import time

from fedavg_jax.runs import signals

with signals.stop_on_signals() as stop:
  assert not stop()
  signal.raise_signal(signal.SIGTERM)
  signal.raise_signal(signal.SIGTERM)  # The same wish.
  assert stop() and stop.signum == signal.SIGTERM
  time.sleep(1.1)
  signal.raise_signal(signal.SIGINT)
  print('still here')
