"""Watches a long run of short rounds: no resource may grow with the rounds.

It runs the command on the package's digits and samples, from another process,
its resident memory, open files, threads and the bytes of its log. Live arrays
on the devices are counted in this process, over as many rounds of
`fedavg_jax.simulate`.

python -m experiments.stress.long_run --rounds 2000

It prints a table, and the growth from the end of the first quarter to the end
of the run.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import optax

import fedavg_jax as fa

_ROUNDS = flags.DEFINE_integer('rounds', 2000, 'Number of rounds.')
_EVERY = flags.DEFINE_integer('every', 20, 'Rounds between checkpoints.')
_ALGORITHM = flags.DEFINE_string(
  'algorithm', 'fedavg', 'Algorithm, as in a config.'
)

_CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'


def sample(pid: int, log: pathlib.Path) -> dict[str, Any]:
  """Reads the resources of a process from Linux's /proc.

  Args:
    pid: the id of the process.
    log: the file of its output.
  """
  status = (
    pathlib.Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
  )
  fields = dict(line.split(':', 1) for line in status)
  return {
    'resident_mib': int(fields['VmRSS'].split()[0]) / 1024,
    'open_files': len(os.listdir(f'/proc/{pid}/fd')),
    'threads': int(fields['Threads']),
    'log_bytes': log.stat().st_size,
  }


def watch_process(
  rounds: int, every: int, algorithm: str
) -> list[dict[str, Any]]:
  """Samples the command about twenty times, at equal numbers of rounds.

  Raises:
    RuntimeError: the command fails.
  """
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    log, metrics = folder / 'log', folder / 'run' / 'metrics.jsonl'
    with open(log, 'w', encoding='utf-8') as out:
      process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'fedavg_jax.main', '--config', str(_CONFIG)),
          *('--workdir', str(folder / 'run')),
          f'--config.rounds={rounds}',
          f'--config.algorithm={algorithm}',
          '--config.client.epochs=1',
          f'--config.checkpoint.rounds={every}',
        ],
        stdout=out,
        stderr=subprocess.STDOUT,
      )
    samples: list[dict[str, Any]] = []
    while process.poll() is None:
      time.sleep(0.02)
      done = 0
      if metrics.exists():
        done = metrics.read_bytes().count(b'\n') - 1
      if done >= (len(samples) + 1) * rounds / 20 and done < rounds:
        samples.append({'round': done, **sample(process.pid, log)})
    if process.returncode:
      raise RuntimeError(log.read_text())
  return samples


def watch_devices(rounds: int) -> list[tuple[int, int, int]]:
  """Counts the live arrays on the devices ten times during a run.

  Returns:
    (round, number of arrays, their bytes), ten times.
  """
  data = fa.load_dataset('digits')
  parts = fa.partition.iid(1500, num_clients=50, seed=0)
  clients = fa.build_clients(data.train, parts)
  federation = fa.Federation(
    clients, data.test, client_fraction=0.5, epochs=1, batch_size=10
  )
  simulation = fa.build_simulation(
    fa.build_model('2nn', data),
    federation,
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0, momentum=0.5)),
  )
  found = []
  for record in fa.simulate(simulation, rounds=rounds):
    if record.round % max(rounds // 10, 1) == 0 and record.round:
      found.append((record.round, *live()))
  return found


def live() -> tuple[int, int]:
  """Returns the number of live arrays and their bytes; holds none of them."""
  arrays = jax.live_arrays()
  return len(arrays), sum(array.nbytes for array in arrays)


def main(argv: Sequence[str]) -> None:
  """Prints the samples."""
  del argv
  logging.set_verbosity(logging.WARNING)
  samples = watch_process(_ROUNDS.value, _EVERY.value, _ALGORITHM.value)
  for line in samples:
    print(json.dumps(line))
  first = next(s for s in samples if s['round'] >= _ROUNDS.value / 4)
  for key in ('resident_mib', 'open_files', 'threads', 'log_bytes'):
    print(
      f'{key}: {first[key]:.6g} at round {first["round"]},'
      f' {samples[-1][key]:.6g} at round {samples[-1]["round"]}'
    )
  for number, count, size in watch_devices(_ROUNDS.value):
    print(f'round {number}: {count} live arrays, {size / 2**20:.2f} MiB')


if __name__ == '__main__':
  fa.use_cpu_devices(0)
  app.run(main)
