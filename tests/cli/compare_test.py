"""Runs are compared in tables and pictures, by the endings of their names."""

import pytest

from fedavg_jax.runs import compare
from fedavg_jax.runs import plots
from tests.testing.run_folders import write_run


@pytest.fixture
def folders(tmp_path):
  for seed, last in enumerate((0.6, 0.7)):
    write_run(tmp_path / f'plain_{seed}', [0.1, 0.5, last], seed=seed)
    write_run(
      tmp_path / f'other_{seed}',
      [0.1, 0.2, last + 0.1],
      seed=seed,
      algorithm='fedexp',
    )
  return ['plain_0', 'plain_1', 'other_0', 'other_1']


def test_a_picture_of_its_own_is_replaced(command, folders, tmp_path):
  path, sizes = tmp_path / 'curves.pdf', []
  for chosen in (folders[:1], folders):
    outcome = command('compare', *chosen, '--picture=curves.pdf')
    assert outcome.code == 0, outcome.err
    assert 'Saved curves.pdf' in outcome.out and not outcome.jax
    sizes.append(len(path.read_bytes()))
  assert sizes[0] != sizes[1]
  path.write_bytes(b'%PDF of somebody else')
  command('compare', *folders, '--picture=curves.pdf').assert_one_line(
    'curves.pdf: exists already'
  )
  assert path.read_bytes() == b'%PDF of somebody else'
  for picture in ('curves.gif', 'curves'):
    command('compare', *folders, f'--picture={picture}').assert_one_line(
      f'--picture {picture}: must end with .png, .pdf or .svg'
    )


@pytest.mark.parametrize(
  ('suffix', 'start'),
  [('.pdf', b'%PDF'), ('.svg', b'<?xml'), ('.png', b'\x89PNG')],
)
def test_every_format_is_recognized(folders, tmp_path, suffix, start):
  path = tmp_path / f'a{suffix}'
  assert not plots.is_own(path)
  run = compare.read_run(tmp_path / folders[0])
  compare.draw(path, {'a': [run]}, 0.5)
  assert path.read_bytes().startswith(start) and plots.is_own(path)
  path.write_bytes(start)
  assert not plots.is_own(path) and suffix in plots.SUFFIXES


def test_tables(command, folders, tmp_path):
  outcome = command('compare', *folders, '--target=0.5', '--table=a.tex')
  assert outcome.code == 0, outcome.err
  for name in folders:
    assert f'| {name} | 2 |' in outcome.out
  line = (
    '| other_0 and 1 more | 2 | 0.7500 ± 0.0707 | 0.7500 ± 0.0707 | 2 ± 0 |'
  )
  assert f'{line} 400 B ± 0 B | 4 ± 0 | 2 | +0.1000 ±' in outcome.out
  assert r'other\_0 and 1 more & 2 &' in (tmp_path / 'a.tex').read_text()
  alone = command('compare', folders[0], '--table=a.csv')
  assert alone.code == 0 and ' ± ' not in alone.out
  assert (tmp_path / 'a.csv').read_text().startswith('setting,seeds,')
  for table, words in (
    ('a.tex', 'exists already'),
    ('a.txt', 'must end with .csv, .md or .tex'),
    ('', 'is empty'),
    ('no/a.md', 'the folder no does not exist'),
  ):
    command('compare', *folders, f'--table={table}').assert_one_line(
      '--table', words
    )
