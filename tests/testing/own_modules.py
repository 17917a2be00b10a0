"""Writes user-defined modules that a config can name."""

from collections.abc import Iterator
import contextlib
import hashlib
import importlib
import pathlib
import sys

import pytest


@contextlib.contextmanager
def importable(folder: pathlib.Path, text: str) -> Iterator[str]:
  """Writes a module that is imported anew; yields its name."""
  name = f'mine_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}'
  (folder / f'{name}.py').write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)
