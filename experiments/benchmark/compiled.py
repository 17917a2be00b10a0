"""Compiles the round for accelerators that are absent, and checks budgets.

XLA's back ends for TPUs and GPUs produce the program of a v5e or an H100 on a
machine that has neither. Nothing runs: kernels, bytes and loops are counted in
the optimized program, microseconds of a TPU are its cost model's estimate, and
products are not autotuned. A target needs its plugin, not its device:
`pip install 'jax[tpu]'` for v5e, `pip install 'jax[cuda13]'` for H100.

python -m experiments.benchmark.compiled --target v5e [--cases 2nn,cnn]
  [--out experiments/benchmark/results/compiled.jsonl]

It appends a JSON line per case and ends with code 1 if one misses its budget.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies
import optax

from experiments.benchmark import optimized_hlo
from experiments.benchmark import workloads
import fedavg_jax as fa
from fedavg_jax.runs import provenance

TARGETS = ('v5e', 'h100')
_HERE = pathlib.Path(__file__).parent
# Folders whose code determines the program of a call, in the order of hashing.
_SOURCES = ('engine', 'models', 'contracts', 'algorithms')


@dataclasses.dataclass(frozen=True)
class Case:
  """Describes a workload and its layout.

  Attributes:
    workload: a key of `workloads.WORKLOADS`.
    lanes: the number of lanes of all devices together.
    cohort: clients per round; 0 means the workload's.
    devices: the number of devices.
    precision: the dtype of the model, 'float32' or 'bfloat16'.
    exact: whether products of float32 are exact; otherwise they are in TF32 on
      a GPU, in one pass of bfloat16 on a TPU.
    scaffold: whether the algorithm is SCAFFOLD instead of FedAvg.
  """

  workload: str
  lanes: int
  cohort: int = 0
  devices: int = 1
  precision: str = 'float32'
  exact: bool = False
  scaffold: bool = False


CASES = {
  '2nn': Case('2nn', lanes=10),
  '2nn_64_lanes': Case('2nn', lanes=64, cohort=100),
  'cnn': Case('cnn_e5', lanes=10),
  'cnn_bfloat16': Case('cnn_e5', lanes=10, precision='bfloat16'),
  'cnn_exact': Case('cnn_e5', lanes=10, exact=True),
  'cifar': Case('cifar', lanes=10),
  'char_lstm': Case('shakespeare', lanes=16),
  'word_lstm': Case('words', lanes=10),
  'scaffold_2nn': Case('2nn', lanes=10, scaffold=True),
  '2nn_4_devices': Case('2nn', lanes=40, cohort=40, devices=4),
}
# The largest value of each number in a step: what has been reached.
BUDGETS: dict[str, dict[str, dict[str, float]]] = {
  'v5e': {
    '2nn': {'microseconds': 40, 'dynamic_loops': 0, 'copied_megabytes': 0},
    '2nn_64_lanes': {'microseconds': 185, 'dynamic_loops': 0},
    'cnn': {'microseconds': 1350, 'dynamic_loops': 0},
    'cifar': {'microseconds': 7600, 'dynamic_loops': 0},
    'char_lstm': {'dynamic_loops': 0},
    'word_lstm': {'microseconds': 2100, 'dynamic_loops': 0},
    'scaffold_2nn': {'microseconds': 45, 'dynamic_loops': 0},
  },
  'h100': {
    '2nn': {'kernels': 24, 'megabytes': 32, 'host_loops': 0},
    'cnn': {'kernels': 42, 'megabytes': 600, 'host_loops': 0},
    'cnn_bfloat16': {'kernels': 44, 'megabytes': 470, 'host_loops': 0},
    'cifar': {'kernels': 75, 'megabytes': 3300, 'host_loops': 0},
    'char_lstm': {'kernels': 1700, 'copied_megabytes': 95, 'host_loops': 0},
    'word_lstm': {'kernels': 160, 'copied_megabytes': 0, 'host_loops': 0},
    'scaffold_2nn': {'kernels': 24, 'megabytes': 42, 'host_loops': 0},
    '2nn_4_devices': {'kernels': 24, 'host_loops': 0},
  },
}


def devices_of(target: str) -> list[jax.Device]:
  """Returns devices of a kind that this machine does not have.

  Args:
    target: one of `TARGETS`.
  """
  if target == 'v5e':
    topology = topologies.get_topology_desc('v5e:2x2', platform='tpu')
  else:
    topology = topologies.get_topology_desc(
      platform='cuda',
      target_config=(_HERE / 'h100.txtpb').read_text(encoding='utf-8'),
      topology='1x1x4',
    )
  return list(topology.devices)


def compiled(case: Case, devices: list[jax.Device]) -> jax.stages.Compiled:
  """Compiles the call of a case for devices, which may be absent."""
  workload = workloads.WORKLOADS[case.workload]
  data, clients = workloads.make_data(workload)
  algorithm = fa.fedavg(optax.sgd(workload.learning_rate), optax.sgd(1.0))
  if case.scaffold:
    algorithm = fa.scaffold(workload.learning_rate)
  fast = 'bfloat16' if devices[0].platform == 'tpu' else 'tf32'
  program = fa.lower_simulation(
    workloads.make_model(workload, data, precision=case.precision),
    workloads.make_federation(workload, data, clients, case.cohort),
    algorithm,
    execution=fa.Execution(
      devices=devices[: case.devices],
      lanes=case.lanes,
      widths=(case.lanes // case.devices,),
      precision='float32' if case.exact else fast,
      gpu_graphs=True,
    ),
  )
  return program.compile(program.lower())


def host_loops(thunks: str) -> int:
  """Counts loops whose condition the host of a GPU reads in every iteration.

  Args:
    thunks: XLA's listing of a GPU's thunks; loops that are part of a command
      buffer run without the host.
  """
  found, buffers = 0, []
  for line in thunks.splitlines():
    thunk = re.match(r'( *)\d+: (k\w+)', line)
    if not thunk:
      continue
    depth = len(thunk[1])
    while buffers and buffers[-1] >= depth:
      buffers.pop()
    if thunk[2] == 'kCommandBuffer':
      buffers.append(depth)
    found += thunk[2] == 'kWhile' and not buffers
  return found


def sources() -> str:
  """Returns the SHA-256 of the code that decides the compiled call.

  Docstrings, lines of comments and white space do not count, nor does the
  version of Python.
  """
  digest = hashlib.sha256()
  package = pathlib.Path(fa.__file__).parent
  for folder in _SOURCES:
    for path in sorted((package / folder).rglob('*.py')):
      code = ''.join(_code(path.read_text(encoding='utf-8')).split())
      digest.update(f'{path.name} {code}\n'.encode())
  return digest.hexdigest()


def _code(text: str) -> str:
  """Returns a module without its docstrings and its lines of comments."""
  lines = text.splitlines()
  for node in ast.walk(ast.parse(text)):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    if isinstance(node, kinds) and ast.get_docstring(node) is not None:
      first = node.body[0]
      for number in range(first.lineno - 1, first.end_lineno or first.lineno):
        lines[number] = ''
  return '\n'.join(own for own in lines if not own.lstrip().startswith('#'))


def measure(target: str, name: str, dump: pathlib.Path) -> dict[str, Any]:
  """Compiles a case and counts the operations of its step.

  Args:
    target: one of `TARGETS`.
    name: a key of `CASES`.
    dump: the folder that XLA writes its listings to.

  Returns:
    A row of the results.
  """
  for old in dump.glob('*.txt'):
    old.unlink()
  start = time.perf_counter()
  program = compiled(CASES[name], devices_of(target))
  text, memory = program.as_text(), program.memory_analysis()
  assert text is not None and memory is not None  # Some back ends have neither.
  row: dict[str, Any] = {
    'target': target,
    'case': name,
    'compiled, not run': True,
    **dataclasses.asdict(optimized_hlo.step_cost(text)),
    'temporary_mebibytes': round(memory.temp_size_in_bytes / 2**20, 1),
    'compile_seconds': round(time.perf_counter() - start, 1),
    'jax': jax.__version__,
    'sources': sources(),
  }
  if target == 'h100':
    (thunks,) = dump.glob('*jit_call.thunk_sequence_after_thunk_passes.txt')
    row['host_loops'] = host_loops(thunks.read_text(encoding='utf-8'))
  plugin = {'v5e': 'libtpu', 'h100': 'jax-cuda13-plugin'}[target]
  row[plugin] = provenance.version(plugin)
  return row


def missed(row: dict[str, Any]) -> list[str]:
  """Lists the budgets that a row of the results exceeds."""
  budget = BUDGETS[row['target']].get(row['case'], {})
  return [
    f'{row["target"]} {row["case"]}: {key} = {row[key]}: must be at most {most}'
    for key, most in budget.items()
    if row[key] > most
  ]


def main() -> None:
  """Compiles the cases; the exit code is 1 if one misses its budget."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--target', choices=TARGETS, required=True)
  parser.add_argument(
    '--cases',
    default=','.join(CASES),
    help='names of cases, separated by commas; default all',
  )
  parser.add_argument('--out', type=pathlib.Path, help='appends JSON lines')
  arguments = parser.parse_args()
  names = arguments.cases.split(',')
  if unknown := [name for name in names if name not in CASES]:
    parser.error(f'--cases {unknown[0]}: must be one of {", ".join(CASES)}')
  jax.config.update('jax_platforms', 'cpu')
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_ID': '0'}
  os.environ |= {'TPU_WORKER_HOSTNAMES': 'localhost'}
  faults = []
  with tempfile.TemporaryDirectory() as folder:
    if arguments.target == 'h100':  # The listings contain the host's loops.
      flags = f'--xla_dump_to={folder} --xla_dump_hlo_as_text'
      os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
    for name in names:
      row = measure(arguments.target, name, pathlib.Path(folder))
      print(json.dumps(row), flush=True)
      if arguments.out:
        with arguments.out.open('a', encoding='utf-8') as out:
          out.write(json.dumps(row) + '\n')
      faults += missed(row)
  print(*faults, sep='\n')
  sys.exit(bool(faults))


if __name__ == '__main__':
  main()
