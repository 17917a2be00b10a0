"""Statistics over seeds equal NumPy's; tables have them in three formats."""

import csv
import io

import numpy as np
import pytest

from fedavg_jax.runs import results_table
from fedavg_jax.runs import seed_statistics
from fedavg_jax.runs.compare import Run
from fedavg_jax.runs.targets import Measure

# Accuracies of rounds 0, 1, ... by seed.
PLAIN = {0: [0.1, 0.5, 0.7], 1: [0.2, 0.4, 0.9], 2: [0.1, 0.8, 0.75]}
OTHER = {1: [0.1, 0.9, 0.8], 2: [0.0, 0.1, 0.3], 5: [0.1, 0.95, 0.9]}


def run(seed, accuracies, status='finished'):
  records = [
    {
      **{'round': i, 'seconds': 1.0, 'test_accuracy': value},
      **({'bytes_down': 10, 'bytes_up': 5 + seed} if i else {}),
    }
    for i, value in enumerate(accuracies)
  ]
  config = {'seed': seed}
  return Run(f'{seed}', config, {}, records, status, final=accuracies[-1])


@pytest.fixture
def groups():
  return {
    'mu_0': [run(*item) for item in PLAIN.items()],
    'mu_1': [run(*item) for item in OTHER.items()],
    'one': [run(2, [0.1, 0.2])],
    'bad': [run(0, [0.1, 0.6]), run(1, [0.1, 0.2], 'diverged')],
  }


def moments(values):
  values = np.array(values)
  return pytest.approx((values.mean(), values.std(ddof=1), len(values)))


def test_means_and_standard_deviations(groups):
  plain, other, one, bad = seed_statistics.settings(groups, 0.5)
  assert (plain.seeds, plain.reached, plain.diverged) == (3, 3, 0)
  assert plain.moments.final == moments([0.7, 0.9, 0.75])
  assert plain.moments.best == moments([0.7, 0.9, 0.8])
  assert plain.moments.rounds == moments([1, 2, 1])
  assert plain.moments.bytes == moments([15, 2 * 16, 17])
  assert plain.moments.seconds is None  # Without a clock.
  # One of three has not reached the target: a mean of the others would flatter.
  assert other.reached == 2 and other.moments.rounds is None
  assert other.moments.final == moments([0.8, 0.3, 0.9])
  assert one.moments.final == (0.2, None, 1)
  assert bad.diverged == 1 and bad.moments.final is None
  assert bad.moments.best is None  # Of one that diverged, it flatters too.


def test_differences_are_those_of_equal_seeds(groups):
  plain, other, one, bad = seed_statistics.settings(groups, 0.5)
  assert set(plain.differences) == {None}
  assert other.differences.final == moments([0.8 - 0.9, 0.3 - 0.75])
  assert other.differences.best == moments([0.9 - 0.9, 0.3 - 0.8])
  # Both have run the seeds 1 and 2, and one did not reach the target in 2.
  assert other.differences.rounds is None
  assert one.differences.final == (pytest.approx(0.2 - 0.75), None, 1)
  # Both have run the seeds 0 and 1, and one diverged in 1.
  assert bad.differences.final is None and bad.differences.best is None
  no_seed_in_common = {'a': groups['one'], 'b': [run(3, [0.5])]}
  _, last = seed_statistics.settings(no_seed_in_common, 0.0)
  assert set(last.differences) == {None}


def test_models_of_different_rounds_are_not_compared():
  def stopped(seed, accuracies):
    return run(seed, accuracies, 'target reached')

  groups = {
    'slow': [stopped(0, [0.1, 0.2, 0.51]), stopped(1, [0.1, 0.2, 0.3, 0.52])],
    'fast': [stopped(0, [0.1, 0.6]), stopped(1, [0.1, 0.3, 0.7])],
  }
  slow, fast = seed_statistics.settings(groups, 0.5)
  assert (slow.stopped, fast.stopped) == (2, 2)
  for row in (slow, fast):
    assert row.moments[:2] == row.differences[:2] == (None, None)
  assert slow.moments.rounds == moments([2, 3])
  assert fast.differences.rounds == moments([1 - 2, 2 - 3])
  page = results_table.to_markdown([slow, fast], 0.5, Measure())
  head, _, _, line, *_ = page.splitlines()
  assert 'final' not in head and 'best' not in head
  assert '| difference of rounds |' in head and '| −1 ± 0 (n = 2) |' in line
  assert 'ended when they reached their target' in page
  # One such run is enough, in any setting.
  groups = {'all': [run(0, [0.1, 0.6, 0.7])], 'fast': groups['fast'][:1]}
  rows = seed_statistics.settings(groups, 0.5)
  assert [row.moments.final for row in rows] == [None, None]


def test_the_csv_has_every_number(groups):
  rows = seed_statistics.settings(groups, 0.5)
  text = results_table.to_csv(rows, 0.5, Measure(), 'mu_1')
  lines = list(csv.DictReader(io.StringIO(text)))
  assert [line['setting'] for line in lines] == [*groups]
  assert [line['chosen'] for line in lines] == ['0', '1', '0', '0']
  for row, line in zip(rows, lines, strict=True):
    for name, found in (
      ('final_test_accuracy', row.moments.final),
      ('rounds_to_target', row.moments.rounds),
      ('final_test_accuracy_difference', row.differences.final),
    ):
      for what, value in zip(('mean', 'std'), found or ('', ''), strict=False):
        assert line[f'{name}_{what}'] == ('' if value is None else str(value))
  assert {line['simulated_seconds_to_target_mean'] for line in lines} == {''}


def test_tables_of_a_page_and_of_a_paper(groups):
  rows = seed_statistics.settings(groups, 0.5)
  page = results_table.to_markdown(rows, 0.5, Measure(), 'mu_1')
  paper = results_table.to_latex(rows, 0.5, Measure(), 'mu_1')
  head, _, plain, other, *_ = page.splitlines()
  for cell in (
    'final test accuracy',
    'rounds to 0.5',
    'difference of final',
    'diverged',
  ):
    assert f'| {cell} |' in head
  assert 'simulated' not in head  # No run has a clock.
  mean, std = np.mean([0.7, 0.9, 0.75]), np.std([0.7, 0.9, 0.75], ddof=1)
  assert f'| mu_0 | 3 | {mean:.4f} ± {std:.4f} |' in plain
  assert '| **mu_1** | 3 |' in other and '| — |' in other
  assert '| −0.2750 ± 0.2475 (n = 2) |' in other
  lines = paper.splitlines()
  assert lines[1] == r'\begin{tabular}{l' + 'r' * (head.count('|') - 2) + '}'
  assert (lines[2], lines[4], lines[-2]) == (
    r'\toprule',
    r'\midrule',
    r'\bottomrule',
  )
  assert r'\textbf{mu\_1} & 3 &' in lines[6] and ' & -- & ' in lines[6]
  assert r'& $-$0.2750 $\pm$ 0.2475 (n = 2) &' in lines[6]
  body = [line for line in lines if line.endswith(r' \\')]
  assert len({line.count(' & ') for line in body}) == 1 and len(body) == 5


def test_every_character_of_latex_is_escaped():
  row = seed_statistics.settings({'a\\b_{%}#&$~^': [run(0, [0.5])]}, 0.0)
  line = results_table.to_latex(row, 0.0, Measure()).splitlines()[5]
  assert line.startswith(
    r'a\textbackslash{}b\_\{\%\}\#\&\$\textasciitilde{}\textasciicircum{} & 1 &'
  )
