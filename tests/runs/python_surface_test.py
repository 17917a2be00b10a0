"""The Python lines of the docs give the numbers of the command, to the bit."""

import re

import pytest

from fedavg_jax.runs import train
from tests.testing.run_folders import lines
from tests.testing.run_folders import load

# Orbax and what it uses warn about their own future.
pytestmark = pytest.mark.filterwarnings('default')


@pytest.mark.slow
def test_the_lines_of_the_docs_are_the_command(repository, tmp_path):
  page = (repository / 'docs' / 'algorithms.md').read_text()
  (block,) = [
    block
    for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    if 'fa.partition.shards' in block
  ]
  assert 'rounds=200' in block and 'use_cpu_devices(0)' in block
  # The tests have devices of their own.
  block = re.sub('.*use_cpu_devices.*\n', '', block)
  found = {}
  exec(block.replace('rounds=200', 'rounds=4'), found)  # pylint: disable=W0122
  history = found['history']
  train.train(
    load(repository, 'quickstart', rounds=4, cpu_devices=2), tmp_path / 'run'
  )
  records = lines(tmp_path / 'run')
  assert [r['round'] for r in records] == history['round'].tolist()
  for name in ('train_loss', 'test_loss', 'test_accuracy', 'examples'):
    got = history[name][1:].tolist()
    assert [r[name] for r in records[1:]] == got, name
