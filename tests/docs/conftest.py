"""The recipes of a page are fixtures of these tests."""

import ast
import pathlib
import types

import pytest

from tests.testing.pages import python_of


@pytest.fixture(scope='session')
def page():
  """Returns bring_your_own.md's functions, without the runs on the page."""
  docs = pathlib.Path(__file__).parents[2] / 'docs'
  program = ast.parse(python_of(docs / 'bring_your_own.md'))
  program.body = list(filter(_is_of_a_recipe, program.body))
  names = {}
  exec(compile(program, 'page', 'exec'), names)  # noqa: S102
  return types.SimpleNamespace(**names)


def _is_of_a_recipe(statement: ast.stmt) -> bool:
  """Returns whether a statement imports, defines or names optimizers."""
  if isinstance(statement, ast.FunctionDef):
    return statement.name != 'accuracy'  # Its defaults are trained models.
  if isinstance(statement, ast.Assign):
    return ast.unparse(statement.targets[0]).strip('()') == 'sgd, server'
  return isinstance(statement, ast.Import | ast.ImportFrom | ast.ClassDef)
