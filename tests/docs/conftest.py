"""The recipes of a page, as functions."""

import ast
import pathlib
import types

import pytest

from tests.testing.pages import python_of


@pytest.fixture(scope='session')
def page():
  """The functions of bring_your_own.md; what it trains is left out."""
  docs = pathlib.Path(__file__).parents[2] / 'docs'
  program = ast.parse(python_of(docs / 'bring_your_own.md'))
  program.body = list(filter(_is_of_a_recipe, program.body))
  names = {}
  exec(compile(program, 'page', 'exec'), names)  # noqa: S102
  return types.SimpleNamespace(**names)


def _is_of_a_recipe(statement: ast.stmt) -> bool:
  """Whether it imports, defines, or names the optimizers of the recipes."""
  if isinstance(statement, ast.FunctionDef):
    return statement.name != 'accuracy'  # Its defaults are what is trained.
  if isinstance(statement, ast.Assign):
    return ast.unparse(statement.targets[0]).strip('()') == 'sgd, server'
  return isinstance(statement, ast.Import | ast.ImportFrom | ast.ClassDef)
