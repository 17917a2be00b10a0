"""Compiles a workload, runs its first rounds, then ends.

python -P experiments/benchmark/first_round.py WORKLOAD OPTIONS WORKER

Its first answer says that everything is imported. The next one comes when the
data are made, the round is compiled and run, and its metrics are on the host.
It imports the package from PYTHONPATH: this repository's working tree, or a
checkout of another commit. WORKER is the module of the engine's worker there.
"""

import importlib
import json
import sys
from typing import Any


def main(name: str) -> None:
  """Answers `experiments.benchmark`.

  Args:
    name: the module of the tree's worker.
  """
  worker: Any = importlib.import_module(name)
  import fedavg_jax as fa

  # Earlier commits export it at the top level.
  run_calls: Any = getattr(fa, 'run_calls', None) or fa.engine.run_calls
  options = json.loads(sys.argv[2])
  workload = worker.workloads.from_dict(worker.protocol.workload())

  def run_rounds(rounds: int) -> None:
    if options.get('reference'):
      worker.plain.PlainRounds(workload, options).run(rounds)
      return
    fa.use_cpu_devices(options.get('cpu_devices', 0))
    simulation, _ = worker.build(workload, options)
    state, client_states = simulation.init()
    for _ in run_calls(
      simulation,
      state,
      client_states,
      range(1, rounds + 1),
      evaluated=lambda _: workload.tested > 0,
    ):
      pass

  # Reading the attributes also imports the modules that load lazily.
  facts = {'package': fa.__file__, 'simulation': fa.build_simulation.__name__}
  worker.protocol.serve(run_rounds, **facts)


if __name__ == '__main__':
  main(sys.argv[3])
