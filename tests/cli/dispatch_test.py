"""The first word chooses a command; errors name what is missing."""

import importlib
import re
import subprocess
import sys

import pytest

import fedavg_jax
from fedavg_jax.cli import dispatch
from fedavg_jax.runs import run_config
from tests.testing import PROGRAMS

FLAGS = {
  'run': [
    *('config', 'workdir', 'resume', 'distributed', 'coordinator'),
    *('num_processes', 'process_id', 'connect_seconds', 'heartbeat_seconds'),
  ],
  'sweep': ['config', 'grid', 'seeds', 'workdir', 'choose_on'],
  'compare': ['target', 'picture', 'table'],
  'partition': ['config', 'picture'],
  'convert': ['source', 'path', 'out', 'verify', 'shard_mib'],
  'bench': ['workloads', 'turns'],
  'config': [],
}
ENDED = ['sweep', 'compare', 'partition', 'convert']


@pytest.mark.parametrize('args', [(), ('--help',), ('-h',), ('help',)])
def test_usage(command, args):
  outcome = command(*args)
  assert outcome[:3:2] == (0, '') and not outcome.jax
  assert outcome.out.startswith('usage: fedavg-jax COMMAND')
  words = [line.split()[0] for line in outcome.out.split('\n\n')[1].split('\n')]
  assert words == list(FLAGS) == list(dispatch.COMMANDS)


def test_version(command):
  outcome = command('--version')
  assert outcome.out == f'fedavg_jax {fedavg_jax.__version__}\n'
  assert outcome.code == 0 and not outcome.jax


@pytest.mark.parametrize('name', FLAGS)
def test_help_of_a_command(command, name):
  outcome = command(name, '--help')
  assert outcome[:3:2] == (0, '') and not outcome.jax
  assert f'fedavg-jax {name}' in outcome.out.split('\n\n')[1]
  assert re.findall(r'^  --([a-z_]+)$', outcome.out, re.M) == FLAGS[name]
  listed = outcome.out.partition('Options of the config')[2]
  options = re.findall(r'^  --config\.(\S+?)=', listed, re.M)
  assert options == (run_config.names() if 'config' in FLAGS[name] else [])
  assert command('help', name) == command(name, '-h') == outcome


def test_help_of_main_is_that_of_run(command):
  outcome = command('--help', module='fedavg_jax.main')
  assert outcome == command('run', '--help')


def test_help_as_a_value_is_not_help(command):
  command('run', '--config=no.py', '--workdir=-h').assert_one_line('no.py')
  command('compare', '--', '--help').assert_one_line('--help/config.json')


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['swep'], ['command swep', 'one of run, sweep', 'did you mean sweep?']),
    ([''], ["command ''", 'one of run, sweep, compare, partition']),
    (['help', 'nonsense'], ['command nonsense', 'one of run, sweep']),
    (['--config=x.py'], ['--config=x.py', 'must come before', 'run, sweep']),
    (['--', 'run'], ['--: a command must come before']),
  ],
)
def test_unknown_command(command, args, words):
  command(*args).assert_one_line(*words)


def test_no_guess_where_nothing_is_close(command):
  assert 'did you mean' not in command('nonsense').err


def test_config_as_the_value_of_another_flag(command, repository):
  config = repository / 'configs' / 'quickstart.py'
  outcome = command('partition', '--picture', 'config', f'--config={config}')
  outcome.assert_one_line('--picture config: must end with .png')


@pytest.mark.parametrize('name', ENDED)
def test_earlier_commands_name_their_successors(command, name):
  for args in ([], ['--help'], ['--config', 'configs/quickstart.py']):
    outcome = command(*args, module=f'fedavg_jax.{name}')
    outcome.assert_one_line(
      f'python -m fedavg_jax.{name} is now fedavg-jax {name}'
    )


@pytest.mark.parametrize('name', ENDED)
def test_earlier_commands_are_no_modules(name):
  with pytest.raises(
    ModuleNotFoundError, match=r'see fedavg_jax\.(data|runs)\.\w+'
  ):
    importlib.import_module(f'fedavg_jax.{name}')
  assert fedavg_jax.partition.__name__ == 'fedavg_jax.data.partition'


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ([], ['--config is missing', 'mnist_2nn', 'quickstart']),
    (['--config'], ['--config is missing']),
    (['--config=', '--config.rounds=2'], ['--config is missing']),
    (
      ['nonsense'],
      ['config nonsense', 'path of a file', 'cifar10, default'],
    ),
    (['quikstart'], ['config quikstart', 'did you mean quickstart?']),
    ([''], ["config ''", 'one of cifar10']),
    (['quickstart:fast'], ['quickstart.py:fast', 'takes no argument']),
    (['mnist_2nn:nid'], ['mnist_2nn.py:nid', 'use :iid or :noniid']),
    (['mnist_2nn:'], ['config mnist_2nn:', 'needs an argument after the :']),
    (['no.py'], ['--config no.py', 'no such file']),
    (['no.py', '--config.rounds=2'], ['--config no.py', 'no such file']),
    (['./quickstart'], ['--config ./quickstart', 'the first word quickstart']),
    (['--config=quickstart'], ['no such file', 'the first word quickstart']),
    (['quickstart', '--config=x.py'], ['--config=x.py', 'already, quickstart']),
    (['quickstart', 'fast'], ['fast: not a flag']),
    (['--workdir=x', 'quickstart'], ['quickstart', 'come before all flags']),
    (
      ['--config.rounds=2', 'quickstart'],
      ['--config.rounds', 'come before its'],
    ),
    (['quickstart', '--config.round=2'], ["'round'", '"rounds"']),
    (['quickstart', '--config.rounds=x'], ['--config.rounds=x']),
    (['quickstart', '--flagfile=no'], ["No such file or directory: 'no'"]),
    (['quickstart', '--process_id=1'], ['--process_id 1', '--distributed']),
  ],
)
@pytest.mark.parametrize('name', ['run', 'sweep', 'partition'])
def test_what_a_config_lacks_is_named(command, tmp_path, name, args, words):
  if name != 'run' and '--process_id=1' in args:
    words = ['process_id']  # This flag is unknown there.
  if name == 'partition' and '--workdir=x' in args:
    words = ['workdir']
  outcome = command(name, *args)
  outcome.assert_one_line(*words)
  assert not outcome.jax and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['compare'], ['folders of the runs']),
    (['compare', 'no'], ['no/config.json', 'cannot be read']),
    (['compare', 'a', 'a'], ['a: duplicate value']),
    (['compare', 'a', '--target=nan'], ['--target nan', 'finite']),
    (['compare', 'a', '--picture=a.gif'], ['--picture a.gif', '.png']),
    (['compare', 'a', '--flagfile=no'], ["No such file or directory: 'no'"]),
    (['compare', 'a', '--config=x.py'], ["'config'"]),
    (['convert'], ['--source is missing']),
    (['convert', '--source=csv'], ['--source=csv', 'leaf|shakespeare']),
    (['convert', '--source=leaf'], ['--path is missing']),
    (['convert', '--source=leaf', '--path=no', '--out=o'], ['--path no']),
    (['convert', '--verify='], ['--verify is empty: must be the folder']),
    (['convert', '--shard_mib=0'], ['--shard_mib=0', 'positive']),
    (['convert', 'leaf'], ['leaf: not a flag']),
    (['bench', '2nn'], ['2nn: not a flag']),
    (['bench', '--turns=0'], ['--turns=0', 'positive']),
    (['bench', '--workloads='], ["--workloads ''", 'one of 2nn, lr, cnn']),
    (['bench', '--workloads=lr,cn'], ['--workloads cn', 'did you mean cnn?']),
    (['bench', '--workloads=lr,lr'], ['lr,lr: lr is given twice']),
    (['sweep', 'quickstart', '--grid=x'], ['--grid x', 'key=value']),
    (
      ['partition', 'quickstart', '--picture=no/a.png'],
      ['folder no does not exist'],
    ),
  ],
)
def test_flags_that_are_missing_are_named(command, tmp_path, args, words):
  outcome = command(*args)
  outcome.assert_one_line(*words)
  assert not outcome.jax and not list(tmp_path.iterdir())


def test_the_argument_of_a_config_reaches_it(command):
  """Shards for so many clients are refused; mnist_2nn:iid has no shards."""
  outcome = command(
    *('partition', 'mnist_2nn:noniid', '--config.dataset=digits'),
    '--config.num_clients=1000',
  )
  outcome.assert_one_line('num_clients = 1000', 'shards_per_client')


def test_a_file_of_flags_is_read(command, tmp_path):
  (tmp_path / 'flags').write_text('--config.client.epoch=1\n')
  outcome = command('run', 'quickstart', '--flagfile=flags')
  outcome.assert_one_line("'epoch'", '"epochs"')


def test_interrupted_before_the_command_starts(command, tmp_path):
  (tmp_path / 'mine.py').write_text(
    'def get_config():\n  raise KeyboardInterrupt  # As Ctrl-C does.\n'
  )
  for module, args in (
    ('fedavg_jax', ['run', 'mine.py']),
    ('fedavg_jax', ['partition', '--config=mine.py']),
    ('fedavg_jax.main', ['--config=mine.py']),
  ):
    outcome = command(*args, module=module)
    outcome.assert_one_line('error: interrupted', code=130)


@pytest.mark.parametrize(
  'args',
  [
    *(['--version'], ['--help'], ['run', '--help'], ['config', 'list']),
    ['config', 'show', 'quickstart'],
  ],
)
def test_stdout_that_is_closed_early(command, args):
  """A pipe to `true` does so."""
  assert command(*args, reader=False) == (0, '', '', False)


def test_a_run_prints_its_name_before_it_imports_jax(repository, tmp_path):
  config = repository / 'configs' / 'quickstart.py'
  process = subprocess.run(
    [sys.executable, PROGRAMS / 'stop_at_jax.py', 'run', '--config', config],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=60,
  )
  name, stop = process.stdout.splitlines()
  assert name == '2nn on digits, shards 2: K=50 C=0.5 E=5 B=10 lr=0.1'
  assert stop == 'imports JAX' and not process.stderr
