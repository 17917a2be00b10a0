"""Compiles a federation and runs its rounds.

These names build single rounds by hand, or are the types that rounds return.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from fedavg_jax.contracts.reference import build_reference_round
  from fedavg_jax.engine.compiled_round import RoundMetrics
  from fedavg_jax.engine.compiled_round import ServerState
  from fedavg_jax.engine.compiled_round import build_round
  from fedavg_jax.engine.compiled_round import init_client_states
  from fedavg_jax.engine.compiled_round import init_state
  from fedavg_jax.engine.compiled_round import lane_mesh
  from fedavg_jax.engine.compiled_round import place_examples
  from fedavg_jax.engine.driver import Record
  from fedavg_jax.engine.driver import run_calls
  from fedavg_jax.engine.superstep import make_schedule
  from fedavg_jax.schedule.plan import Plan
  from fedavg_jax.schedule.planning import Planner

__all__ = [
  'build_reference_round',
  'build_round',
  'init_client_states',
  'init_state',
  'lane_mesh',
  'make_schedule',
  'place_examples',
  'Plan',
  'Planner',
  'Record',
  'RoundMetrics',
  'run_calls',
  'ServerState',
]
