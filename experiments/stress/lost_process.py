"""Kills one of several processes in the middle of a round; the run resumes.

A run of scikit-learn's digits is shared by processes of this machine. One of
them gets SIGKILL, or SIGSTOP as a host that has lost its network seems to the
others, while rounds are under way; the others must end by themselves, each with
one line that says why. Then the run resumes with another number of processes,
and in the end its model must be that of a single process that nobody killed.

python -m experiments.stress.lost_process --kills 10

Prints a line per kill and `10 / 10 equal`; exit code 1 if they are not.
"""

import argparse
from collections.abc import Sequence
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from fedavg_jax.runs import checkpoint

HEARTBEAT_SECONDS = 8
CLOSE = 1e-6  # Largest difference of a weight that rounding explains.
REPOSITORY = pathlib.Path(__file__).parents[2]
_CONFIG = REPOSITORY / 'configs' / 'quickstart.py'
SETTING = (
  '--config.algorithm=scaffold',
  '--config.client.epochs=1',
  '--config.client.learning_rate=0.001',  # Little that grows from rounding.
  '--config.num_clients=30',
  '--config.rounds=30',
  '--config.rounds_per_call=2',
  '--config.checkpoint.rounds=5',
  '--config.cpu_devices=1',
  '--config.pictures=False',
)


class Ended(NamedTuple):
  """How a process has ended: exit code, and what it printed as an error."""

  code: int
  stderr: str

  @property
  def errors(self) -> list[str]:
    """Its lines that begin with `error: `."""
    lines = self.stderr.splitlines()
    return [line for line in lines if line.startswith('error: ')]


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as own:
    own.bind(('localhost', 0))
    return own.getsockname()[1]


def command(*arguments: object) -> list[str]:
  """The command of a run, as a person would give it."""
  begin = [sys.executable, '-u', '-m', 'fedavg_jax.main']
  return [*begin, '--config', str(_CONFIG), *map(str, arguments)]


def start(
  number: int, *arguments: object, own: Sequence[Sequence[object]] = ()
) -> list[subprocess.Popen]:
  """Starts the processes of a run.

  Args:
    number: of processes.
    *arguments: of all.
    own: of each.
  """
  port = free_port()
  return [
    subprocess.Popen(
      command(
        '--distributed',
        f'--coordinator=localhost:{port}',
        f'--num_processes={number}',
        f'--process_id={i}',
        f'--heartbeat_seconds={HEARTBEAT_SECONDS}',
        *arguments,
        *(own[i] if own else ()),
      ),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(number)
  ]


def wait(processes: Sequence[subprocess.Popen], seconds: float) -> list[Ended]:
  """Waits until all have ended; kills them after so many seconds."""
  ends = time.monotonic() + seconds
  ended = []
  for process in processes:
    try:
      _, stderr = process.communicate(timeout=max(ends - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
      process.kill()
      _, stderr = process.communicate()
    ended.append(Ended(process.returncode, stderr))
  return ended


def run(number: int, workdir: pathlib.Path) -> None:
  """Runs to the end, alone or with others.

  Raises:
    RuntimeError: a process did not end well.
  """
  arguments = (f'--workdir={workdir}', *SETTING)
  if number == 1:
    processes = [
      subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
    ]
  else:
    processes = start(number, *arguments)
  for ended in wait(processes, 240):
    if ended.code:
      raise RuntimeError(f'exit code {ended.code}: {ended.stderr}')


def difference(a: pathlib.Path, b: pathlib.Path) -> float:
  """The largest difference of a weight between the models of two runs."""
  return max(
    float(np.abs(x - y).max())
    for x, y in zip(
      *(jax.tree.leaves(checkpoint.load_params(folder)) for folder in (a, b)),
      strict=True,
    )
  )


def kill_one(
  number: int, victim: int, signum: int, workdir: pathlib.Path, lines: int
) -> tuple[list[Ended], float]:
  """Kills a process once metrics.jsonl has so many lines.

  Returns:
    How the others have ended, and how many seconds that took.
  """
  processes = start(number, f'--workdir={workdir}', *SETTING)
  metrics = workdir / 'metrics.jsonl'
  while not (
    metrics.exists() and metrics.read_bytes().count(b'\n') >= lines
  ) and all(process.poll() is None for process in processes):
    time.sleep(0.002)
  # The parent that only watches, and the process that works.
  found = subprocess.run(
    ['pgrep', '-P', str(processes[victim].pid)], capture_output=True, text=True
  )
  for pid in (*map(int, found.stdout.split()), processes[victim].pid):
    subprocess.run(['kill', f'-{int(signum)}', str(pid)], check=True)
  begin = time.monotonic()
  others = [p for i, p in enumerate(processes) if i != victim]
  ended = wait(others, HEARTBEAT_SECONDS + 60)
  seconds = time.monotonic() - begin
  for pid in map(int, found.stdout.split()):
    subprocess.run(['kill', '-KILL', str(pid)], capture_output=True)
  processes[victim].kill()
  processes[victim].communicate()
  return ended, seconds


def trials(kills: int, seed: int) -> list[bool]:
  """Kills so often; tells whether all ended well."""
  rng, equal = random.Random(seed), []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    run(1, folder / 'alone')
    for i in range(kills):
      before, after = rng.choice((2, 4)), rng.choice((1, 2, 4))
      victim = rng.randrange(before)
      signum = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
      workdir = folder / f'run{i}'
      others, seconds = kill_one(
        before, victim, signum, workdir, rng.randrange(2, 25)
      )
      one_line = all(len(ended.errors) == 1 for ended in others)
      run(after, workdir)
      far = difference(folder / 'alone', workdir)
      equal.append(one_line and far <= CLOSE)
      print(
        f'{i + 1}: {signal.Signals(signum).name} to process {victim} of'
        f' {before}: the others ended after {seconds:.1f} s'
        f' {"with one line each" if one_line else "WITHOUT A WORD"}; resumed'
        f' with {after}: {far:.1e} from a single process',
        flush=True,
      )
  return equal


def main() -> None:
  """Prints what happened."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)  # Silence the INFO lines of orbax.
  equal = trials(args.kills, args.seed)
  print(f'{sum(equal)} / {len(equal)} equal')
  sys.exit(not all(equal))


if __name__ == '__main__':
  main()
