"""Counts what a step does in optimized programs; checks the committed table."""

import json

import pytest

from experiments.benchmark import compiled
from experiments.benchmark import optimized_hlo
from tests.testing import PROGRAMS

# A call of three loops; a step has a kernel, a copy and a loop of ten lanes.
PROGRAM = (PROGRAMS / 'call.hlo').read_text()


def test_a_step_is_counted():
  found = optimized_hlo.step_cost(PROGRAM)
  weights = 4096 * 512 * 4
  # The ten additions of the inner loop, the gather and the copy; a gather reads
  # as much as it writes.
  assert found.kernels == 12
  moved = 10 * 3 * 32 + 2 * 31360 + 2 * weights
  assert found.megabytes == round(moved / 1e6, 1)
  assert found.copied_megabytes == round(weights / 1e6, 1)
  assert found.dynamic_loops == 0
  assert found.microseconds == round((10 * 15 + 1500) / 1500, 1)


def test_a_loop_of_unknown_length_is_dynamic():
  text = PROGRAM.replace('condition=%lane_condition', 'condition=%unknown')
  assert optimized_hlo.step_cost(text).dynamic_loops == 1
  program, entry = optimized_hlo.parse(text)
  step = optimized_hlo.step_of(program, entry)
  (loop,) = (own for own in program[step] if own.op == 'while')
  assert optimized_hlo.trip_count(program, loop) is None


def test_a_program_without_loops_is_refused():
  with pytest.raises(ValueError, match='no loop in main'):
    optimized_hlo.step_cost(
      'ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n'
    )


def test_loops_in_a_command_buffer_have_no_host():
  thunks = """\
000: kCommandBuffer [source]
    001: kWhile     [source]
016: kWhile         [prev=000]
  body:
    000: kCommandBuffer [source]
        018: kCopy  [source]
    051: kWhile     [prev=000]
"""
  assert compiled.host_loops(thunks) == 2
  assert compiled.host_loops('000: kCommandBuffer\n    001: kWhile\n') == 0


@pytest.fixture
def rows(repository):
  path = repository / 'experiments' / 'benchmark' / 'results' / 'compiled.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_table_has_these_sources_and_is_within_budgets(rows):
  """Run `python -m experiments.benchmark.compiled` after changing the call."""
  now = {(row['target'], row['case']): row for row in rows}
  for target, cases in compiled.BUDGETS.items():
    for case in cases:
      row = now[target, case]
      assert row['sources'] == compiled.sources(), (target, case)
      assert not compiled.missed(row)
      assert row['compiled, not run'] is True


def test_a_budget_is_exceeded_in_one_line(rows):
  (row,) = (r for r in rows if (r['target'], r['case']) == ('v5e', '2nn'))
  (line,) = compiled.missed(row | {'microseconds': 62.6})
  assert line == 'v5e 2nn: microseconds = 62.6: must be at most 40'
