"""Measures rounds per second on this machine, of this engine and of others.

Every system runs in a separate process. They alternate in turns of about a
second, with a fixed number of rounds per turn, so that a drift of the machine's
speed affects all of them alike; the first turns, which compile and warm up, are
not counted. Workloads are defined in `workloads.py`, peers (the baselines) in
`peers/`.

python -m experiments.benchmark
python -m experiments.benchmark --peers torch,fedjax,flower,pfl --out FILE
python -m experiments.benchmark --workloads writers,roles,roles_8
python -m experiments.benchmark --workloads cohorts --picture cohorts.png
python -m experiments.benchmark --workloads cnn --profile DIR
python -m experiments.benchmark --devices 1,2 --processes 1,2
python -m experiments.benchmark --peers reference,self@4d525b6 --starts 9

With --devices or --processes the engine is measured on several numbers of them,
with a fixed cohort (strong scaling) and with one that grows with them (weak
scaling), next to the ideal time: that of one device, divided by their number,
plus the time of summing the model's weights. On a CPU devices are virtual and
share its cores.

The peer `self@COMMIT` is the engine of another commit, `reference` the
reference round (`plain.py`). With --starts the systems of this repository are
also started several times, up to the result of their first round (`starts.py`).
"""

import argparse
from collections.abc import Mapping
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
import types
from typing import Any
import venv

from experiments import checkout
from experiments.benchmark import show
from experiments.benchmark import starts
from experiments.benchmark import workloads
from experiments.benchmark.racer import Racer
from experiments.benchmark.racer import System
from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
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
# Name -> arguments of the peer's worker: the ways that its users would try on a
# CPU with this number of cores. Peers run on the CPU.
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
# Printed in the row of a peer whose round differs from the engine's.
NOTES = {
  'fedjax': 'tops up a last short batch with examples drawn again',
  'pfl-research': 'mean not weighted by examples, users drawn with replacement,'
  ' examples not shuffled',
}
# The engine with other options, for comparison.
OWN_MODES = {
  'roles': {'fedavg_jax, a padded lane per client': {'lanes': 'cohort'}},
  'run_2nn': {'fedavg_jax, device alone': {'device_alone': True}},
  'run_cnn': {'fedavg_jax, device alone': {'device_alone': True}},
  'cohort_1000': {'fedavg_jax, device alone': {'device_alone': True}},
}
# Baselines from this repository: the reference round, other commits.
OWN_PEERS = ('reference', 'self@COMMIT')
_SELF = 'self@'
# The worker's module; an older commit has the second one.
WORKERS = ('experiments.benchmark.worker', 'experiments.worker')


def our_system(
  workload: str, options: dict[str, Any], tree: checkout.Tree | None = None
) -> System:
  """Returns the engine as a system: the working tree's, or another tree's.

  Raises:
    InputError: the tree has no worker.
  """
  worker = (tree or checkout.here()).first_module(*WORKERS)
  content = json.dumps(workloads.WORKLOADS[workload].as_dict())
  encoded = json.dumps(options)
  return System(
    [sys.executable, '-m', worker, content, encoded],
    tree,
    [sys.executable, '-P', starts.FIRST_ROUND, content, encoded, worker],
  )


def peer_command(
  peer: str,
  workload: str,
  mode: tuple[str, ...],
  *,
  cuda: bool = False,
  python: str | None = None,
) -> list[Any]:
  """Returns the command of a peer's worker; installs the peer if needed.

  Args:
    peer: the name of the peer.
    workload: the name of the workload.
    mode: the arguments of the peer's worker.
    cuda: whether to install the peer for NVIDIA's GPUs.
    python: an interpreter that has the peer's packages; None installs them.
  """
  content = json.dumps(workloads.WORKLOADS[workload].as_dict())
  interpreter = python or install_peer(peer, cuda=cuda)
  return [interpreter, PEERS / peer / 'worker.py', content, *mode]


def install_peer(peer: str, *, cuda: bool = False) -> pathlib.Path:
  """Installs a peer in build/peers unless it is there; returns its Python."""
  requirements = PEERS / peer / 'requirements.txt'
  home = pathlib.Path('build') / 'peers' / peer
  if cuda and (own := PEERS / peer / 'requirements-cuda.txt').exists():
    requirements, home = own, home.with_name(f'{peer}-cuda')
  python = home / 'bin' / 'python'
  installed = home / 'installed.txt'  # Written after a complete installation.
  wanted = requirements.read_text()
  if not installed.exists() or installed.read_text() != wanted:
    venv.create(home, with_pip=True, clear=True)
    install = [python, '-m', 'pip', 'install', '-q', '-r', requirements]
    subprocess.run(install, check=True)
    installed.write_text(wanted)
  return python


def scaled(devices: list[int], processes: list[int]) -> dict[str, Any]:
  """Returns the engine's modes for numbers of devices and of processes.

  Args:
    devices: numbers of devices in one process.
    processes: numbers of processes with one device each.

  Returns:
    Name -> options of the engine.
  """
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


def systems_of(
  workload: str,
  peers: list[str],
  options: dict[str, Any],
  modes: dict[str, Any],
  trees: Mapping[str, checkout.Tree],
) -> dict[str, System]:
  """Returns the engine, its other modes and the peers; the engine comes first.

  Args:
    workload: the name of the workload.
    peers: names of peers, including those of `trees`.
    options: options of the engine.
    modes: name -> further options of the engine.
    trees: name -> the tree of another commit of this repository.
  """
  systems = {'fedavg_jax': our_system(workload, options)}
  unwatched = options | {'profile': ''}
  for name, own in modes.items():
    systems[name] = our_system(workload, unwatched | own)
  for peer in peers:
    if peer in trees:
      systems[peer] = our_system(workload, unwatched, trees[peer])
    elif peer == 'reference':
      systems[peer] = our_system(workload, unwatched | {'reference': True})
    else:
      for name, mode in PEER_MODES[peer].items():
        try:
          systems[name] = System(peer_command(peer, workload, mode))
        except (OSError, subprocess.CalledProcessError) as error:
          print(f'{name}: cannot be installed, left out: {error}')
  return systems


def race(
  workload: str,
  peers: list[str],
  turns: int,
  options: dict[str, Any],
  modes: dict[str, Any],
  trees: Mapping[str, checkout.Tree] = types.MappingProxyType({}),
) -> dict[str, Racer]:
  """Lets the engine, its other modes and the peers take turns.

  Returns:
    Name -> the system with its times, without those that failed.
  """
  systems = systems_of(workload, peers, options, modes, trees)
  racers: dict[str, Racer] = {}
  try:
    for name, system in systems.items():
      try:
        racers[name] = Racer(system.command, system.tree)
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
  """Returns one row per system, a JSON line of the output."""
  ours = statistics.median(racers['fedavg_jax'].seconds)
  found = []
  for name, racer in racers.items():
    seconds = statistics.median(racer.seconds)
    facts = racers['fedavg_jax'].facts | racer.facts
    row = {
      'workload': workload,
      'about': workloads.WORKLOADS[workload].about,
      'system': name,
      'seconds_per_round': seconds,
      'seconds': racer.seconds,
      'rounds_per_turn': racer.rounds,
      'ratio_to_ours': seconds / ours,
      'rounds_per_second': 1 / seconds,
      'clients_per_second': facts['clients'] / seconds,
      'steps_per_second': facts['client_steps'] / seconds,
      'examples_per_second': facts['examples'] / seconds,
      'gflops': 1e-9 * facts['flops_per_example'] * facts['examples'] / seconds,
      'peak_mib': racer.peak_kib / 1024,
      **({'commit': racer.commit} if racer.commit else {}),
      **peaks,
      **racer.facts,
      'note': NOTES.get(name.split(',')[0], ''),
      'date': time.strftime('%Y-%m-%d'),
      'command': ' '.join(['python -m experiments.benchmark', *sys.argv[1:]]),
    }
    found.append(row)
  return found


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--workloads',
    default=DEFAULT,
    help=f'names of workloads, or groups: {", ".join(GROUPS)}',
  )
  parser.add_argument(
    '--peers', default='', help=','.join([*PEER_MODES, *OWN_PEERS])
  )
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument(
    '--starts',
    type=int,
    default=0,
    help='timed starts of each system of this repository',
  )
  parser.add_argument(
    '--lanes', type=int, help="number of lanes, instead of the workload's"
  )
  parser.add_argument('--convolution', default='auto')
  parser.add_argument('--precision', default='float32')
  parser.add_argument('--cpu_devices', type=int, default=0)
  parser.add_argument('--devices', default='', help='numbers, such as 1,2,4')
  parser.add_argument('--processes', default='', help='numbers, such as 1,2')
  parser.add_argument('--profile', help='folder for a trace of the engine')
  parser.add_argument('--out', type=pathlib.Path, help='appends JSON lines')
  parser.add_argument(
    '--picture', type=pathlib.Path, help='file for a plot over cohort sizes'
  )
  return parser


def _names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
  """Checks the arguments. Returns the names of the workloads and the peers."""
  names: list[str] = []
  for name in args.workloads.split(','):
    names += GROUPS.get(name, [name])
  peers = [peer for peer in args.peers.split(',') if peer]
  for kind, given, known in (
    ('--workloads', names, workloads.WORKLOADS),
    ('--peers', peers, [*PEER_MODES, *OWN_PEERS]),
  ):
    for name in given:
      commit = kind == '--peers' and name.startswith(_SELF)
      if name not in known and not commit:
        parser.error(f'{kind} {name}: must be one of {", ".join(known)}')
  for flag, least in (('turns', 1), ('starts', 0)):
    if getattr(args, flag) < least:
      parser.error(f'--{flag} {getattr(args, flag)}: must be at least {least}')
  return names, peers


def _scales(
  parser: argparse.ArgumentParser, args: argparse.Namespace
) -> dict[str, Any]:
  """Returns the modes of --devices and --processes."""
  numbers = {}
  for flag in ('devices', 'processes'):
    given = [part for part in getattr(args, flag).split(',') if part]
    if not all(part.isdigit() and int(part) for part in given):
      parser.error(f'--{flag} {getattr(args, flag)}: must be numbers above 0')
    numbers[flag] = sorted({*map(int, given)} | ({1} if given else set()))
  return scaled(**numbers)


def _check_out(
  peers: list[str], stack: contextlib.ExitStack
) -> tuple[list[str], dict[str, checkout.Tree]]:
  """Checks the commits among the peers out into temporary folders.

  Args:
    peers: the names of --peers.
    stack: the context that removes the folders when it is closed.

  Returns:
    The peers without duplicates, commits as self@ with their short hash; and
    their trees.

  Raises:
    InputError: a commit does not exist, or has no worker.
  """
  trees: dict[str, checkout.Tree] = {}
  named = []
  for peer in peers:
    if peer.startswith(_SELF):
      tree = stack.enter_context(checkout.checked_out(peer[len(_SELF) :]))
      tree.first_module(*WORKERS)
      peer = f'{_SELF}{tree.name}'
      trees[peer] = tree
    named.append(peer)
  return list(dict.fromkeys(named)), trees


def main() -> None:
  """Races every system on every workload; prints and appends the results."""
  parser = _parser()
  args = parser.parse_args()
  names, peers = _names(parser, args)
  scales = _scales(parser, args)
  options = {
    key: getattr(args, key)
    for key in ('lanes', 'convolution', 'precision', 'cpu_devices', 'profile')
    if getattr(args, key) is not None
  }
  with contextlib.ExitStack() as stack:
    try:
      peers, trees = _check_out(peers, stack)
    except InputError as error:
      sys.exit(command.fail(f'--peers {args.peers}: {error}'))
    _race_all(args, names, peers, options, scales, trees)


def _race_all(
  args: argparse.Namespace,
  names: list[str],
  peers: list[str],
  options: dict[str, Any],
  scales: dict[str, Any],
  trees: Mapping[str, checkout.Tree],
) -> None:
  """Races on one workload after another."""
  best = Racer(our_system(names[0], options | {'peaks': True}).command)
  best.close()
  ours = [peer for peer in peers if peer not in PEER_MODES]
  everything = []
  for name in names:
    modes = OWN_MODES.get(name, {}) if not scales else scales
    started = starts.measure(
      systems_of(name, ours, options, {}, trees) if args.starts else {},
      args.starts,
    )
    racers = race(name, peers, args.turns, options, modes, trees)
    if 'fedavg_jax' not in racers:
      sys.exit(f'{name}: the engine itself fails')
    found = rows(name, racers, best.facts)
    starts.add(found, started)
    show.table(found)
    if args.starts:
      show.starts(found)
    if scales:
      show.scaling(found, scales)
    everything += found
    if args.out:
      with open(args.out, 'a', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in found)
  if args.picture:
    show.cohorts(everything, args.picture)
