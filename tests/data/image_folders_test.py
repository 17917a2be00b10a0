"""Images of cameras and programs are read exactly, or refused in one line."""

import io
import struct
import sys
import warnings

import numpy as np
from PIL import Image
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import image_folders
from tests.testing.conversions import convert
from tests.testing.conversions import refused

GREY = Image.fromarray(np.full((4, 4), 7, np.uint8))


def as_bytes(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def folders(place, kind='png', image=GREY):
  """Makes train/ of ann and bob with a cat each, and test/ with a cat."""
  for where in ('test/cat', 'train/ann/cat', 'train/bob/cat'):
    (place / where).mkdir(parents=True)
    pillow = {'jpg': 'JPEG', 'tif': 'TIFF'}.get(kind, kind.upper())
    (place / where / f'0.{kind}').write_bytes(as_bytes(image, pillow))
  return place


def tiff(order, bits, content, kind=1):
  """Makes a TIFF of 2 x 2 grey values.

  Args:
    order: the byte order of struct, '<' or '>'.
    bits: the number of bits of a value.
    content: the bytes of the values.
    kind: the sample format: 1 unsigned, 2 signed, 3 floating point.

  """
  tags = [(256, 2), (257, 2), (258, bits), (259, 1), (262, 1), (273, 134)]
  tags += [(277, 1), (278, 2), (279, len(content)), (339, kind)]
  head = {'<': b'II', '>': b'MM'}[order] + struct.pack(order + 'HI', 42, 8)
  rows = [struct.pack(order + 'HHIHH', t, 3, 1, v, 0) for t, v in tags]
  own = head + struct.pack(order + 'H', len(tags)) + b''.join(rows)
  return own + bytes(134 - len(own)) + content


@pytest.mark.parametrize('kind', ['bmp', 'tif', 'png', 'gif'])
@pytest.mark.parametrize('width', [12, 15, 16, 32, 160])
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_the_width_of_an_image_is_not_its_depth(kind, width, mode, tmp_path):
  channels = {'L': (), 'RGB': (3,)}[mode]
  pixels = np.full((3, width, *channels), 200, np.uint8)
  pixels[1] = 0
  Image.fromarray(pixels).save(tmp_path / f'a.{kind}')
  found, largest = image_folders.read_image(tmp_path / f'a.{kind}')
  assert found.shape[:2] == (3, width) and largest == 255
  assert (found == pixels.reshape(3, width, -1)).all()


@pytest.mark.parametrize('order', ['<', '>'])
def test_grey_of_16_bits_in_either_byte_order(order, tmp_path):
  content = struct.pack(order + '4H', 0, 1, 300, 65535)
  (tmp_path / 'a.tif').write_bytes(tiff(order, 16, content))
  pixels, largest = image_folders.read_image(tmp_path / 'a.tif')
  assert largest == 65535 and pixels.dtype == np.float32
  assert pixels.ravel().tolist() == [0, 1, 300, 65535]


def test_a_camera_image_with_a_preview(tmp_path):
  big, small = Image.new('RGB', (8, 6), (9, 9, 9)), Image.new('RGB', (4, 3))
  content = as_bytes(big, 'MPO', save_all=True, append_images=[small])
  (tmp_path / 'a.jpg').write_bytes(content)
  with Image.open(tmp_path / 'a.jpg') as image:
    assert image.format == 'MPO'
  pixels, _ = image_folders.read_image(tmp_path / 'a.jpg')
  assert pixels.shape == (6, 8, 3)


@pytest.mark.parametrize('suffix', ['jpe', 'jfif', 'JPEG', 'Png'])
def test_suffixes_of_the_same_formats(suffix, tmp_path):
  place = folders(tmp_path / 'in', 'png' if suffix == 'Png' else 'jpg')
  for path in list(place.rglob('0.*')):
    path.rename(path.with_suffix(f'.{suffix}'))
  own = convert('images', place, tmp_path / 'out')
  assert own.clients.x.shape == (2, 4, 4, 1)


POSTSCRIPT = as_bytes(Image.new('RGB', (4, 4)), 'EPS')
STRETCHED = (
  (b'BM' + struct.pack('<IHHI', 86, 0, 0, 54))
  + struct.pack('<IiiHHIIiiII', 40, 4, 4, 1, 16, 0, 32, 0, 0, 0, 0)
  + bytes(32)
)


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    # Pillow would start another program for this one.
    ('1.png', POSTSCRIPT, '1.png: cannot be read as an image'),
    ('1.png', as_bytes(GREY, 'PPM'), '1.png: cannot be read as an image'),
    ('1.bmp', STRETCHED, 'has the mode RGB of 16 bits'),
    ('1.tif', tiff('<', 16, bytes(8), kind=2), 'has the mode I; must be'),
    ('1.tif', tiff('<', 32, bytes(16), kind=3), 'has the mode F; must be'),
    ('1.heic', b'any', '1.heic: must be one of .bmp, .gif'),
    ('1.AVIF', b'any', '1.AVIF: must be one of .bmp, .gif'),
    ('1.npy', b'any', '1.npy: must be one of .bmp, .gif'),
    ('1.png', as_bytes(GREY.resize((4, 5)), 'PNG'), 'cat/0.png has (4, 4, 1)'),
  ],
)
def test_images_that_are_refused(name, content, words, tmp_path):
  place = folders(tmp_path / 'in')
  (place / 'train' / 'bob' / 'cat' / name).write_bytes(content)
  refused('images', place, tmp_path, words)


@pytest.mark.parametrize('where', ['train', 'train/ann', 'test'])
def test_an_image_of_another_format_at_another_level(where, tmp_path):
  place = folders(tmp_path / 'in')
  (place / where / 'x.heic').write_bytes(b'any')
  refused('images', place, tmp_path, 'x.heic: must be in train/CLIENT/LABEL')


def test_pillow_prints_nothing(tmp_path, recwarn, caplog, capfd):
  """Pillow warns and logs, and libtiff does print to stderr."""
  with warnings.catch_warnings():
    warnings.simplefilter('always')
    content = bytearray(tiff('<', 8, bytes([1, 2, 3, 4])))
    content[10 + 9 * 12 + 4] = 90  # 90 values reach beyond the end.
    (tmp_path / 'a.tif').write_bytes(content)
    pixels, _ = image_folders.read_image(tmp_path / 'a.tif')
  assert pixels.ravel().tolist() == [1, 2, 3, 4] and not recwarn.list
  noise = np.random.default_rng(0).integers(0, 256, (90, 90)).astype(np.uint8)
  packed = as_bytes(Image.fromarray(noise), 'TIFF', compression='tiff_lzw')
  (tmp_path / 'b.tif').write_bytes(packed[:200] + bytes(200) + packed[400:])
  with pytest.raises(InputError, match='b.tif: cannot be read as an image'):
    image_folders.read_image(tmp_path / 'b.tif')
  many = bytearray(tiff('<', 8, bytes([1, 2, 3, 4])))
  many[10 + 6 * 12 + 8] = 99  # Samples per pixel.
  (tmp_path / 'c.tif').write_bytes(many)
  with pytest.raises(InputError, match='c.tif: cannot be read as an image'):
    image_folders.read_image(tmp_path / 'c.tif')
  assert capfd.readouterr() == ('', '') and not caplog.records
  print('stderr is back', file=sys.stderr)
  assert capfd.readouterr().err == 'stderr is back\n'
