"""Readers take any bytes: they return arrays or refuse in one line."""

import io
import json
import shutil

from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import array_files
from fedavg_jax.data import image_folders
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer
from fedavg_jax.schedule.availability import read_trace

BOUNDED = settings(
  max_examples=120,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def changed(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
  """Changes some bytes of a valid file and cuts its end."""
  own = bytearray(content)
  for at, value in changes:
    own[at % len(own)] = value
  return bytes(own[: len(own) - cut % len(own)])


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)))
CUTS = st.one_of(st.just(0), st.integers(0, 10**6))


def answers(read):
  """Calls a reader, which may return or raise InputError, nothing else."""
  try:
    return read()
  except InputError as error:
    assert '\n' not in str(error) and len(str(error)) < 900
    return None


def examples():
  x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
  return {
    **{'x': x, 'y': np.arange(6) % 3, 'client': np.arange(6) // 2},
    **{'x_test': x[:2], 'y_test': np.array([0, 2])},
  }


def npz(compressed: bool) -> bytes:
  buffer = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(buffer, **examples())
  return buffer.getvalue()


@given(st.booleans(), CHANGES, CUTS)
@BOUNDED
def test_archives_of_arrays(tmp_path, compressed, changes, cut):
  path = tmp_path / 'a.npz'
  path.write_bytes(changed(npz(compressed), changes, cut))
  own = answers(lambda: array_files.open_arrays(path))
  if own is not None:
    answers(lambda: list(own.clients()))


@given(CHANGES, CUTS)
@BOUNDED
def test_arrays_in_a_folder(tmp_path, changes, cut):
  folder = tmp_path / 'in'
  folder.mkdir(exist_ok=True)
  for name, array in examples().items():
    buffer = io.BytesIO()
    np.save(buffer, array)
    content = buffer.getvalue()
    if name in ('x', 'client'):
      content = changed(content, changes, cut)
    (folder / f'{name}.npy').write_bytes(content)
  own = answers(lambda: array_files.open_arrays(folder))
  if own is not None:
    answers(lambda: list(own.clients()))


def picture(kind: str) -> bytes:
  buffer = io.BytesIO()
  pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
  Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


@given(st.sampled_from(['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP']), CHANGES, CUTS)
@BOUNDED
@pytest.mark.filterwarnings('default')  # Pillow's warnings.
def test_images(tmp_path, kind, changes, cut):
  path = tmp_path / f'a.{kind.lower()}'
  path.write_bytes(changed(picture(kind), changes, cut))
  found = answers(lambda: image_folders.read_image(path))
  if found is not None:
    pixels, largest = found
    assert pixels.ndim == 3 and 0 <= pixels.min() <= pixels.max() <= largest


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)), st.booleans())
@BOUNDED
def test_traces(tmp_path, content, begins_well):
  path = tmp_path / 'trace.csv'
  content = content.encode() if isinstance(content, str) else content
  path.write_bytes(b'client,first,last\n' * begins_well + content)
  answers(lambda: read_trace(path, 3))


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from('xyz'), inner, max_size=3)
  ),
  max_leaves=6,
)


@pytest.fixture(scope='module')
def federation(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fuzz') / 'f'
  path = folder.parent / 'a.npz'
  path.write_bytes(npz(compressed=False))
  own = array_files.open_arrays(path)
  stored_writer.write(
    folder,
    own.clients(),
    own.test,
    num_classes=None,
    max_value=255.0,
    source={},
  )
  return folder, json.loads((folder / 'federation.json').read_text())


def places(tree, prefix=()):
  """Yields the path of every value in JSON, as a tuple of keys."""
  yield prefix
  items = []
  if isinstance(tree, dict):
    items = list(tree.items())
  elif isinstance(tree, list):
    items = list(enumerate(tree))
  for key, value in items:
    yield from places(value, (*prefix, key))


@given(st.data(), JSON)
@BOUNDED
def test_descriptions(federation, data, value):
  """Every description has one value of federation.json replaced."""
  folder, good = federation
  found = json.loads(json.dumps(good))
  *parents, last = data.draw(st.sampled_from([p for p in places(good) if p]))
  inner = found
  for key in parents:
    inner = inner[key]
  inner[last] = value
  (folder / 'federation.json').write_text(json.dumps(found))
  answers(lambda: stored.read(folder))
  answers(lambda: stored.verify(folder))


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """Returns the folder of a conversion that stopped after its second shard."""
  folder = tmp_path_factory.mktemp('journal') / 'f'
  path = folder.parent / 'a.npz'
  path.write_bytes(npz(compressed=False))

  def ends(clients, size):
    del size
    if clients == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    resume(folder, wrote=ends)
  return folder


def resume(folder, **options):
  own = array_files.open_arrays(folder.parent / 'a.npz')
  options = {'num_classes': 3, 'max_value': 255.0, 'source': {}} | options
  stored_writer.write(folder, own.clients(), own.test, shard_bytes=1, **options)


@given(CHANGES, CUTS)
@BOUNDED
def test_journals(tmp_path, killed, changes, cut):
  """A conversion resumes correctly, or nothing has changed."""
  folder = tmp_path / 'f'
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(killed, folder)
  shutil.copy(killed.parent / 'a.npz', tmp_path)
  path = folder / 'conversion.jsonl'
  path.write_bytes(changed(path.read_bytes(), changes, cut))
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  answers(lambda: resume(folder))
  if (folder / 'federation.json').exists():
    assert stored.verify(folder) == 3 * 4 + 2
    own = stored.read(folder)
    assert own.clients.num_examples.tolist() == [2, 2, 2]
    pixels = np.asarray(own.clients.x) / 255
    np.testing.assert_allclose(own.statistics, (pixels.mean(), pixels.std()))
    assert own.clients.y.max() == 2
  else:
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
