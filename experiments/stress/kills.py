"""Kills commands at random times; resumed ones must end with the same bits.

Sixteen settings of `run`, `sweep` and `convert` take turns. Each is started,
killed one to three times by SIGKILL, SIGTERM or SIGINT, rerun by the same
command until it ends, and compared with one that was never killed: every array
of the last checkpoint, every line of metrics.jsonl, summary.json, clients.csv,
and every file of a federation, except for wall-clock times. After each kill all
JSON files must be complete, and at the end no temporary file may be left. The
times of the kills are spread over the entire command, including imports and
compilation; most of them are after its first files.

python -m experiments.stress.kills --kills 100 --out kills.jsonl

It prints a line per killed command and a total; the exit code is 1 if one
differs. The same call continues a file --out that has fewer kills. A kill takes
about 6 s on two CPU cores.
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
# The message of a conversion that was killed after its last file was written.
_OVER = 'already has a federation'


class Stage:
  """Starts the commands that are killed, in a folder with their data."""

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
    """Starts the command of a setting, which writes to a folder."""
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
    """Waits for the end of a setting's command; returns its seconds.

    Raises:
      RuntimeError: the command fails.
    """
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
  """Kills a command at a random time.

  Args:
    process: the command.
    folder: the folder that it writes to.
    seconds: the duration of an undisturbed command.
    rng: the generator of the signal and the time.

  Returns:
    The signal, the second, the exit code and the fault of its end; None if the
    command had ended before.
  """
  begin, signum = time.monotonic(), rng.choice(_SIGNALS)
  works, share = rng.random() < 0.7, rng.random()
  wait = share * seconds
  if works:  # A command's start takes most of its time: wait for its end.
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
    err += '\nhad not ended after 60 s'
  if process.returncode == 0 or _OVER in err:
    return None
  return {
    'signal': signum.name,
    'second': round(at, 2),
    'code': process.returncode,
    'wrong': _wrong_end(process.returncode, signum, out, err),
  }


def has_begun(folder: pathlib.Path) -> bool:
  """Returns whether a command has written its first results."""
  return any(folder.glob('metrics.jsonl')) or any(
    path.name not in ('.lock', 'sweep.json') for path in folder.glob('*')
  )


def _wrong_end(code: int, signum: signal.Signals, out: str, err: str) -> str:
  """Returns the fault of a command's end, '' if it is correct."""
  allowed = {-signum} if signum == signal.SIGKILL else {-signum, 128 + signum}
  if code not in allowed:
    return f'exit code {code}: {err[-300:]}'
  if 'had not ended' in err:
    return err[-300:]
  # Before the command prints anything, Ctrl-C gives Python's own traceback.
  if 'Traceback' in err and out:
    return err[-300:]
  return ''


def trial(
  stage: Stage, name: str, number: int, seconds: float, rng: random.Random
) -> tuple[list[dict[str, Any]], list[str], pathlib.Path]:
  """Kills a command one to three times, then lets it end.

  Returns:
    The kills, the faults, and the folder of the command.
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
  """Kills commands, each setting at least once; prints a line per command.

  Args:
    names: names of settings.
    kills: the total number of kills.
    seed: the seed of signals and times.
    out: the file to continue, or None.

  Returns:
    One row per command.
  """
  lines = earlier(out)
  rng = random.Random(f'{seed} {len(lines)}')
  now = facts()
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT in background jobs, and commands would inherit it.
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
        continue  # The command ended before it was killed.
      equal = SETTINGS[name].results(folder) == expected[name]
      lines.append(
        {'setting': name, 'kills': done, 'equal': equal, 'wrong': wrong} | now
      )
      append(out, lines[-1])
      moments = ', '.join(f'{k["signal"]} at {k["second"]} s' for k in done)
      outcome = '; '.join(['equal' if equal else 'DIFFERS', *wrong])
      print(f'{name}: {moments}: {outcome}', flush=True)
  return lines


def settings(text: str | None) -> list[str]:
  """Returns the names of settings in a text such as `a;b`; all for None.

  Raises:
    InputError: a name is unknown.
  """
  names = text.split(';') if text is not None else list(SETTINGS)
  for name in names:
    if name not in SETTINGS:
      raise InputError(
        f'--settings {name}: must be one of {"; ".join(SETTINGS)}'
      )
  return names


def facts() -> dict[str, Any]:
  """Returns the provenance in every row: versions, processor, code."""
  now = provenance.environment()
  return {
    'code_sha256': provenance.code_sha256()[:16],
    **{key: now[key] for key in ('versions', 'python', 'processor', 'cores')},
  }


def earlier(out: pathlib.Path | None) -> list[dict[str, Any]]:
  """Returns the rows that an earlier call has written.

  Raises:
    InputError: the file cannot be read.
  """
  if out is None or not out.exists():
    return []
  try:
    return [json.loads(line) for line in out.read_text().splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f'--out {out}: cannot be read ({error})') from error


def append(out: pathlib.Path | None, line: dict[str, Any]) -> None:
  """Appends a row to the file, if there is one."""
  if out is not None:
    with open(out, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')


def main() -> None:
  """Prints the outcomes; the exit code is 1 for a fault, 2 on bad input."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100, help='total of kills')
  parser.add_argument(
    '--seed', type=int, default=0, help='seed of signals and times'
  )
  parser.add_argument('--out', type=pathlib.Path, help='appends JSON lines')
  parser.add_argument(
    '--settings', help='names of settings, a;b; default all of them'
  )
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
    ' equal and complete'
  )
  sys.exit(int(len(good) < len(lines)))


if __name__ == '__main__':
  main()
