"""Kills commands at random moments; what resumes must end with the same bits.

Thirteen settings of `run`, `sweep` and `convert` take turns. Each is started,
killed once to three times by SIGKILL, SIGTERM or SIGINT, started again by the
same command until it ends, and compared with one that was never killed: every
array of the last checkpoint, every line of metrics.jsonl, summary.json,
clients.csv, every file of a federation; times excepted. After each kill all
JSON that has its name must be complete, at the end no part of a file is left.
Moments are drawn over the whole command, imports and compilation included, and
more of them while it works.

python -m experiments.stress.kills --kills 100 --out kills.jsonl

Prints a line per command that was killed and a sum; exit code 1 if one differs.
The same call continues with an --out that has fewer kills. A kill takes about
6 s on two CPU cores.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging

from experiments import checkout
from experiments.stress.kill_settings import SETTINGS
from experiments.stress.kill_settings import debris
from experiments.stress.kill_settings import make_data
from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import provenance

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MOST_SECONDS = 300
# Of a conversion that was killed behind its last file: nothing is left to do.
_OVER = 'already has a federation'


class Stage:
  """Where commands are killed: their data and their folders."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    make_data(folder)
    self._environment = checkout.here().environment() | {
      'PYTHONPATH': f'{checkout.REPOSITORY}{os.pathsep}{folder}',
    }
    self._process(
      SETTINGS['convert generator'].command,
      SETTINGS['convert generator'].args,
      folder / 'federation',
    ).communicate(timeout=_MOST_SECONDS)

  def start(
    self, name: str, folder: pathlib.Path, stderr: Any = subprocess.PIPE
  ) -> subprocess.Popen:
    """Starts a command as a person would, at a terminal of its own."""
    setting = SETTINGS[name]
    return self._process(setting.command, setting.args, folder, stderr)

  def _process(
    self, word, args, folder, stderr=subprocess.PIPE
  ) -> subprocess.Popen:
    places = {'FOLDER': str(folder), 'DATA': str(self.folder)}
    for key, place in places.items():
      args = [arg.replace(key, place) for arg in args]
    return subprocess.Popen(
      [sys.executable, '-m', 'fedavg_jax', word, *args],
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
      env=self._environment,
      cwd=self.folder,
    )

  def finish(self, name: str, folder: pathlib.Path) -> float:
    """Runs a command to its end; returns the seconds that it took."""
    begin = time.monotonic()
    process = self.start(name, folder)
    _, err = process.communicate(timeout=_MOST_SECONDS)
    if process.returncode and _OVER not in err:
      raise RuntimeError(f'{name}: exit code {process.returncode}: {err}')
    return time.monotonic() - begin


def kill(
  process: subprocess.Popen,
  folder: pathlib.Path,
  seconds: float,
  rng: random.Random,
) -> dict[str, Any] | None:
  """Kills a command at a moment of its own; None if it had ended before.

  Returns:
    The signal, the second, the exit code, and what is wrong with its end.
  """
  begin, signum = time.monotonic(), rng.choice(_SIGNALS)
  works, share = rng.random() < 0.7, rng.random()
  wait = share * seconds
  if works:  # Most of a command is its start: wait until that is over.
    while process.poll() is None and not has_begun(folder):
      time.sleep(0.002)
    wait = time.monotonic() - begin + share * seconds / 2
  while process.poll() is None and time.monotonic() - begin < wait:
    time.sleep(0.002)
  at = time.monotonic() - begin
  process.send_signal(signum)
  try:
    out, err = process.communicate(timeout=60)
  except subprocess.TimeoutExpired:
    process.kill()
    out, err = process.communicate()
    err += '\nwas not over after 60 s'
  if process.returncode == 0 or _OVER in err:
    return None
  return {
    'signal': signum.name,
    'second': round(at, 2),
    'code': process.returncode,
    'wrong': _wrong_end(process.returncode, signum, out, err),
  }


def has_begun(folder: pathlib.Path) -> bool:
  """Tells whether a command has written something of its work."""
  return any(folder.glob('metrics.jsonl')) or any(
    path.name not in ('.lock', 'sweep.json') for path in folder.glob('*')
  )


def _wrong_end(code: int, signum: signal.Signals, out: str, err: str) -> str:
  """Says what a person would complain about, '' where nothing is wrong."""
  allowed = {-signum} if signum == signal.SIGKILL else {-signum, 128 + signum}
  if code not in allowed:
    return f'exit code {code}: {err[-300:]}'
  if 'was not over' in err:
    return err[-300:]
  # Before the command has begun Python itself tells of Ctrl-C.
  if 'Traceback' in err and out:
    return err[-300:]
  return ''


def trial(
  stage: Stage, name: str, number: int, seconds: float, rng: random.Random
) -> tuple[list[dict[str, Any]], list[str], pathlib.Path]:
  """Kills a command once to three times, then lets it end.

  Returns:
    The kills, what was half written or ended wrongly, and its folder.
  """
  folder, kills, wrong = stage.folder / f'killed{number}', [], []
  for _ in range(rng.choice((1, 1, 2, 3))):
    killed = kill(stage.start(name, folder), folder, seconds, rng)
    if killed is None:
      break
    if problem := killed.pop('wrong'):
      wrong.append(problem)
    kills.append(killed)
    if folder.exists():
      wrong += debris(folder, ended=False)
  stage.finish(name, folder) if kills or not folder.exists() else None
  return kills, wrong + debris(folder, ended=True), folder


def trials(
  names: Sequence[str], kills: int, seed: int, out: pathlib.Path | None
) -> list[dict[str, Any]]:
  """Kills so often in all, each setting at least once; a line per command."""
  lines = earlier(out)
  rng = random.Random(f'{seed} {len(lines)}')
  now = facts()
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in the background; commands would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
  with tempfile.TemporaryDirectory() as temporary:
    stage = Stage(pathlib.Path(temporary))
    expected, seconds = {}, {}
    number = len(lines)
    while sum(len(line['kills']) for line in lines) < kills or {
      line['setting'] for line in lines
    } < set(names):
      name = names[number % len(names)]
      number += 1
      if name not in expected:
        folder = stage.folder / f'expected {name}'
        seconds[name] = stage.finish(name, folder)
        expected[name] = SETTINGS[name].results(folder)
      done, wrong, folder = trial(stage, name, number, seconds[name], rng)
      if not done:
        continue  # It was over before its moment came.
      equal = SETTINGS[name].results(folder) == expected[name]
      lines.append(
        {'setting': name, 'kills': done, 'equal': equal, 'wrong': wrong} | now
      )
      append(out, lines[-1])
      moments = ', '.join(f'{k["signal"]} at {k["second"]} s' for k in done)
      said = 'equal' if equal else 'DIFFERS'
      print(
        f'{name}: {moments}: {said}{"; " if wrong else ""}{"; ".join(wrong)}',
        flush=True,
      )
  return lines


def settings(text: str | None) -> list[str]:
  """Reads names of settings, `a;b`; None means all of them."""
  names = text.split(';') if text is not None else list(SETTINGS)
  for name in names:
    if name not in SETTINGS:
      raise InputError(f'--settings {name}: must be some of {list(SETTINGS)}')
  return names


def facts() -> dict[str, Any]:
  """Returns what stands beside every line: versions, device, code."""
  now = provenance.environment()
  return {
    'code_sha256': provenance.code_sha256()[:16],
    **{key: now[key] for key in ('versions', 'python', 'processor', 'cores')},
  }


def earlier(out: pathlib.Path | None) -> list[dict[str, Any]]:
  """Reads the lines that an earlier call has written."""
  if out is None or not out.exists():
    return []
  try:
    return [json.loads(line) for line in out.read_text().splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f'--out {out}: cannot be read ({error})') from error


def append(out: pathlib.Path | None, line: dict[str, Any]) -> None:
  """Writes a line behind the others, if there is a file."""
  if out is not None:
    with open(out, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')


def main() -> None:
  """Prints what happened; ends with 1 if something differs, 2 at bad input."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument('--out', type=pathlib.Path, help='lines of JSON')
  parser.add_argument('--settings', help='some of them: a;b')
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # Silence the INFO lines of orbax.
  try:
    names = settings(args.settings)
    if args.kills < 1:
      raise InputError(f'--kills {args.kills}: must be at least 1')
    lines = trials(names, args.kills, args.seed, args.out)
  except InputError as error:
    sys.exit(command.fail(error))
  number = sum(len(line['kills']) for line in lines)
  good = [line for line in lines if line['equal'] and not line['wrong']]
  print(
    f'{number} kills of {len(lines)} commands: {len(good)} / {len(lines)}'
    ' equal and nothing half written'
  )
  sys.exit(int(len(good) < len(lines)))


if __name__ == '__main__':
  main()
