"""Data sets are read from real, made, damaged and downloaded files."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import catalog
from fedavg_jax.data import images
from tests.conftest import REPOSITORY
from tests.testing import PROGRAMS
from tests.testing.idx_files import FILES
from tests.testing.idx_files import idx_bytes
from tests.testing.idx_files import make_files


@pytest.fixture(scope='module')
def made_once(tmp_path_factory):
  folder = tmp_path_factory.mktemp('made')
  make_files(folder, 'mnist')
  return folder


@pytest.fixture
def made_dir(made_once, tmp_path):
  """Returns a new folder with files in MNIST's shapes."""
  return shutil.copytree(made_once, tmp_path / 'made')


def test_digits_are_those_of_scikit_learn():
  """Where it is not installed, the checksum is that of its digits."""
  data = catalog.load_dataset('digits')
  x, y = (
    np.concatenate(both) for both in zip(data.train, data.test, strict=True)
  )
  digest = hashlib.sha256()
  for array in (*data.train, *data.test):
    digest.update(array.tobytes())
  assert digest.hexdigest() == (
    'bb7033eef8d51804ba22184fcf912bad466837d9849381c6b5712cc8f2fefdbc'
  )
  datasets = pytest.importorskip('sklearn.datasets')
  expected = datasets.load_digits()
  order = np.random.default_rng(0).permutation(1797)
  np.testing.assert_array_equal(x[..., 0], expected.images[order])
  np.testing.assert_array_equal(y, expected.target[order])


def test_digits_are_real_and_fixed():
  data = catalog.load_dataset('digits')
  assert data.train.x.shape == (1500, 8, 8, 1) and data.train.x.max() == 16
  assert data.test.x.shape == (297, 8, 8, 1) and data.train.x.dtype == np.uint8
  both = np.concatenate([data.train.y, data.test.y])
  np.testing.assert_array_equal(
    np.bincount(both), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  )
  again = catalog.load_dataset('digits')
  np.testing.assert_array_equal(data.train.x, again.train.x)


def test_real_mnist(mnist_dir):
  data = catalog.load_dataset('mnist', str(mnist_dir))
  assert data.train.x.shape == (60_000, 28, 28, 1)
  assert data.input_shape == (28, 28, 1)
  np.testing.assert_array_equal(
    np.bincount(data.test.y),
    [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
  )
  mean, std = data.pixel_statistics()
  scaled = data.train.x / 255.0
  assert mean == pytest.approx(scaled.mean(), abs=1e-9)
  assert std == pytest.approx(scaled.std(), abs=1e-9)
  assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
def test_gzipped_or_not(tmp_path, name):
  made_dir = tmp_path
  make_files(made_dir, name)
  plain = catalog.load_dataset(name, str(made_dir))
  for file in FILES:
    path = made_dir / file
    (made_dir / f'{file}.gz').write_bytes(gzip.compress(path.read_bytes(), 1))
    path.unlink()
  zipped = catalog.load_dataset(name, str(made_dir))
  assert zipped.name == name
  for a, b in zip(plain[1:3], zipped[1:3], strict=True):
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.y, b.y)


def damaged(name, content):
  """Returns ways to damage a file: name -> (content, words of the error)."""
  images = 'idx3' in name
  return {
    'empty': (b'', 'not an IDX file'),
    'header cut': (content[:6], 'not an IDX file'),
    'cut': (content[:-1], 'fewer than'),
    'too long': (content + b'x', 'more than'),
    'text': (b'<html>404</html>' * 9, 'not an IDX file'),
    'other type': (b'\0\0\x0d' + content[3:], 'not an IDX file'),
    'other rank': (
      content[:3] + bytes([2]) + content[4:],
      'not an IDX file',
    ),
    'promises too much': (
      content[:4] + b'\xff' * (12 if images else 4) + content[8:],
      'expected shape .*4294967295',
    ),
    'gzip cut': (gzip.compress(content[:9999], 1)[:-9], 'cannot be read'),
    'gzip spoilt': (
      gzip.compress(content[:9999], 1)[:50] + b'\0' * 99,
      'cannot be read',
    ),
    'other size': (
      idx_bytes(np.zeros((7, 28, 28) if images else (7,))),
      'expected shape',
    ),
  }


@pytest.mark.parametrize(
  'file', ['train-images-idx3-ubyte', 't10k-labels-idx1-ubyte']
)
@pytest.mark.parametrize('how', damaged('', b'').keys())
def test_a_damaged_file_is_named(made_dir, file, how):
  content, said = damaged(file, (made_dir / file).read_bytes())[how]
  (made_dir / file).write_bytes(content)
  with pytest.raises(InputError, match=said) as info:
    catalog.load_dataset('mnist', str(made_dir))
  message = str(info.value)
  assert str(made_dir / file) in message and '\n' not in message
  assert 'copy or download' in message


def test_files_of_another_data_set_are_refused(made_dir):
  with pytest.raises(
    InputError, match='does not have the labels of fashion_mnist'
  ):
    catalog.load_dataset('fashion_mnist', str(made_dir))


def test_a_wrong_label_is_named(made_dir):
  file = made_dir / 'train-labels-idx1-ubyte'
  file.write_bytes(file.read_bytes()[:-1] + b'\x0a')
  with pytest.raises(InputError, match='label 10'):
    catalog.load_dataset('mnist', str(made_dir))


def test_a_missing_file_is_named(made_dir):
  (made_dir / 't10k-labels-idx1-ubyte').unlink()
  with pytest.raises(InputError, match='t10k-labels.*missing.*data_dir empty'):
    catalog.load_dataset('mnist', str(made_dir))


def test_unknown_data_set():
  with pytest.raises(InputError, match="dataset = 'mnits'.*digits, mnist"):
    catalog.load_dataset('mnits')


@contextlib.contextmanager
def serve(folder):
  """Serves a folder; yields the URL and the paths requested so far."""
  served = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
      served.append(self.path)
      super().do_GET()

    def log_message(self, *args):
      pass

  httpd = http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder))
  )
  thread = threading.Thread(target=httpd.serve_forever)
  thread.start()
  yield f'http://127.0.0.1:{httpd.server_port}/', served
  httpd.shutdown()
  httpd.server_close()
  thread.join()


@pytest.fixture
def server(mnist_dir, monkeypatch):
  """Serves the data set from this machine; the checksums stay."""
  import tensorflow_datasets as tfds

  # Read all before replacing any: one builder inherits from the other.
  registered = {
    builder: list(builder.url_infos.values())
    for builder in map(tfds.builder_cls, ('mnist', 'fashion_mnist'))
  }
  with serve(mnist_dir) as (url, served):
    for builder, infos in registered.items():
      monkeypatch.setattr(builder, 'URL', url)
      monkeypatch.setattr(
        builder, 'url_infos', {url + info.filename: info for info in infos}
      )
    yield served


# Warnings during a download come from the packages that download.
@pytest.mark.filterwarnings('default')
def test_download_through_tensorflow_datasets(
  server, mnist_dir, tmp_path, monkeypatch
):
  """The download manager and checksums are real; only the server is local."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.delenv('FEDAVG_DATA', raising=False)
  first = catalog.load_dataset('mnist')
  assert len(server) == 4
  expected = catalog.load_dataset('mnist', str(mnist_dir))
  np.testing.assert_array_equal(first.train.x, expected.train.x)
  np.testing.assert_array_equal(first.test.y, expected.test.y)
  second = catalog.load_dataset('mnist')
  np.testing.assert_array_equal(first.test.x, second.test.x)
  assert len(server) == 4  # No new download.


@pytest.mark.filterwarnings('default')
def test_a_wrong_checksum_is_refused(server, tmp_path, monkeypatch):
  """MNIST's files have Fashion-MNIST's names here, but not its checksums."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.delenv('FEDAVG_DATA', raising=False)
  with pytest.raises(InputError, match='fashion_mnist.*checksum') as info:
    catalog.load_dataset('fashion_mnist')
  assert '\n' not in str(info.value)


@pytest.mark.filterwarnings('default')
def test_no_network_is_reported_at_once(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.delenv('FEDAVG_DATA', raising=False)
  monkeypatch.setattr(
    tfds.builder_cls('mnist'), 'URL', 'http://127.0.0.1:9/nobody/'
  )
  start = time.monotonic()
  with pytest.raises(InputError, match="dataset = 'mnist'.*data_dir") as info:
    catalog.load_dataset('mnist')
  assert '\n' not in str(info.value)
  assert time.monotonic() - start < 60  # Without the minutes of its retries.


def test_second_start_needs_neither_network_nor_tensorflow_datasets(
  mnist_dir, tmp_path
):
  """Files in the download folder are read without importing heavy packages."""
  folder = tmp_path / 'downloads' / 'mnist'
  folder.mkdir(parents=True)
  for file in FILES:
    shutil.copy(mnist_dir / f'{file}.gz', folder)
  out = subprocess.run(
    [sys.executable, PROGRAMS / 'load_mnist.py'],
    env={
      'TFDS_DATA_DIR': str(tmp_path),
      'FEDAVG_DATA': '',
      'PATH': '',
      'PYTHONPATH': str(REPOSITORY),
    },
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split('\n')
  assert out[0] == '60000'
  assert out[1] == '[]'


def test_checksums_that_tensorflow_datasets_registers(mnist_dir):
  import tensorflow_datasets as tfds

  infos = tfds.builder_cls('mnist').url_infos
  assert len(infos) == 4
  for info in infos.values():
    content = (mnist_dir / info.filename).read_bytes()
    assert hashlib.sha256(content).hexdigest() == info.checksum


# The data folder.


def test_a_missing_data_folder_is_refused(monkeypatch, tmp_path):
  """No download is tried; data sets that need no folder do not check it."""
  monkeypatch.setenv('FEDAVG_DATA', str(tmp_path / 'none'))
  for name in ('mnist', 'cifar10', 'leaf', 'mnist_writers', 'words'):
    with pytest.raises(
      InputError, match='FEDAVG_DATA = .*none.*: is not a directory'
    ):
      catalog.load_dataset(name)
  assert catalog.load_dataset('digits').name == 'digits'


def test_files_with_capital_names(made_dir):
  expected = catalog.load_dataset('mnist', str(made_dir))
  for path in list(made_dir.iterdir()):
    path.rename(made_dir / path.name.upper())
  found = catalog.load_dataset('mnist', str(made_dir))
  np.testing.assert_array_equal(found.train.x, expected.train.x)


# Natural clients.


@pytest.fixture
def data_dir(mnist_dir):
  return mnist_dir.parent


def test_writers_of_mnist(data_dir, tmp_path):
  """Files may be in a folder each, or all in one."""
  data = catalog.load_dataset('mnist_writers', str(data_dir))
  counts = np.bincount(data.owners)
  assert len(counts) == 539 and counts.sum() == 60_000
  assert (counts.min(), np.median(counts), counts.max()) == (19, 116, 131)
  ids = np.array(data.client_names, int)  # NIST's numbers of the writers.
  assert (np.diff(ids) > 0).all() and len(ids) == 539
  plain = catalog.load_dataset('mnist', str(data_dir / 'mnist'))
  np.testing.assert_array_equal(data.train.x, plain.train.x)
  for file in FILES:
    shutil.copy(data_dir / 'mnist' / f'{file}.gz', tmp_path)
  name = 'qmnist-train-labels-idx2-int'
  with pytest.raises(InputError, match=f'{name}.*is missing'):
    catalog.load_dataset('mnist_writers', str(tmp_path))
  content = gzip.decompress(
    (data_dir / 'qmnist_writers' / f'{name}.gz').read_bytes()
  )
  (tmp_path / name).write_bytes(content)
  again = catalog.load_dataset('mnist_writers', str(tmp_path))
  np.testing.assert_array_equal(data.owners, again.owners)
  for damaged in (content[:-1], content + b'x', b'\0\0\x08' + content[3:]):
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(InputError, match="not QMNIST's extended labels"):
      catalog.load_dataset('mnist_writers', str(tmp_path))
  wrong = bytearray(content)
  wrong[12 + 3] = 9 - wrong[12 + 3]  # The first digit.
  (tmp_path / name).write_bytes(wrong)
  with pytest.raises(InputError, match="not those of MNIST's"):
    catalog.load_dataset('mnist_writers', str(tmp_path))


@pytest.mark.slow
def test_femnist(data_dir):
  """The data have 105 writers, 62 classes and a white background."""
  data = catalog.load_dataset('leaf', str(data_dir / 'femnist_leaf'))
  assert len(np.unique(data.owners)) == 105 and data.num_classes == 62
  assert data.train.x.shape[1:] == (28, 28, 1)
  assert np.median(data.train.x) == 1.0 and data.train.x.min() >= 0


def leaf(folder, split, users, file='all.json'):
  (folder / split).mkdir(exist_ok=True)
  tree = {
    'users': list(users),
    'num_samples': [len(y) for _, y in users.values()],
    'user_data': {u: {'x': x, 'y': y} for u, (x, y) in users.items()},
  }
  (folder / split / file).write_text(json.dumps(tree))


def test_leaf_users_are_clients(tmp_path):
  """A user may be in several files, and needs a training example."""
  leaf(tmp_path, 'train', {'b': ([[0.5] * 4, [1] * 4], [0, 2])})
  leaf(
    tmp_path,
    'train',
    {'a': ([[0.25] * 4], [1]), 'nobody': ([], [])},
    'more.json',
  )
  leaf(tmp_path, 'test', {'b': ([[0.0] * 4], [3])})
  data = catalog.load_dataset('leaf', str(tmp_path))
  assert data.owners.tolist() == [0, 0, 1]
  assert data.train.x.shape == (3, 2, 2, 1) and data.num_classes == 4
  assert data.pixel_statistics()[0] == pytest.approx(1.75 / 3)


def test_bad_leaf_folders(tmp_path):
  with pytest.raises(InputError, match='train/ has no json'):
    catalog.load_dataset('leaf', str(tmp_path))
  leaf(tmp_path, 'train', {'a': ([[1.0] * 4], [1])})
  leaf(tmp_path, 'test', {'a': ([[1.0] * 5], [1])})
  said = r"user 'a' of train/ has the shape \(2, 2, 1\), test/ \(5, 1, 1\)"
  with pytest.raises(InputError, match=said):
    catalog.load_dataset('leaf', str(tmp_path))
  leaf(tmp_path, 'test', {'a': ([], [])})
  with pytest.raises(InputError, match='test/ must have examples'):
    catalog.load_dataset('leaf', str(tmp_path))


def test_a_file_of_leaf_and_its_archive_are_refused(tmp_path):
  """Otherwise the users would have every example twice."""
  for split in ('train', 'test'):
    leaf(tmp_path, split, {'a': ([[1.0] * 4], [1])})
  path = tmp_path / 'train' / 'all.json'
  (tmp_path / 'train' / 'all.JSON.gz').write_bytes(
    gzip.compress(path.read_bytes())
  )
  said = "files of train/: 'all.JSON.gz' and 'all.json' are one name"
  with pytest.raises(InputError, match=said):
    catalog.load_dataset('leaf', str(tmp_path))
  path.unlink()
  assert catalog.load_dataset('leaf', str(tmp_path)).train.y.tolist() == [1]


def test_labels_of_leaf_may_be_floats(tmp_path):
  leaf(tmp_path, 'train', {'a': ([[1.0] * 4] * 2, [1.0, 0])})
  leaf(tmp_path, 'test', {'a': ([[1.0] * 4], [2.0])})
  data = catalog.load_dataset('leaf', str(tmp_path))
  assert data.train.y.tolist() == [1, 0] and data.num_classes == 3
  assert data.train.y.dtype == np.int32


# CIFAR-10 through tensorflow-datasets.


@pytest.mark.slow
@pytest.mark.filterwarnings('default')
def test_cifar_is_downloaded_and_unpacked(tmp_path, monkeypatch):
  """The download manager is real; the archive has the official layout."""
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  source = tmp_path / 'source'
  (source / 'cifar-10-batches-bin').mkdir(parents=True)
  for name in images._CIFAR_FILES:
    records = rng.integers(0, 256, (10_000, 3073), np.uint8)
    records[:, 0] %= 10
    (source / 'cifar-10-batches-bin' / name).write_bytes(records.tobytes())
  archive = source / 'cifar-10-binary.tar.gz'
  with tarfile.open(archive, 'w:gz', compresslevel=0) as tar:
    tar.add(source / 'cifar-10-batches-bin', 'cifar-10-batches-bin')
  with serve(source) as (url, served):
    builder = tfds.builder_cls('cifar10')
    (info,) = builder.url_infos.values()
    assert info.filename == archive.name  # As registered.
    content = archive.read_bytes()
    info = type(info)(
      size=tfds.core.utils.Size(len(content)),
      checksum=hashlib.sha256(content).hexdigest(),
      filename=info.filename,
    )
    monkeypatch.setattr(builder, 'url_infos', {url + archive.name: info})
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.delenv('FEDAVG_DATA', raising=False)
    first = catalog.load_dataset('cifar10')
    again = catalog.load_dataset('cifar10')
    assert served == [f'/{archive.name}']
  expected = catalog.load_dataset(
    'cifar10', str(source / 'cifar-10-batches-bin')
  )
  for got in (first, again):
    np.testing.assert_array_equal(got.train.x, expected.train.x)
    np.testing.assert_array_equal(got.test.y, expected.test.y)
