"""Reads Python code from a page."""

import pathlib
import re


def python_of(path: pathlib.Path) -> str:
  """Returns the Python of a page, as one program."""
  return '\n'.join(
    re.findall(
      r'^```python\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE
    )
  )
