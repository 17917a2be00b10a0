"""The configs of the package can be listed, shown, copied, and found."""

import json

import pytest

from fedavg_jax.cli import package_configs
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import run_config


@pytest.fixture
def known(repository):
  return sorted(path.stem for path in (repository / 'configs').glob('*.py'))


def test_list(command, known):
  outcome = command('config', 'list')
  assert outcome == (0, '\n'.join(known) + '\n', '', False)
  assert 'quickstart' in known


def test_show(command, repository, known):
  for name in known:
    outcome = command('config', 'show', name)
    assert outcome.code == 0 and not outcome.err and not outcome.jax
    text = (repository / 'configs' / f'{name}.py').read_text()
    assert outcome.out.startswith(text[: text.index('import')])
    for option in run_config.names():
      assert f'\n  config.{option} = ' in outcome.out
  outcome = command('config', 'show', 'mnist_2nn:noniid')
  assert "config.partition = 'shards'\n" in outcome.out


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ([], ['error: config: must be', 'list, show NAME or copy NAME']),
    (['lst'], ['config lst', 'must be list, show']),
    (['list', 'all'], ["config list: unexpected argument 'all'"]),
    (['show'], ['config show: NAME is missing; expected one of cifar10']),
    (['show', ''], ["config ''", 'one of cifar10']),
    (['show', 'quikstart'], ['config quikstart', 'did you mean quickstart?']),
    (['show', 'mnist_2nn:id'], ['mnist_2nn:id', 'use :iid or :noniid']),
    (['show', 'quickstart:x'], ['quickstart:x', 'takes no argument']),
    (['show', 'mnist2nn:iid'], ['mnist2nn', 'did you mean mnist_2nn?']),
    (['show', '../configs/quickstart'], ['one of cifar10']),
    (['show', 'theirs.py'], ['config theirs.py', 'one of cifar10']),
    (['show', 'quickstart', 'x'], ["config show: unexpected argument 'x'"]),
    (['copy'], ['config copy: NAME is missing; expected one of']),
    (['copy', 'nonsense', 'a.py'], ['config nonsense', 'one of cifar10']),
    (['copy', 'quickstart', 'theirs.py'], ['theirs.py', 'exists already']),
    (['copy', 'quickstart', 'link.py'], ['link.py', 'exists already']),
    (
      ['copy', 'quickstart', 'no/a.py'],
      ['no/a.py', 'the folder no does not exist'],
    ),
    (['copy', 'quickstart', 'mine'], ['FILE mine', 'must end with .py']),
    (['copy', 'quickstart', ''], ["FILE ''", 'must end with .py']),
    (['copy', 'quickstart', 'a:b.py'], ['FILE a:b.py', 'contain no :']),
    (['copy', 'quickstart', 'a.py', 'b.py'], ["unexpected argument 'b.py'"]),
    (['list', '--workdir=x'], ["'workdir'"]),
  ],
)
def test_bad_arguments_of_config(command, tmp_path, args, words):
  (tmp_path / 'theirs.py').write_text('theirs')
  (tmp_path / 'link.py').symlink_to('nowhere.py')
  command('config', *args).assert_one_line(*words)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['link.py', 'theirs.py']
  assert (tmp_path / 'theirs.py').read_text() == 'theirs'


def test_a_copy_is_named_as_the_config(command, repository, tmp_path):
  outcome = command('config', 'copy', 'mnist_cnn')
  assert outcome.code == 0 and 'fedavg-jax run mnist_cnn.py' in outcome.out
  (copy,) = tmp_path.iterdir()
  original = repository / 'configs' / 'mnist_cnn.py'
  assert copy.name == original.name
  assert copy.read_bytes() == original.read_bytes()


@pytest.mark.slow
def test_a_copy_runs(command, tmp_path):
  outcome = command('config', 'copy', 'quickstart', 'mine.py')
  line = 'Copied to mine.py; run it with: fedavg-jax run mine.py\n'
  assert outcome == (0, line, '', False)
  copy = tmp_path / 'mine.py'
  text = copy.read_text().replace('config.rounds = 200', 'config.rounds = 1')
  copy.write_text(text)
  outcome = command('run', 'mine.py', '--workdir=run')
  assert outcome.code == 0, outcome.err
  assert 'finished after 1 rounds' in outcome.out
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['config']['rounds'] == 1


def test_find(repository):
  configs = repository / 'configs'
  for source, path in (
    ('quickstart', f'{configs}/quickstart.py'),
    ('mnist_2nn:noniid', f'{configs}/mnist_2nn.py:noniid'),
    ('mine.py', 'mine.py'),
    ('mine.py:fast', 'mine.py:fast'),
    ('folder/mine', 'folder/mine'),
  ):
    assert package_configs.find(source) == path
  with pytest.raises(InputError, match='config mine: must be the path'):
    package_configs.find('mine')
