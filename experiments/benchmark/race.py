"""Rounds per second on this machine, beside other systems in the same run.

Every system is a process of its own. All take turns of a second or so, the same
number of rounds in each of their turns, so that a machine whose speed drifts is
fair to all; the first turns, which compile and warm up, do not count. Workloads
are defined in `workloads.py`, peers in `peers/`.

python -m experiments.benchmark
python -m experiments.benchmark --peers torch,fedjax,flower,pfl --out FILE
python -m experiments.benchmark --workloads writers,roles,roles_8
python -m experiments.benchmark --workloads cohorts --picture cohorts.png
python -m experiments.benchmark --workloads cnn --profile DIR
python -m experiments.benchmark --devices 1,2 --processes 1,2

With --devices or --processes the engine races itself on so many, with the same
cohort (strong scaling) and with one that grows with them (weak scaling), beside
what a model on paper says: the time of one, divided, and that of adding up the
weights of the model. On a CPU devices are virtual, and share its cores.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
import venv

from experiments.benchmark import workloads
from fedavg_jax.engine import devices

PEERS = pathlib.Path(__file__).parent / 'peers'
DEFAULT = 'cnn,2nn'
GROUPS = {
  'all': list(workloads.WORKLOADS),
  'cohorts': [f'cohort_{m}' for m in workloads.COHORTS],
  'sizes': [name for name in workloads.WORKLOADS if name.startswith('size_')],
  'run': ['run_2nn', 'run_cnn'],
}
_CORES = devices.num_cores()
# How a peer is started, under which name: the ways that its users would try on
# a CPU of so many cores. Peers run on the CPU.
PEER_MODES = {
  'torch': {
    f'torch, {_CORES} processes x 1 thread': (str(_CORES), '1'),
    f'torch, 1 process x {_CORES} threads': ('1', str(_CORES)),
  },
  'fedjax': {'fedjax, jit': ()},
  'flower': {f'flower, {_CORES} workers': (str(_CORES),)},
  'pfl': {
    f'pfl-research, {_CORES} threads': (str(_CORES),),
    'pfl-research, 1 thread': ('1',),
  },
}
# Where a peer's round means something else, beside its figures.
NOTES = {
  'fedjax': 'tops up a last short batch with examples drawn again',
  'pfl-research': 'mean not weighted by examples, users drawn with replacement,'
  ' examples not shuffled',
}
# The engine in other ways of its own, to compare with.
OWN_MODES = {
  'roles': {'fedavg_jax, a padded lane per client': {'lanes': 'cohort'}},
  'run_2nn': {'fedavg_jax, device alone': {'device_alone': True}},
  'run_cnn': {'fedavg_jax, device alone': {'device_alone': True}},
  'cohort_1000': {'fedavg_jax, device alone': {'device_alone': True}},
}
_TURN_SECONDS = 1.0


class Racer:
  """A system in a race.

  Attributes:
    told: what it says of itself.
    seconds: of a round, one entry per turn.
    rounds: of each turn.
    peak_kib: sum of the most memory of each of its processes so far.
  """

  def __init__(self, command: list[Any]):
    self._errors = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
      [str(part) for part in command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      start_new_session=True,
      text=True,
    )
    self.told = self._answer()
    self.seconds: list[float] = []
    self.rounds = 1
    self.peak_kib = 0

  def turn(self, *, counts: bool) -> None:
    """Runs `rounds` rounds."""
    assert self._process.stdin
    self._process.stdin.write(f'{self.rounds}\n')
    self._process.stdin.flush()
    answer = self._answer()
    seconds = answer['seconds'] / self.rounds
    self.peak_kib = max(self.peak_kib, _peak_kib(self._process.pid))
    if counts:
      self.seconds.append(seconds)
    else:  # Still warming up: how many rounds fill a turn?
      self.rounds = max(1, round(_TURN_SECONDS / seconds))

  def close(self) -> None:
    """Ends the process, and those that it has started."""
    assert self._process.stdin and self._process.stdout
    self._process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    line = self._process.stdout.readline()
    if not line:
      self._errors.seek(0)
      last = self._errors.read().strip().splitlines()[-1:]
      self.close()
      raise ChildProcessError(f'ended: {" ".join(last) or "said nothing"}')
    return json.loads(line)


def _peak_kib(pid: int) -> int:
  """Sum of the most memory of a process and all its descendants, Linux."""
  parents, peaks = {}, {}
  for status in pathlib.Path('/proc').glob('[0-9]*/status'):
    with contextlib.suppress(OSError, KeyError):  # It may have just ended.
      lines = status.read_text().splitlines()
      told = dict(line.split(':', 1) for line in lines if ':' in line)
      parents[int(told['Pid'])] = int(told['PPid'])
      peaks[int(told['Pid'])] = int(told['VmHWM'].split()[0])

  def descends(process: int) -> bool:
    while process and process != pid:
      process = parents.get(process, 0)
    return process == pid

  return sum(peak for process, peak in peaks.items() if descends(process))


def our_command(workload: str, options: dict[str, Any]) -> list[Any]:
  """Starts the engine's worker."""
  return [
    *(sys.executable, '-m', 'experiments.benchmark.worker'),
    json.dumps(workloads.WORKLOADS[workload].as_dict()),
    json.dumps(options),
  ]


def peer_command(peer: str, workload: str, mode: tuple[str, ...]) -> list[Any]:
  """Starts a peer's worker in its own environment, made where it is missing."""
  home = pathlib.Path('build') / 'peers' / peer
  python = home / 'bin' / 'python'
  requirements = PEERS / peer / 'requirements.txt'
  installed = home / 'installed.txt'  # Written once all went well.
  wanted = requirements.read_text()
  if not installed.exists() or installed.read_text() != wanted:
    venv.create(home, with_pip=True, clear=True)
    install = [python, '-m', 'pip', 'install', '-q', '-r', requirements]
    subprocess.run(install, check=True)
    installed.write_text(wanted)
  content = json.dumps(workloads.WORKLOADS[workload].as_dict())
  return [python, PEERS / peer / 'worker.py', content, *mode]


def scaled(devices: list[int], processes: list[int]) -> dict[str, Any]:
  """The engine on so many devices, or processes with a device each."""
  modes: dict[str, Any] = {}
  for kind, numbers in (('device', devices), ('process', processes)):
    for number in numbers:
      own = {'devices': number}
      if kind == 'process':
        own['processes'] = number
      for times in {1, number}:
        grows = f', cohort x {times}' if times > 1 else ''
        plural = ('s' if kind == 'device' else 'es') * (number > 1)
        modes[f'{number} {kind}{plural}{grows}'] = own | {'times': times}
  return modes


def race(
  workload: str,
  peers: list[str],
  turns: int,
  options: dict[str, Any],
  modes: dict[str, Any],
) -> dict[str, Racer]:
  """Lets the engine, in its other ways too, and the peers take turns."""
  commands = {'fedavg_jax': our_command(workload, options)}
  for name, own in modes.items():
    commands[name] = our_command(workload, options | own | {'profile': ''})
  for peer in peers:
    for name, mode in PEER_MODES[peer].items():
      try:
        commands[name] = peer_command(peer, workload, mode)
      except (OSError, subprocess.CalledProcessError) as error:
        print(f'{name}: cannot be installed here, left out: {error}')
  racers: dict[str, Racer] = {}
  try:
    for name, command in commands.items():
      try:
        racers[name] = Racer(command)
      except ChildProcessError as error:
        print(f'{name}: does not start, left out: {error}')
    for number in range(turns + 2):
      for name, racer in list(racers.items()):
        try:
          racer.turn(counts=number >= 2)
        except ChildProcessError as error:
          print(f'{name}: fails, left out: {error}')
          racers.pop(name)
  finally:
    for racer in racers.values():
      racer.close()
  return racers


def rows(
  workload: str, racers: dict[str, Racer], peaks: dict[str, float]
) -> list[dict[str, Any]]:
  """A JSON line per system."""
  ours = statistics.median(racers['fedavg_jax'].seconds)
  found = []
  for name, racer in racers.items():
    seconds = statistics.median(racer.seconds)
    told = racers['fedavg_jax'].told | racer.told
    row = {
      'workload': workload,
      'about': workloads.WORKLOADS[workload].about,
      'system': name,
      'seconds_per_round': seconds,
      'seconds': racer.seconds,
      'rounds_per_turn': racer.rounds,
      'ratio_to_ours': seconds / ours,
      'rounds_per_second': 1 / seconds,
      'clients_per_second': told['clients'] / seconds,
      'steps_per_second': told['client_steps'] / seconds,
      'examples_per_second': told['examples'] / seconds,
      'gflops': 1e-9 * told['flops_per_example'] * told['examples'] / seconds,
      'peak_mib': racer.peak_kib / 1024,
      **peaks,
      **racer.told,
      'note': NOTES.get(name.split(',')[0], ''),
      'date': time.strftime('%Y-%m-%d'),
      'command': ' '.join(['python -m experiments.benchmark', *sys.argv[1:]]),
    }
    found.append(row)
  return found


def show(found: list[dict[str, Any]]) -> None:
  """Prints one workload's table."""
  ours = found[0]
  print(f'\n{ours["workload"]}: {ours["about"]}')
  heads = ('s a round', 'min', 'max', 'ms a step', 'GFLOP/s', 'MiB', 'ratio')
  print(f'{"":38}' + ''.join(f'{head:>10}' for head in heads))
  for row in found:
    note = f'  {row["note"]}' if row['note'] else ''
    cells = (
      f'{row["seconds_per_round"]:.4g}',
      f'{min(row["seconds"]):.4g}',
      f'{max(row["seconds"]):.4g}',
      f'{1000 / row["steps_per_second"]:.3g}',
      f'{row["gflops"]:.3g}',
      f'{row["peak_mib"]:.0f}',
      f'{row["ratio_to_ours"]:.2f}',
    )
    line = ''.join(f'{cell:>10}' for cell in cells)
    print(f'{row["system"]:38}{line}{note}')
  print(
    f'  {ours["rounds_per_second"]:.4g} rounds,'
    f' {ours["clients_per_second"]:.4g} clients,'
    f' {ours["steps_per_second"]:.4g} client steps,'
    f' {ours["examples_per_second"]:.5g} examples a second; compiled in'
    f' {ours["compile_seconds"]:.1f} s\n'
    f'  {ours["lanes"]} lane(s) on {ours["devices"]} device(s),'
    f' {100 * ours["useful_share"]:.1f} % of their steps useful;'
    f' {ours["temporary_bytes"] / 2**20:.3g} MiB for the call,'
    f' {ours["plan_bytes"] / 2**20:.3g} for a plan\n'
    f'  {ours["gflops"]:.3g} GFLOP/s of {ours["peak_gflops_float32"]:.3g} that'
    ' a large matrix product reaches; a large copy'
    f' {ours["peak_gbytes"]:.3g} GB/s',
    flush=True,
  )


def show_scaling(found: list[dict[str, Any]], modes: dict[str, Any]) -> None:
  """Prints how well one workload's rounds are shared."""
  rows = {row['system']: row for row in found}
  print(f'{"":38}{"s a round":>12}{"on paper":>12}{"efficiency":>12}')
  for name, own in modes.items():
    one = rows.get('1 process' if 'processes' in own else '1 device')
    if name not in rows or one is None:
      continue
    row, number, times = rows[name], own['devices'], own['times']
    single = one['seconds_per_round']
    paper = single * times / number + row['reduce_seconds'] * (number > 1)
    row |= {
      'scaled': own,
      'paper_seconds': paper,
      'efficiency': single * times / number / row['seconds_per_round'],
    }
    print(
      f'{name:38}{row["seconds_per_round"]:>12.4g}{paper:>12.4g}'
      f'{row["efficiency"]:>12.2f}'
    )


def draw_cohorts(found: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Cost of a client and memory of a call against the size of the cohort."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
  for system in dict.fromkeys(row['system'] for row in found):
    mine = [row for row in found if row['system'] == system]
    if len(mine) == 1 < len({row['workload'] for row in found}):
      continue  # A way to run a single one of them.
    cohorts = [workloads.WORKLOADS[row['workload']].cohort for row in mine]
    cost = [1000 / row['clients_per_second'] for row in mine]
    left.plot(cohorts, cost, 'o-', label=system)
    if system == 'fedavg_jax':
      call = [row['temporary_bytes'] / 2**20 for row in mine]
      plans = [row['plan_bytes'] / 2**20 for row in mine]
      right.plot(cohorts, call, 'o-', label='the call, beside data and model')
      right.plot(cohorts, plans, 's--', label='the plan')
  left.set(xscale='log', xlabel='cohort', ylabel='ms a client')
  right.set(xscale='log', xlabel='cohort', ylabel='MiB')
  for axes in (left, right):
    axes.set_ylim(0, 1.7 * axes.get_ylim()[1])  # Room for the legend.
    axes.grid(alpha=0.3)
    axes.legend(loc='upper left', fontsize='small')
  figure.suptitle('2NN, 1,000 clients of 60 examples, E = 1, B = 10')
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def main() -> None:
  """Races every system on every workload; prints and appends the figures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--workloads', default=DEFAULT, help=f'names, or of {", ".join(GROUPS)}'
  )
  parser.add_argument('--peers', default='', help=','.join(PEER_MODES))
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument('--lanes', type=int, help='over the workload')
  parser.add_argument('--convolution', default='auto')
  parser.add_argument('--precision', default='float32')
  parser.add_argument('--cpu_devices', type=int, default=0)
  parser.add_argument('--devices', default='', help='numbers, such as 1,2,4')
  parser.add_argument('--processes', default='', help='numbers, such as 1,2')
  parser.add_argument('--profile', help='folder for a trace of our engine')
  parser.add_argument('--out', type=pathlib.Path, help='appends JSON lines')
  parser.add_argument('--picture', type=pathlib.Path, help='of the cohorts')
  args = parser.parse_args()
  names: list[str] = []
  for name in args.workloads.split(','):
    names += GROUPS.get(name, [name])
  peers = [peer for peer in args.peers.split(',') if peer]
  for kind, given, known in (
    ('--workloads', names, workloads.WORKLOADS),
    ('--peers', peers, PEER_MODES),
  ):
    for name in given:
      if name not in known:
        parser.error(f'{kind} {name}: must be one of {", ".join(known)}')
  numbers = {}
  for flag in ('devices', 'processes'):
    given = [part for part in getattr(args, flag).split(',') if part]
    if not all(part.isdigit() and int(part) for part in given):
      parser.error(f'--{flag} {getattr(args, flag)}: must be numbers above 0')
    numbers[flag] = sorted({*map(int, given)} | ({1} if given else set()))
  scales = scaled(**numbers)
  if args.turns < 1:
    parser.error(f'--turns {args.turns}: must be at least 1')
  options = {
    key: getattr(args, key)
    for key in ('lanes', 'convolution', 'precision', 'cpu_devices', 'profile')
    if getattr(args, key) is not None
  }
  best = Racer(our_command(names[0], options | {'peaks': True}))
  best.close()
  everything = []
  for name in names:
    modes = OWN_MODES.get(name, {}) if not scales else scales
    racers = race(name, peers, args.turns, options, modes)
    if 'fedavg_jax' not in racers:
      sys.exit(f'{name}: our own engine fails')
    found = rows(name, racers, best.told)
    show(found)
    if scales:
      show_scaling(found, scales)
    everything += found
    if args.out:
      with open(args.out, 'a', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in found)
  if args.picture:
    draw_cohorts(everything, args.picture)
