"""Kills runs at random moments; what is resumed must end with the same bits.

Small runs on scikit-learn's digits are started, killed with SIGKILL, started
again by the same command, every third one killed again, and in the end compared
with one that was never killed: every array of the last checkpoint, every line
of metrics.jsonl, and summary.json, times excepted. Moments are drawn over the
whole run, imports and compilation included; some kills wait for a checkpoint
that is being written, for metrics.jsonl to grow, or for the end.

python -m experiments.stress.kill --kills 50

Prints a line per kill and `50 / 50 identical`; exit code 1 if they are not. A
kill takes about 10 s on two CPU cores.
"""

import collections
from collections.abc import Sequence
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging

from fedavg_jax.runs import checkpoint

_KILLS = flags.DEFINE_integer('kills', 50, 'Runs to kill.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

_CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
_SETTINGS = {
  'FedAvgM': [
    '--config.server.momentum=0.9',
    '--config.server.learning_rate=0.3',
    '--config.eval_every=3',
    '--config.checkpoint.rounds=3',
  ],
  'SCAFFOLD': [
    '--config.algorithm=scaffold',
    '--config.client.epochs=1',
    '--config.checkpoint.rounds=3',
  ],
  'SCAFFOLD, checkpoints by time': [
    '--config.algorithm=scaffold',
    '--config.client.epochs=1',
    '--config.rounds_per_call=4',
    '--config.checkpoint.minutes=0.005',
  ],
}
_COMMON = [
  '--config.rounds=40',
  '--config.num_clients=30',
  '--config.checkpoint.keep=2',
]
# Three of ten trials aim at what is short.
_AIMS = ('any time',) * 7 + ('a checkpoint', 'metrics.jsonl', 'the end')
_CLOCKS = ('seconds', 'rounds_per_second', 'compile_seconds')


def start(setting: str, workdir: pathlib.Path, out: Any) -> subprocess.Popen:
  """Starts the command, as a person would."""
  command = [sys.executable, '-u', '-m', 'fedavg_jax.main']
  command += ['--config', str(_CONFIG), '--workdir', str(workdir)]
  return subprocess.Popen(
    [*command, *_COMMON, *_SETTINGS[setting]],
    stdout=out,
    stderr=subprocess.STDOUT,
  )


def last_checkpoint(workdir: pathlib.Path) -> checkpoint.Checkpoint:
  """Reads what a run has saved last."""
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, keep=2)
  ) as checkpoints:
    saved = checkpoints.newest()
  assert saved is not None
  return saved


def result(workdir: pathlib.Path) -> dict[str, Any]:
  """All that two runs of the same config must have in common."""

  def timeless(content):
    return {k: v for k, v in content.items() if k not in _CLOCKS}

  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return {
    'arrays': checkpoint.digest(last_checkpoint(workdir).leaves),
    'metrics': [timeless(json.loads(line)) for line in lines],
    'summary': timeless(json.loads((workdir / 'summary.json').read_text())),
  }


def kill(
  process: subprocess.Popen,
  workdir: pathlib.Path,
  aim: str,
  seconds: float,
  rng: random.Random,
) -> bool:
  """Kills a process at its moment; False if it had ended before."""
  metrics = workdir / 'metrics.jsonl'
  begin = time.monotonic()
  lines = rng.randrange(1, 41)
  delay = rng.uniform(0, 0.02)

  def moment() -> bool:
    if aim == 'any time':
      return time.monotonic() - begin >= seconds * rate
    if not metrics.exists():
      return False
    if aim == 'the end':
      return metrics.read_bytes().count(b'\n') >= 41
    if metrics.read_bytes().count(b'\n') < lines:
      return False
    if aim == 'a checkpoint':
      return any(workdir.glob('checkpoints/*tmp*')) or lines > 38
    return True

  rate = rng.random()
  while not moment() and process.poll() is None:
    time.sleep(0.001)
  if aim in ('a checkpoint', 'the end'):
    time.sleep(delay)
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


def phase(workdir: pathlib.Path, out: str) -> str:
  """What the process was doing, from what it has left."""
  if 'compiled in' not in out:
    return 'starting or compiling'
  if any(workdir.glob('checkpoints/*tmp*')):
    return 'writing a checkpoint'
  if any(workdir.glob('checkpoints/*.deleted')):
    return 'deleting a checkpoint'
  if any(workdir.glob('.part.*')):
    return 'writing another file'
  metrics = workdir / 'metrics.jsonl'
  content = metrics.read_bytes() if metrics.exists() else b''
  if content and not content.endswith(b'\n'):
    return 'writing metrics'
  if content.count(b'\n') == 41:
    return 'ending'
  return 'training or evaluating' if content else 'beginning'


def run_to_the_end(setting: str, workdir: pathlib.Path) -> str:
  """Runs the command; returns what it printed."""
  with tempfile.TemporaryFile('w+') as out:
    code = start(setting, workdir, out).wait()
    out.seek(0)
    text = out.read()
  if code:
    raise RuntimeError(f'exit code {code}: {text}')
  return text


def trials(
  kills: int, seed: int, settings: Sequence[str] = tuple(_SETTINGS)
) -> list[tuple[str, bool]]:
  """Kills so often; tells in which phase, and whether nothing was lost."""
  rng = random.Random(seed)
  told = []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    expected, seconds = {}, {}
    for setting in settings:
      begin = time.monotonic()
      run_to_the_end(setting, folder / setting)
      seconds[setting] = time.monotonic() - begin
      expected[setting] = result(folder / setting)
      print(f'{setting}: {seconds[setting]:.1f} s without a kill', flush=True)
    number = 0
    while len(told) < kills:
      number += 1
      setting = settings[number % len(settings)]
      workdir, out_path = folder / f'run{number}', folder / f'out{number}'
      where = []
      for _ in range(2 if number % 3 == 0 else 1):
        with open(out_path, 'w+') as out:
          process = start(setting, workdir, out)
          aim = rng.choice(_AIMS)
          if kill(process, workdir, aim, seconds[setting], rng):
            out.seek(0)
            where.append(phase(workdir, out.read()))
      if not where:
        continue  # It was over before its moment came.
      text = run_to_the_end(setting, workdir)
      resumed = [line for line in text.splitlines() if 'goes on after' in line]
      same = result(workdir) == expected[setting]
      told += [(one, same) for one in where]
      print(
        f'{len(told)}: {setting}, killed {", then ".join(where)},'
        f' {resumed[0].split(": ")[1] if resumed else "began again"}:'
        f' {"identical" if same else "DIFFERS"}',
        flush=True,
      )
  return told


def main(argv: Sequence[str]) -> int:
  """Prints what happened."""
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax tells its life story.
  told = trials(_KILLS.value, _SEED.value)
  for where, number in collections.Counter(w for w, _ in told).most_common():
    print(f'{number:4d} {where}')
  identical = sum(same for _, same in told)
  print(f'{identical} / {len(told)} identical')
  return int(identical < len(told))


if __name__ == '__main__':
  app.run(main)
