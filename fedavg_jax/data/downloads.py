"""Downloads through tensorflow-datasets' manager, which verifies checksums."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import shutil
import tarfile
from typing import Any

from fedavg_jax.core.errors import InputError


def tfds_dir() -> pathlib.Path:
  """Returns tensorflow-datasets' download folder, in $TFDS_DATA_DIR."""
  home = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(home).expanduser() / 'downloads'


def download(
  name: str, files: Mapping[str, str], download_dir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Downloads files through tensorflow-datasets' download manager.

  It verifies size and SHA-256 against those that tensorflow-datasets registers.
  The manager needs no TensorFlow, unlike the builders of these data sets, which
  encode every image with it. The verified files are linked under their own
  names into download_dir/NAME, where the next start finds them without
  tensorflow-datasets.

  Args:
    name: the name of the data set in tensorflow-datasets.
    files: file name -> address.
    download_dir: the folder for downloads.

  Returns:
    File name -> path.

  Raises:
    InputError: there is no network or no space, or a checksum is wrong.
  """
  import urllib.request

  import tensorflow_datasets as tfds  # Heavy, and needed only once.
  from tensorflow_datasets.core.download import download_manager

  builder: Any = tfds.builder_cls(name)
  try:
    # Without network this fails at once; the manager would retry for minutes.
    head = urllib.request.Request(min(files.values(), key=len), method='HEAD')
    urllib.request.urlopen(head, timeout=20).close()
    manager = tfds.download.DownloadManager(
      download_dir=download_dir,
      url_infos=builder.url_infos,
      dataset_name=name,
      force_checksums_validation=True,
    )
    downloads: Any = manager.download(dict(files))
    return {
      file: _link(pathlib.Path(downloads[file]), download_dir / name / file)
      for file in files
    }
  except (
    OSError,  # The base class of the errors of urllib and requests too.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:160]
    raise InputError(
      f'dataset = {name!r}: tensorflow-datasets could not download it from'
      f' {min(files.values(), key=len)} into {download_dir} ({reason}); put the'
      ' original files in a folder and set data_dir to it'
    ) from error


def _link(path: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
  """Links a file under a second name; copies it if links are not supported."""
  name.unlink(missing_ok=True)
  try:
    os.link(path, name)
  except OSError:
    shutil.copyfile(path, name)
  return name


def unpack(archive: pathlib.Path, names: Sequence[str]) -> None:
  """Extracts files of an archive, from any of its folders, next to it."""
  with tarfile.open(archive) as tar:
    for member in tar:
      name = pathlib.PurePosixPath(member.name).name
      content = tar.extractfile(member) if name in names else None
      if content is not None:
        part = archive.parent / f'{name}.part'
        part.write_bytes(content.read())
        part.replace(archive.parent / name)  # Never half a file.
