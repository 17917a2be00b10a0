"""Reads images from folders by client and label, with their exact values.

The files are train/CLIENT/LABEL/ANY.png and test/LABEL/ANY.png; clients and
labels are numbered in the natural order of their names.

An image of 1 bit becomes 0 and 255; one of 8 bits is unchanged, with all its
channels; a palette is replaced by its colours; 16 bits of grey become float32
whole numbers up to 65535. Other modes are refused, because a conversion would
clip or round them.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import logging
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple
import warnings

import numpy as np

from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import is_of_machine
from fedavg_jax.core.folders import check_names
from fedavg_jax.core.folders import entries
from fedavg_jax.core.folders import natural
from fedavg_jax.data.shard_writer import NamedExamples

_SUFFIXES = frozenset(
  (
    *('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.gif'),
    *('.tif', '.tiff', '.webp'),
  )
)
# Pillow supports more formats, some of which start other programs.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'TIFF', 'WEBP')
# Images of formats that are not read; they are refused, not skipped silently.
_OTHER_SUFFIXES = frozenset(
  (
    *('.heic', '.heif', '.avif', '.jp2', '.j2k', '.jxl', '.ppm', '.pgm'),
    *('.pbm', '.pnm', '.tga', '.ico', '.psd', '.dng', '.cr2', '.nef'),
    *('.raw', '.svg', '.eps', '.dcm', '.exr', '.hdr', '.apng', '.npy'),
  )
)


class _Like(NamedTuple):
  """Holds the shape and scale of an image, which all others must have.

  Attributes:
    path: the path of the image.
    shape: its shape, [H, W, C].
    max_value: the largest value that a pixel can have.
  """

  path: pathlib.Path
  shape: tuple[int, ...]
  max_value: float


class ImageFolders(NamedTuple):
  """Holds folders of images, which are read only when they are used.

  Attributes:
    owners: folders of the clients that have images.
    classes: names of the labels.
    like: the shape and scale of all images, those of the first test image.
    test: the test set.
  """

  owners: Sequence[pathlib.Path]
  classes: Sequence[str]
  like: '_Like'
  test: Examples

  def clients(self) -> Iterator[NamedExamples]:
    """Reads the clients one after another."""
    for owner in self.owners:
      x, y = _read(_files(owner, self.classes), self.like)
      yield NamedExamples(x, y, owner.name)


def open_images(folder: pathlib.Path) -> ImageFolders:
  """Lists clients and classes, and reads the test set.

  Raises:
    InputError: there are no images, one is outside the folders of the labels,
      or images of the test set differ in shape or type.
  """
  owners = _folders(folder / 'train')
  labels = {path.name for path in _folders(folder / 'test')}
  for owner in owners:
    labels |= {path.name for path in _folders(owner)}
  classes = sorted(labels, key=natural)
  check_names(classes, f'--path {folder}: classes')
  check_names([owner.name for owner in owners], f'--path {folder}: clients')
  owners = [owner for owner in owners if any(_files(owner, classes))]
  test = list(_files(folder / 'test', classes))
  if not owners or not test:
    raise InputError(
      f'--path {folder}: must contain train/CLIENT/LABEL/ANY.png and'
      ' test/LABEL/ANY.png'
    )
  pixels, max_value = read_image(test[0][0])
  like = _Like(test[0][0], pixels.shape, max_value)
  return ImageFolders(owners, classes, like, _read(test, like))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the folders in a folder that must not contain images itself."""
  found = entries(folder)
  for path in found:
    if _is_image(path) and not path.is_dir():
      raise InputError(
        f'{path}: must be in train/CLIENT/LABEL or test/LABEL, which name its'
        ' client and its label'
      )
  return [path for path in found if path.is_dir()]


def _files(
  folder: pathlib.Path, classes: Sequence[str]
) -> Iterator[tuple[pathlib.Path, int]]:
  """Lists the images of a folder with their labels."""
  for label, name in enumerate(classes):
    for path in entries(folder / name):
      if path.is_dir():
        raise InputError(
          f'{path}: is a folder; images must be in train/CLIENT/LABEL or'
          ' test/LABEL'
        )
      if path.suffix.lower() in _OTHER_SUFFIXES:
        raise InputError(
          f'{path}: must be one of {", ".join(sorted(_SUFFIXES))}; convert it'
          ' first, or remove it'
        )
      if path.suffix.lower() in _SUFFIXES:
        yield path, label


def _is_image(path: pathlib.Path) -> bool:
  return path.suffix.lower() in _SUFFIXES | _OTHER_SUFFIXES


def _read(files: Iterable[tuple[pathlib.Path, int]], like: _Like) -> Examples:
  """Reads images that must have the shape and the scale of another."""
  x, y = [], []
  for path, label in files:
    pixels, largest = read_image(path)
    if pixels.shape != like.shape or largest != like.max_value:
      raise InputError(
        f'{path}: has the shape {pixels.shape} and values up to {largest:g},'
        f' {like.path} has {like.shape} and {like.max_value:g}; must be equal'
      )
    x.append(pixels)
    y.append(label)
  return Examples(np.stack(x), np.array(y, np.int32))


def read_image(path: pathlib.Path) -> tuple[np.ndarray, float]:
  """Reads an image, [H, W, C] uint8 or float32, and its largest value.

  Raises:
    InputError: it cannot be read, or some of its values cannot be converted
      exactly.
  """
  from PIL import Image  # Only this function needs it.

  if not path.is_file():
    # A pipe would never end.
    raise InputError(f'{path}: is not a regular file')
  try:
    with _one_line():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      with Image.open(path, formats=_FORMATS) as image:
        pixels, max_value = _pixels(path, image)
  except (InputError, MemoryError):
    raise
  except Exception as error:  # A damaged file can make Pillow raise anything.
    if is_of_machine(error):
      raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(
      f'{path}: cannot be read as an image ({reason[:100]})'
    ) from error
  return pixels.reshape(*pixels.shape[:2], -1), max_value


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
  """Silences Pillow and its libraries, so that an error is one line.

  Pillow warns and logs; libtiff, with which it reads TIFF, writes errors of
  damaged files directly to the process's stderr.
  """
  log = logging.getLogger('PIL')
  level, stderr = log.level, -1
  with contextlib.suppress(OSError):  # The process may have closed its stderr.
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
  log.setLevel(logging.CRITICAL)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    log.setLevel(level)
    if stderr >= 0:
      os.dup2(stderr, 2)
      os.close(stderr)


def _pixels(path: pathlib.Path, image: Any) -> tuple[np.ndarray, float]:
  mode, wide = image.mode, _is_wide(image) and image.mode not in ('I', 'F')
  # Further frames of an MPO are the camera's previews of the first.
  if image.format != 'MPO' and getattr(image, 'n_frames', 1) > 1:
    raise InputError(f'{path}: has {image.n_frames} frames; must have one')
  grey = mode in ('I;16', 'I;16L', 'I;16B', 'I;16N')
  if grey or (mode == 'I' and image.format == 'PNG'):  # 'I' in Pillow 10.
    return np.asarray(image).astype(np.float32), 65535.0
  if wide or mode not in ('1', 'L', 'LA', 'RGB', 'RGBA', 'P', 'PA'):
    raise InputError(
      f'{path}: has the mode {mode}{" of 16 bits" if wide else ""}; must be of'
      ' 1 or 8 bits (grey, colours, with or without alpha) or 16 bits of grey'
    )
  if mode in ('P', 'PA'):
    clear = mode == 'PA' or 'transparency' in image.info
    image = image.convert('RGBA' if clear else 'RGB')
  pixels = np.asarray(image)
  return pixels.astype(np.uint8) * (255 if mode == '1' else 1), 255.0


def _is_wide(image: Any) -> bool:
  """Returns whether Pillow would cut 16 bits, or stretch 5 bits, to 8.

  The first argument of the decoder is the file's own mode, such as RGB;16B.
  """
  for tile in image.tile:
    args = tile[-1]
    first = args[0] if isinstance(args, tuple) and args else args
    if isinstance(first, str) and re.search(r';(12|15|16|32)', first):
      return True
  return False
