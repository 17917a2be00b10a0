"""Runs commands on full disks, from almost no space to nearly enough.

The settings of `kills` take turns. Each runs once on a separate disk with
enough space; then on disks of several smaller sizes, and on some that another
program fills while the command runs. The command must end with one line and
exit code 1 or 2, leave no file half written, and end with the same bits when it
is rerun with enough space. At last it runs on a read-only disk: it must end
with one line and write nothing.

python -m experiments.stress.full_disk --sizes 6 --out full_disk.jsonl

It prints a line per disk; the exit code is 1 if one is wrong. It mounts file
systems in memory (tmpfs), which needs root rights. The same call continues a
file --out that has fewer lines.
"""

import argparse
from collections.abc import Sequence
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging

from experiments.stress import kills
from experiments.stress.kill_settings import SETTINGS
from experiments.stress.kill_settings import debris
from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError

_ROOM = 64 * 2**20


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, num_bytes: int):
  """Mounts a file system of a given size at a new folder."""
  folder.mkdir()
  _mount('-t', 'tmpfs', '-o', f'size={num_bytes}', 'none', str(folder))
  try:
    yield
  finally:
    subprocess.run(['umount', str(folder)], check=True)
    folder.rmdir()


def _mount(*args: str) -> None:
  done = subprocess.run(['mount', *args], capture_output=True, text=True)
  if done.returncode:
    raise InputError(f'mount {" ".join(args)}: {done.stderr.strip()}')


def used(disk: pathlib.Path) -> int:
  """Returns the bytes in use on a disk."""
  facts = os.statvfs(disk)
  return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def too_small(
  stage: kills.Stage, name: str, size: int, expected: Any
) -> list[str]:
  """Returns the faults of a command on a disk that is too small."""
  disk = stage.folder / 'disk'
  with small_disk(disk, size):
    code, err = _end(stage, name, disk / 'out')
    wrong = _wrong(disk / 'out', code, err) if code else []
    _mount('-o', f'remount,size={_ROOM}', str(disk))
    return wrong + _again(stage, name, disk / 'out', expected)


def filled(
  stage: kills.Stage, name: str, seconds: float, expected: Any
) -> list[str]:
  """Returns the faults of a command whose disk becomes full while it runs.

  Args:
    stage: the stage.
    name: the name of the setting.
    seconds: the delay, after the command's first files, before the disk is
      filled.
    expected: the results of an undisturbed command.
  """
  disk = stage.folder / 'disk'
  folder = disk / 'out'
  with small_disk(disk, _ROOM), tempfile.TemporaryFile() as err:
    process = stage.start(name, folder, stderr=err)
    while process.poll() is None and not kills.has_begun(folder):
      time.sleep(0.002)
    time.sleep(seconds)
    with open(disk / 'filler', 'wb', buffering=0) as file:
      while process.poll() is None:
        with contextlib.suppress(OSError):
          while file.write(bytes(4096)):
            pass
        time.sleep(0.002)
    process.communicate()
    (disk / 'filler').unlink()
    err.seek(0)
    code = process.returncode
    wrong = _wrong(folder, code, err.read().decode()) if code else []
    return wrong + _again(stage, name, folder, expected)


def _again(
  stage: kills.Stage, name: str, folder: pathlib.Path, expected: Any
) -> list[str]:
  """Reruns the command with enough space; returns the faults."""
  try:
    stage.finish(name, folder)
  except RuntimeError as error:
    return [f'rerun with enough space: {error}']
  equal = SETTINGS[name].results(folder) == expected
  wrong = [] if equal else ['rerun with enough space: results differ']
  return wrong + debris(folder, ended=True)


def read_only(stage: kills.Stage, name: str) -> list[str]:
  """Returns the faults of a command on a read-only disk."""
  disk = stage.folder / 'disk'
  with small_disk(disk, _ROOM):
    _mount('-o', 'remount,ro', str(disk))
    code, err = _end(stage, name, disk / 'out')
    return _wrong(disk / 'out', code, err) + [p.name for p in disk.iterdir()]


def _end(
  stage: kills.Stage, name: str, folder: pathlib.Path
) -> tuple[int, str]:
  process = stage.start(name, folder)
  _, err = process.communicate(timeout=300)
  return process.returncode, err


def _wrong(folder: pathlib.Path, code: int, err: str) -> list[str]:
  one_line = err.count('\n') == 1 and err.startswith('error: ')
  wrong = [] if code in (1, 2) and one_line else [f'exit code {code}: {err}']
  return wrong + (debris(folder, ended=False) if folder.exists() else [])


def trials(
  names: Sequence[str], sizes: int, out: pathlib.Path | None
) -> list[dict[str, Any]]:
  """Tries every setting on disks of each kind.

  Args:
    names: names of settings.
    sizes: the number of disks per setting and kind.
    out: the file to continue, or None.

  Returns:
    One row per disk.
  """
  lines = kills.earlier(out)
  done = {(line['setting'], line['disk']) for line in lines}
  shares = [round((i + 1) / (sizes + 1), 3) for i in range(sizes)]
  kinds = [(f'{kind} {s}', s) for kind in ('size', 'moment') for s in shares]
  with tempfile.TemporaryDirectory() as temporary:
    stage = kills.Stage(pathlib.Path(temporary))
    for name in names:
      todo = [k for k in (*kinds, ('read-only', 0)) if (name, k[0]) not in done]
      if not todo:
        continue
      needed, seconds, expected = _unhindered(stage, name)
      for kind, share in todo:
        if kind == 'read-only':
          wrong = read_only(stage, name)
        elif kind.startswith('size'):
          wrong = too_small(stage, name, int(share * needed), expected)
        else:
          wrong = filled(stage, name, share * seconds, expected)
        line = {'setting': name, 'disk': kind, 'wrong': wrong} | kills.facts()
        lines.append(line)
        kills.append(out, line)
        print(f'{name}, {kind}: {"; ".join(wrong) or "correct"}', flush=True)
  return lines


def _unhindered(stage: kills.Stage, name: str) -> tuple[int, float, Any]:
  """Measures a command with enough space: bytes, seconds of work, results."""
  disk = stage.folder / 'disk'
  with small_disk(disk, _ROOM):
    before = used(disk)
    process = stage.start(name, disk / 'out')
    while process.poll() is None and not kills.has_begun(disk / 'out'):
      time.sleep(0.002)
    begin = time.monotonic()
    process.communicate()
    seconds = time.monotonic() - begin
    return used(disk) - before, seconds, SETTINGS[name].results(disk / 'out')


def main() -> None:
  """Prints the outcomes; the exit code is 1 for a fault, 2 on bad input."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--sizes', type=int, default=6, help='disks per setting and kind'
  )
  parser.add_argument('--out', type=pathlib.Path, help='appends JSON lines')
  parser.add_argument(
    '--settings', help='names of settings, a;b; default all of them'
  )
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  try:
    if args.sizes < 1:
      raise InputError(f'--sizes {args.sizes}: must be at least 1')
    lines = trials(kills.settings(args.settings), args.sizes, args.out)
  except InputError as error:
    sys.exit(command.fail(error))
  wrong = sum(bool(line['wrong']) for line in lines)
  print(f'{len(lines)} disks: {len(lines) - wrong} / {len(lines)} correct')
  sys.exit(int(wrong > 0))


if __name__ == '__main__':
  main()
