"""Decides which clients train in a round, and on which examples. NumPy only."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from fedavg_jax.schedule.availability import Trace
  from fedavg_jax.schedule.availability import read_trace
  from fedavg_jax.schedule.clock import Clock
  from fedavg_jax.schedule.clock import draw_clock
  from fedavg_jax.schedule.completion import WorkContext
  from fedavg_jax.schedule.draws import DrawContext

__all__ = [
  'Clock',
  'draw_clock',
  'DrawContext',
  'read_trace',
  'Trace',
  'WorkContext',
]
