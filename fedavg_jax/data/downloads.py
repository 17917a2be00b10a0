"""Downloads the original files of data sets, and verifies their checksums."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import hashlib
import os
import pathlib
import tarfile
import tempfile
from typing import NamedTuple

from fedavg_jax.core.errors import InputError

_SECONDS_WITHOUT_AN_ANSWER = 20.0
_BLOCK = 2**20  # bytes


class File(NamedTuple):
  """Describes an original file: its SHA-256, in hexadecimal, and its bytes."""

  sha256: str
  size: int


# Those that tensorflow-datasets registers too.
ADDRESSES = {
  'mnist': 'https://storage.googleapis.com/cvdf-datasets/mnist',
  'fashion_mnist': 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com',
  'cifar10': 'https://www.cs.toronto.edu/~kriz',
}
FILES = {
  'mnist': {
    'train-images-idx3-ubyte.gz': File(
      '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
      9_912_422,
    ),
    'train-labels-idx1-ubyte.gz': File(
      '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
      28_881,
    ),
    't10k-images-idx3-ubyte.gz': File(
      '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
      1_648_877,
    ),
    't10k-labels-idx1-ubyte.gz': File(
      'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
      4_542,
    ),
  },
  'fashion_mnist': {
    'train-images-idx3-ubyte.gz': File(
      '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
      26_421_880,
    ),
    'train-labels-idx1-ubyte.gz': File(
      'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
      29_515,
    ),
    't10k-images-idx3-ubyte.gz': File(
      '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
      4_422_102,
    ),
    't10k-labels-idx1-ubyte.gz': File(
      '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
      5_148,
    ),
  },
  'cifar10': {
    'cifar-10-binary.tar.gz': File(
      'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
      170_052_171,
    ),
  },
}


def download_dir() -> pathlib.Path:
  """Returns the folder of downloads, in $TFDS_DATA_DIR.

  It is that of tensorflow-datasets, whose users have the files already.
  """
  home = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(home).expanduser() / 'downloads'


def download(name: str) -> list[pathlib.Path]:
  """Downloads the original files of a data set that are not there yet.

  A file gets its name in `download_dir()/NAME` after its SHA-256 was verified.

  Args:
    name: a key of `FILES`.

  Returns:
    The paths, in the order of `FILES`.

  Raises:
    InputError: there is no network or no space, or a checksum is wrong.
  """
  import http.client  # Needed only once, as the imports of `_fetch`.

  folder = download_dir() / name
  paths = [folder / file for file in FILES[name]]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
      if not path.is_file():
        _fetch(f'{ADDRESSES[name]}/{path.name}', path, FILES[name][path.name])
  except (OSError, ValueError, http.client.HTTPException) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:160]
    raise InputError(
      f'dataset = {name!r}: could not be downloaded from {ADDRESSES[name]}'
      f' into {folder} ({reason}); put the original files in a folder and set'
      ' data_dir to it'
    ) from error
  return paths


def _fetch(address: str, path: pathlib.Path, expected: File) -> None:
  """Downloads one file; raises ValueError where its checksum is wrong."""
  import urllib.request

  from tqdm import tqdm

  digest = hashlib.sha256()
  with (
    urllib.request.urlopen(
      address, timeout=_SECONDS_WITHOUT_AN_ANSWER
    ) as answer,
    _whole_file(path) as part,
    open(part, 'wb') as file,
    # None: no bar where the output is not a terminal.
    tqdm(
      total=expected.size,
      desc=path.name,
      unit='B',
      unit_scale=True,
      disable=None,
    ) as bar,
  ):
    left = expected.size + 1  # A longer file is refused, not stored.
    while left and (block := answer.read(min(_BLOCK, left))):
      file.write(block)
      digest.update(block)
      bar.update(len(block))
      left -= len(block)
    if digest.hexdigest() != expected.sha256:
      raise ValueError(f'{path.name} has another checksum than the original')


def unpack(archive: pathlib.Path, names: Sequence[str]) -> None:
  """Extracts files of an archive, from any of its folders, next to it."""
  with tarfile.open(archive) as tar:
    for member in tar:
      name = pathlib.PurePosixPath(member.name).name
      content = tar.extractfile(member) if name in names else None
      if content is not None:
        with _whole_file(archive.parent / name) as part:
          part.write_bytes(content.read())


@contextlib.contextmanager
def _whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path of this process alone; renames it after the block succeeds.

  Processes of one run, which need the same files, may download at once.
  """
  with tempfile.TemporaryDirectory(prefix='.part.', dir=path.parent) as folder:
    part = pathlib.Path(folder) / path.name
    yield part
    part.replace(path)
