"""Every bad input: one line, an exit code, and the file system as it was."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

from bad_inputs import CASES
import pytest

# A process that has imported the program once and then is it, again and again:
# every command is a fork with its own flags, files and exit code.
SERVER = """
import json, os, sys, warnings
from absl import app
from fedavg_jax.cli import command, run
from fedavg_jax.runs import train  # Once, not in every fork.
run.define_flags()
warnings.simplefilter('ignore')
for line in sys.stdin:
  case = json.loads(line)
  child = os.fork()
  if not child:
    os.chdir(case['folder'])
    for number, name in ((0, os.devnull), (1, case['out']), (2, case['err'])):
      mode = os.O_RDWR | os.O_CREAT
      os.dup2(os.open(name, mode, 0o600), number)
    code = 1
    try:
      sys.argv = ['fedavg_jax.main', *case['args']]
      parse = lambda argv: command.parse_flags(argv, run)
      app.run(run.main, flags_parser=parse)
    except SystemExit as error:
      code = error.code or 0
      if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    except BaseException:
      import traceback
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  home = tmp_path_factory.mktemp('home')
  process = subprocess.Popen(
    [sys.executable, '-c', SERVER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=os.environ | {'TFDS_DATA_DIR': str(home / 'tfds')},
    text=True,
    bufsize=1,
  )

  def command(folder, args):
    out, err = home / 'out', home / 'err'
    for path in (out, err):
      path.write_text('')
    case = {'folder': str(folder), 'args': args}
    case |= {'out': str(out), 'err': str(err)}
    process.stdin.write(json.dumps(case) + '\n')
    return int(process.stdout.readline()), out.read_text(), err.read_text()

  yield command
  process.stdin.close()
  assert process.wait(timeout=60) == 0
  process.stdout.close()


@pytest.fixture(scope='module')
def places(server, tmp_path_factory, repository_path):
  """Folders to copy: an interrupted run, and files in the shapes of MNIST's."""
  from datasets_test import make_files

  folder = tmp_path_factory.mktemp('places')
  (folder / 'data').mkdir()
  make_files(folder / 'data', 'mnist')
  args = [
    f'--config={repository_path / "configs" / "quickstart.py"}',
    '--config.rounds=4',
    '--config.checkpoint.rounds=2',
    '--workdir=run',
  ]
  assert server(folder, args)[0] == 0
  shutil.rmtree(folder / 'run' / 'checkpoints' / '4')
  (folder / 'run' / 'summary.json').unlink()
  return folder


@pytest.fixture(scope='module')
def repository_path():
  return pathlib.Path(__file__).parent.parent


def snapshot(folder):
  """Every name below a folder, and what is in it."""
  found = {}
  for path in sorted(folder.rglob('*')):
    content = None
    if path.is_symlink():
      content = os.readlink(path)
    elif path.is_file():
      content = hashlib.sha256(path.read_bytes()).hexdigest()
    found[str(path.relative_to(folder))] = content
  return found


def test_there_are_enough():
  assert len(CASES) >= 130
  assert all(case.words and case.code for case in CASES.values())


@pytest.mark.parametrize('name', CASES)
def test_one_line_and_nothing_changed(
  server, places, repository_path, tmp_path, name
):
  case = CASES[name]
  configs = repository_path / 'configs'
  if name.startswith('run: '):
    shutil.copytree(places / 'run', tmp_path / 'run')
  if name.startswith('data: '):
    shutil.copytree(places / 'data', tmp_path / 'data', copy_function=os.link)
  case.prepare(tmp_path)
  args = [arg.replace('{configs}', str(configs)) for arg in case.args]
  defaults = [f'--config={configs / "quickstart.py"}', '--workdir=new']
  if name.startswith('run: '):
    defaults += ['--config.rounds=4', '--config.checkpoint.rounds=2']
  given = {arg.split('=')[0] for arg in args}
  args = [d for d in defaults if d.split('=')[0] not in given] + args
  before = snapshot(tmp_path)
  code, out, err = server(tmp_path, args)
  assert 'Traceback' not in out + err
  assert code == case.code, err
  (line,) = err.splitlines()
  assert line.startswith('error: ') and len(line) < 1200
  for word in case.words:
    assert word in line
  assert snapshot(tmp_path) == before
