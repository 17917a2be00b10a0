"""Kills one of several processes in the middle of a round; the run resumes.

Several processes of this machine share a run on the package's digits. During
its rounds one of them gets SIGKILL, or SIGSTOP, which looks to the others like
a host that has lost its network. The others must end without help, each with
one line that states the reason. Then the run resumes with another number of
processes, and its final model must equal that of a single process that was not
killed.

python -m experiments.stress.lost_process --kills 10

It prints a line per kill and `10 / 10 equal`; the exit code is 1 if they are
not.
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
CLOSE = 1e-6  # Largest difference of a weight due to rounding.
REPOSITORY = pathlib.Path(__file__).parents[2]
_CONFIG = REPOSITORY / 'configs' / 'quickstart.py'
SETTING = (
  '--config.algorithm=scaffold',
  '--config.client.epochs=1',
  '--config.client.learning_rate=0.001',  # Rounding errors grow little.
  '--config.num_clients=30',
  '--config.rounds=30',
  '--config.rounds_per_call=2',
  '--config.checkpoint.rounds=5',
  '--config.cpu_devices=1',
  '--config.pictures=False',
)


class Ended(NamedTuple):
  """Holds the exit code and the standard error of a process that has ended."""

  code: int
  stderr: str

  @property
  def errors(self) -> list[str]:
    """Returns the lines that begin with `error: `."""
    lines = self.stderr.splitlines()
    return [line for line in lines if line.startswith('error: ')]


def free_port() -> int:
  """Returns a free port of this machine."""
  with socket.socket() as own:
    own.bind(('localhost', 0))
    return own.getsockname()[1]


def command(*arguments: object) -> list[str]:
  """Returns the command of a run with these arguments."""
  begin = [sys.executable, '-u', '-m', 'fedavg_jax.main']
  return [*begin, '--config', str(_CONFIG), *map(str, arguments)]


def start(
  number: int, *arguments: object, own: Sequence[Sequence[object]] = ()
) -> list[subprocess.Popen]:
  """Starts the processes of a run.

  Args:
    number: the number of processes.
    *arguments: arguments of all processes.
    own: further arguments of each process.
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
  """Waits until all processes have ended; kills them after some seconds."""
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


def run(number: int, workdir: pathlib.Path, *changes: str) -> None:
  """Completes a run with a number of processes, resuming it if it exists.

  Args:
    number: the number of processes.
    workdir: the folder of the run.
    *changes: flags in addition to `SETTING`.

  Raises:
    RuntimeError: a process fails.
  """
  arguments = (f'--workdir={workdir}', *SETTING, *changes)
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
  """Returns the largest difference of a weight between two runs' models."""
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
  """Kills a process of a run once metrics.jsonl has enough lines.

  Args:
    number: the number of processes.
    victim: the index of the process that is killed.
    signum: the signal.
    workdir: the folder of the run.
    lines: the number of lines to wait for.

  Returns:
    The ends of the other processes, and the seconds until they ended.
  """
  processes = start(number, f'--workdir={workdir}', *SETTING)
  metrics = workdir / 'metrics.jsonl'
  while not (
    metrics.exists() and metrics.read_bytes().count(b'\n') >= lines
  ) and all(process.poll() is None for process in processes):
    time.sleep(0.002)
  # The victim is a supervising parent and its child, which trains.
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
  """Kills processes of several runs; returns whether each run was correct.

  Args:
    kills: the number of runs, with one kill each.
    seed: the seed of the numbers of processes, the signals and the times.
  """
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
      largest = difference(folder / 'alone', workdir)
      equal.append(one_line and largest <= CLOSE)
      print(
        f'{i + 1}: {signal.Signals(signum).name} to process {victim} of'
        f' {before}: the others ended after {seconds:.1f} s'
        f' {"with" if one_line else "WITHOUT"} one error line each; resumed'
        f' with {after}: difference {largest:.1e} from a single process',
        flush=True,
      )
  return equal


def main() -> None:
  """Prints the outcomes; the exit code is 1 if a run was not correct."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--kills', type=int, default=10, help='number of runs with a kill'
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='seed of signals and times'
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)  # Silence the INFO lines of orbax.
  equal = trials(args.kills, args.seed)
  print(f'{sum(equal)} / {len(equal)} equal')
  sys.exit(not all(equal))


if __name__ == '__main__':
  main()
