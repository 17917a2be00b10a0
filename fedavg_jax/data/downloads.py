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
  """Where tensorflow-datasets keeps downloads: $TFDS_DATA_DIR/downloads."""
  home = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(home).expanduser() / 'downloads'


def download(
  name: str, files: Mapping[str, str], download_dir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Gets files through tensorflow-datasets' download manager.

  It verifies size and SHA-256 against what tensorflow-datasets registers. The
  manager needs no TensorFlow, unlike the builders of these data sets, which
  encode every image with it. The verified files are linked under their own
  names into download_dir/NAME, where the next start finds them without
  tensorflow-datasets.

  Args:
    name: of the data set there.
    files: file name -> address.
    download_dir: where downloads are kept.

  Returns:
    File name -> path.

  Raises:
    InputError: no network, no space, or a wrong checksum.
  """
  import requests
  import tensorflow_datasets as tfds  # Heavy, and needed once.
  from tensorflow_datasets.core.download import download_manager

  builder: Any = tfds.builder_cls(name)
  try:
    # The manager would try for minutes; a machine without network knows now.
    requests.head(
      min(files.values(), key=len), timeout=20, allow_redirects=True
    )
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
    OSError,  # Those of requests are OSErrors too.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:160]
    raise InputError(
      f'dataset = {name!r}: tensorflow-datasets could not get it from'
      f' {min(files.values(), key=len)} into {download_dir} ({reason}); put the'
      ' original files in a folder and name it in data_dir'
    ) from error


def _link(path: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
  """Gives a file a second name; a copy where the file system has no links."""
  name.unlink(missing_ok=True)
  try:
    os.link(path, name)
  except OSError:
    shutil.copyfile(path, name)
  return name


def unpack(archive: pathlib.Path, names: Sequence[str]) -> None:
  """Copies files of an archive beside it, whatever folder they are in there."""
  with tarfile.open(archive) as tar:
    for member in tar:
      name = pathlib.PurePosixPath(member.name).name
      content = tar.extractfile(member) if name in names else None
      if content is not None:
        part = archive.parent / f'{name}.part'
        part.write_bytes(content.read())
        part.replace(archive.parent / name)  # Never half of it.
