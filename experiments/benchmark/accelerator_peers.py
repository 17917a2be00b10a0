"""Measures other simulators on this accelerator, for `accelerator.py`'s cells.

FedJAX and pfl-research, each with its own algorithm and model, in the turns of
`experiments.benchmark`. This process starts no accelerator itself, whose memory
the peers need.

python -m experiments.benchmark.accelerator_peers --out accelerator.jsonl
  [--workloads 2nn,cnn_e5,pfl_cifar10,flute_lr] [--python python3]

Peers are installed in build/peers as on a CPU, with `requirements-cuda.txt`
where there is one; with --python that interpreter runs them instead, which has
their packages. One JSON line per peer and workload is appended; a peer that
does not start or fails has a line with `failed`.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from experiments.benchmark import race
from experiments.benchmark import workloads
from experiments.benchmark.racer import Racer

# One configuration each: work is on the accelerator.
MODES = {'fedjax': ('fedjax, jit', ()), 'pfl': ('pfl-research', ('1',))}
_WARM = 2


def measure(command: list[Any], turns: int) -> dict[str, Any]:
  """Lets a peer take its turns; returns its figures, or why it failed."""
  try:
    racer = Racer(command)
  except ChildProcessError as error:
    return {'failed': f'does not start: {error}'}
  try:
    for turn in range(_WARM + turns):
      racer.turn(counts=turn >= _WARM)
  except ChildProcessError as error:
    return {'failed': f'fails: {error}'}
  racer.close()
  return {
    'seconds_per_round': statistics.median(racer.seconds),
    'seconds': racer.seconds,
    **racer.facts,
  }


def main() -> None:
  """Measures the peers; appends their rows."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--workloads', default='2nn,cnn_e5,pfl_cifar10,flute_lr')
  parser.add_argument('--peers', default=','.join(MODES))
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--python', help='an interpreter that has the peers')
  args = parser.parse_args()
  for workload in args.workloads.split(','):
    for peer in args.peers.split(','):
      name, mode = MODES[peer]
      key = f'peer {name} {workload}'
      try:
        command = race.peer_command(
          peer, workload, mode, cuda=True, python=args.python
        )
        row = measure(command, args.turns)
      except (OSError, race.subprocess.CalledProcessError) as error:
        row = {'failed': f'cannot be installed: {error}'[:500]}
      row = {'key': key, 'device': 'unknown', **row}
      row['about'] = workloads.WORKLOADS[workload].about
      print(key, row.get('failed') or row['seconds_per_round'], flush=True)
      with open(args.out, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
