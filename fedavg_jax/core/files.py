"""Files that are never half written."""

from collections.abc import Iterator
import contextlib
import os
import pathlib


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write a file to, which gets its name once it is whole."""
  part = path.with_name(part_name(path.name))
  try:
    yield part
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that gets its name once it is whole."""
  with whole(path) as part:
    part.write_text(text)


def part_name(name: str) -> str:
  """Name of a file that is not whole yet; it ends as the other one does."""
  return f'.part.{name}'
