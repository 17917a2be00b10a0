"""The lecture page's code is that of the reference round; its answers hold."""

import ast
import inspect
import re
import textwrap

import numpy as np

import fedavg_jax as fa
from fedavg_jax.contracts import reference
from tests.testing.pages import python_of


def nested_functions():
  """Returns the source of the functions inside of the reference round."""
  source = inspect.getsource(reference)
  (builder,) = (
    node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
  )
  lines = source.splitlines()
  for node in builder.body:
    if isinstance(node, ast.FunctionDef):
      first = min([node, *node.decorator_list], key=lambda n: n.lineno).lineno
      yield textwrap.dedent('\n'.join(lines[first - 1 : node.end_lineno]))


def test_the_code_of_the_page_is_the_reference_round(repository):
  page = (repository / 'docs' / 'round_in_40_lines.md').read_text()
  functions = list(nested_functions())
  assert len(functions) == 2
  assert sum(len(function.splitlines()) for function in functions) <= 40
  for function in functions:
    assert f'```python\n{function}\n```' in page


def test_the_page_runs_and_its_picture_has_its_numbers(repository, capsys):
  names = {}
  exec(python_of(repository / 'docs' / 'round_in_40_lines.md'), names)
  assert capsys.readouterr().out == '[12  2  6  4]\n24 of 48\n'
  assert names['x'].shape == (4, 60, 8, 8, 1)
  assert names['batches'].shape == (4, 12, 10)
  by_engine = fa.engine.build_reference_round(names['loss_fn'], 0.1)
  again = by_engine(
    names['w'], *(names[name] for name in ('x', 'y', 'mask', 'batches'))
  )
  for name, leaf in names['after'].items():
    np.testing.assert_array_equal(leaf, again[name])
  # Longest first, into the emptiest of two lanes: 24 steps for both.
  steps = names['planner'].steps(names['clients'].num_examples)
  lanes = [0, 0]
  for n in sorted(steps, reverse=True):
    lanes[lanes.index(min(lanes))] += int(n)
  assert lanes == [12, 12]
  picture = (repository / 'docs' / 'lanes.svg').read_text()
  shown = [int(n) for n in re.findall(r'>(\d+) steps', picture)]
  assert shown == [4 * max(steps), sum(lanes)]
  assert picture.count('<rect') - 1 == 4 * max(steps) + sum(lanes)
