"""Runs the engine as a system of the benchmark, in a separate process.

python -m experiments.benchmark.worker WORKLOAD OPTIONS

With the option `processes` it starts further workers, which join it as
processes of one run; with `reference` it runs the reference round instead of
the engine.
"""

import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import plain
from experiments.benchmark import workloads
from experiments.benchmark.peers import protocol
from experiments.stress import lost_process
import fedavg_jax as fa
from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.core import choices
from fedavg_jax.engine import collectives
from fedavg_jax.engine import cost
from fedavg_jax.engine import layout
from fedavg_jax.engine import processes
from fedavg_jax.runs import distributed
from fedavg_jax.runs import provenance

_COHORTS = 100  # Rounds that steps and examples are averaged over.


def build(
  workload: workloads.Workload, options: dict[str, Any]
) -> tuple[fa.Simulation, fa.Model]:
  """Compiles a workload; returns it with its model.

  Args:
    workload: the workload.
    options: options of the engine alone. `lanes` replaces the workload's;
      'cohort' is one lane per client, padded to the longest client.
      `convolution` is that of the model; `precision` is that of the model and
      of products; `gpu_graphs` as in `fa.Execution`; `sweep` is a number of
      learning rates; `devices` is the number of devices of all processes
      together, all available ones by default; `times` multiplies the cohort,
      and the population where it has fewer clients.
  """
  cohort = workload.cohort * options.get('times', 1)
  copies = -(-cohort // len(workload.sizes))
  workload = dataclasses.replace(
    workload, cohort=cohort, sizes=workload.sizes * copies
  )
  data, clients = workloads.make_data(workload)
  model = workloads.make_model(
    workload,
    data,
    convolution=options.get('convolution', 'auto'),
    precision=options.get('precision', 'float32'),
  )
  number, widths = options.get('lanes', workload.lanes), None
  if number == 'cohort':
    devices = jax.device_count()
    widths = (-(-workload.cohort // devices),)
    number = widths[0] * devices

  def algorithm(rate):
    return fa.fedavg(optax.sgd(rate), optax.sgd(1.0))

  rate = workload.learning_rate
  federation = workloads.make_federation(workload, data, clients)
  execution = fa.Execution(
    lanes=number,
    widths=widths,
    devices=jax.devices()[: options.get('devices')],
    precision=options.get('precision', 'float32'),
    gpu_graphs=options.get('gpu_graphs', False),
  )
  if options.get('sweep'):
    rates = (rate * np.geomspace(0.5, 1.0, options['sweep'])).tolist()
    return fa.build_sweep(
      model, federation, algorithm, rates, execution=execution
    ), model
  return fa.build_simulation(
    model, federation, algorithm(rate), execution=execution
  ), model


def describe(
  workload: workloads.Workload, simulation: fa.Simulation, model: fa.Model
) -> dict[str, Any]:
  """Returns the facts that need no timing, and the seconds of compiling."""
  planner = simulation.planner
  cohorts = [planner.cohort(r) for r in range(1, _COHORTS + 1)]
  sizes = [planner.num_examples[cohort] for cohort in cohorts]
  steps = [planner.steps(n) for n in sizes]
  params = jax.eval_shape(model.init, jax.random.key(0))
  loss_fn = fa.losses.of_examples(model.apply)
  x, y = (
    jax.ShapeDtypeStruct((1, *array.shape[1:]), array.dtype)
    for array in simulation.data([1])
  )
  flops = cost.flops(
    jax.grad(lambda params, x, y: loss_fn(params, x, y).sum()), params, x, y
  )
  if len(workload.shape) == 1:
    # An LSTM's loops have no static length to count: 2 FLOPs per weight and
    # token in the forward pass, and twice that in the backward pass.
    flops = 3 * 2 * num_parameters(params) * workload.shape[0]
  compiled: Any = simulation.call
  schedule = fa.engine.make_schedule(planner, [1], 1, lambda _: False)
  return {
    'lanes': planner.lanes,
    'widths': planner.widths,
    'devices': planner.num_devices,
    'layout_reason': simulation.layout_reason,
    'lane_bytes': layout.lane_bytes_compiled(simulation.call, planner),
    'parameters': num_parameters(params),
    'compile_seconds': simulation.compile_seconds,
    'rounds_per_call': simulation.rounds_per_call,
    'client_steps': float(np.mean([s.sum() for s in steps])),
    'examples': planner.epochs * float(np.mean([n.sum() for n in sizes])),
    'clients': planner.cohort_size,
    'useful_share': layout.useful_share(
      steps, planner.num_devices, planner.widths
    ),
    'flops_per_example': flops,
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'plan_bytes': sum(
      array.nbytes for array in jax.tree.leaves(schedule.plans)
    ),
  }


def peaks(n: int = 0, size: int = 2**30) -> dict[str, float]:
  """Measures the peak GFLOP/s and GB/s of this device, with all its cores.

  Numbers are random, because a GPU clocks higher on zeros.

  Args:
    n: the size of the matrices; 0 chooses.
    size: the bytes of a copy, more than any cache holds.

  Returns:
    `peak_gflops_` with the true precision of the products, and `peak_gbytes`.
  """

  def best(fn, given, *args) -> float:
    """Returns the seconds of the fastest of nine calls.

    Each call donates its input, so that it allocates no memory.
    """
    fn = jax.jit(fn, donate_argnums=0)
    given = jax.block_until_ready(fn(given, *args))
    seconds = math.inf
    for _ in range(9):
      start = time.perf_counter()
      given = jax.block_until_ready(fn(given, *args))
      seconds = min(seconds, time.perf_counter() - start)
    return seconds

  platform = jax.default_backend()
  n = n or (4096 if platform == 'cpu' else 16384)
  # bfloat16 does not limit what a CPU computes.
  names = {'cpu': ('float32',), 'tpu': ('float32', 'bfloat16')}
  found = {}
  for name in names.get(platform, choices.PRECISIONS):
    dtype = 'bfloat16' if name == 'bfloat16' else 'float32'
    a, b = jax.random.normal(jax.random.key(0), (2, n, n), dtype)
    level = 'highest' if name == 'float32' else 'default'
    product = functools.partial(jnp.matmul, precision=level)
    # Products of products stay of the size of one.
    b = b / jnp.sqrt(jnp.array(n, dtype))
    found[f'peak_gflops_{name}'] = 2e-9 * n**3 / best(product, a, b)
  a = jax.random.normal(jax.random.key(0), (size // 4,))
  found['peak_gbytes'] = 2e-9 * size / best(lambda a: a + 1, a)
  return found


def reduce_seconds(model: fa.Model, mesh: jax.sharding.Mesh) -> float:
  """Measures the seconds of summing one model's weights over the devices."""
  params = collectives.put(
    jax.tree.map(np.asarray, model.init(jax.random.key(0))),
    jax.sharding.NamedSharding(mesh, jax.P()),
  )
  add = jax.jit(
    jax.shard_map(
      lambda tree: jax.tree.map(
        lambda leaf: leaf / mesh.size, collectives.sum_over_devices(tree)
      ),
      mesh=mesh,
      in_specs=jax.P(),
      out_specs=jax.P(),
      check_vma=False,
    )
  )
  seconds = []
  for _ in range(30):
    start = time.perf_counter()
    params = jax.block_until_ready(add(params))
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[10:])


def join(options: dict[str, Any]) -> list[subprocess.Popen]:
  """Joins the processes of one run; the first process starts the others.

  Returns:
    The processes that this one has started.
  """
  number = options.get('processes', 1)
  if number == 1:
    return []
  started = []
  if 'process_id' not in options:
    options |= {'process_id': 0, 'port': lost_process.free_port()}
    for i in range(1, number):
      own = json.dumps(options | {'process_id': i})
      command = [
        sys.executable,
        '-m',
        'experiments.benchmark.worker',
        sys.argv[1],
        own,
      ]
      started.append(
        subprocess.Popen(
          command,
          stdin=subprocess.PIPE,
          stdout=subprocess.DEVNULL,
          text=True,
        )
      )
  distributed.connect(
    f'localhost:{options["port"]}',
    number,
    options['process_id'],
    connect_seconds=60,
    heartbeat_seconds=60,
  )
  return started


def main() -> None:
  """Answers `experiments.benchmark`."""
  options = json.loads(sys.argv[2])
  if options.get('reference'):
    rounds = plain.PlainRounds(
      workloads.from_dict(protocol.workload()), options
    )
    protocol.serve(rounds.run, **rounds.facts)
    return
  others = join(options)
  fa.use_cpu_devices(
    options.get('cpu_devices', 0)
    or options.get('devices', 0) // options.get('processes', 1)
  )
  if options.get('peaks'):  # A separate process, as it takes much memory.
    protocol.answer(**peaks())
    return
  workload = workloads.from_dict(protocol.workload())
  simulation, model = build(workload, options)
  evaluated = lambda _: workload.tested > 0  # noqa: E731
  states = simulation.init()
  done = 0

  def run_rounds(rounds: int) -> None:
    """Trains rounds as `fa.simulate` does: plans, queued calls, metrics."""
    nonlocal states, done
    numbers = range(done + 1, done + rounds + 1)
    for record in fa.engine.run_calls(
      simulation, *states, numbers, evaluated=evaluated
    ):
      json.dumps({k: v for k, v in record._asdict().items() if k != 'state'})
      states = record.state or states[0], ()
    done += rounds

  prepared = {}

  def run_device(rounds: int) -> None:
    """Times the device alone: prepared plans, no result read until the end."""
    nonlocal states
    state, client_states = states
    for first in range(0, rounds, simulation.rounds_per_call):
      many = min(rounds - first, simulation.rounds_per_call)
      if many not in prepared:
        prepared[many] = fa.engine.make_schedule(
          simulation.planner,
          range(1, many + 1),
          simulation.rounds_per_call,
          evaluated,
        )
      state, client_states, _ = simulation.call(
        np.True_,
        state,
        client_states,
        simulation.data([1]),
        simulation.test,
        prepared[many],
      )
    states = jax.block_until_ready(state), client_states

  facts = describe(workload, simulation, model) | provenance.environment()
  facts['reduce_seconds'] = reduce_seconds(model, simulation.mesh)
  if folder := options.get('profile'):
    run_rounds(2)
    with jax.profiler.trace(folder, create_perfetto_trace=True):
      run_rounds(4)
  run = run_device if options.get('device_alone') else run_rounds

  def run_together(rounds: int) -> None:
    # No collective: a process that waits for one keeps a core busy.
    for other in others:
      assert other.stdin
      other.stdin.write(f'{rounds}\n')
      other.stdin.flush()
    run(rounds)

  protocol.serve(run_together, **facts)
  for other in others:  # The end of their input ends the processes.
    assert other.stdin
    other.stdin.close()
  processes.disconnect()
  for other in others:
    other.wait()


if __name__ == '__main__':
  main()
