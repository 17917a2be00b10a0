"""Converts in this process, and checks that refusals leave no files."""

import re

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import sources
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer


def convert(kind, path, out, **options):
  """Converts like the command, in this process."""
  source = sources.open_source(kind, str(path))
  stored_writer.write(
    out,
    source.clients,
    source.test,
    num_classes=source.num_classes,
    max_value=source.max_value,
    padding=source.padding,
    classes=source.classes,
    source={'kind': kind, 'path': str(path)},
    **options,
  )
  return stored.read(out)


def listing(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def refused(kind, path, folder, words):
  before = listing(folder)
  with pytest.raises(InputError, match=re.escape(words)) as caught:
    convert(kind, path, folder / 'out')
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 700
  assert listing(folder) == before
