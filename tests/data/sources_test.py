"""A conversion keeps the values of its source exactly, or refuses in one line.

Every refusal leaves the file system unchanged.

"""

import io
import json
import os
import re
import struct
import zipfile

import numpy as np
from PIL import Image
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import forms
from fedavg_jax.data import image_folders
from fedavg_jax.data import stored
from fedavg_jax.data.catalog import load_dataset
from tests.testing.conversions import convert
from tests.testing.conversions import refused

# Arrays and generators have one form for every dtype.


def images(dtype, top=255):
  x = np.linspace(0, top, 48).reshape(3, 4, 4)
  return x.astype(dtype)


@pytest.mark.parametrize(
  ('x', 'dtype', 'largest'),
  [
    (images('u1'), np.uint8, 255),
    (images(bool), np.uint8, 1),
    (images('i8'), np.uint8, 255),
    (images('>i2'), np.uint8, 255),
    (images('u2', 65535), np.float32, 65535),
    (images('>u2', 65535), np.float32, 65535),
    (images('f8', 1), np.float32, 1),
    (images('f2', 1), np.float32, 1),
    (images('>f4', 1), np.float32, 1),
  ],
)
def test_images_of_every_dtype_arrive_exactly(x, dtype, largest):
  own, max_value = forms.form(x, [0, 1, 1], 'mine')
  assert own.x.dtype == dtype and own.x.shape == (3, 4, 4, 1)
  assert max_value == largest
  expected = x.astype(np.float32) if x.dtype.kind == 'f' else x
  assert own.x[..., 0].tolist() == expected.astype(own.x.dtype).tolist()
  assert own.x.max() <= max_value


@pytest.mark.parametrize('dtype', ['i1', 'u1', '<i4', '>i8', 'u8'])
def test_tokens_of_every_dtype(dtype):
  x = np.array([[0, 5], [100, 2]], dtype)
  own, max_value = forms.form(x, np.array([[1, -1], [2, 3]], np.int64), 'mine')
  assert own.x.dtype == own.y.dtype == np.int32 and max_value == 1
  assert own.x.tolist() == x.tolist() and own.y.tolist() == [[1, -1], [2, 3]]


@pytest.mark.parametrize(
  ('x', 'y', 'words'),
  [
    (3.0, [0], 'x has the shape []; must have rows of values'),
    ([1.0, 2.0], [0, 1], 'x has the shape [2]'),
    (np.zeros((2, 0)), [0, 1], 'x has the shape [2, 0]'),
    (np.zeros((2, 4, 0, 1)), [0, 1], 'x has the shape [2, 4, 0, 1]'),
    (images('i8', 256), [0, 1, 1], 'x is int64 with 0 to 256'),
    (-images('i8'), [0, 1, 1], 'x is int64 with -255 to 0'),
    (images('u4', 2**20), [0, 1, 1], 'x is uint32'),
    (images('f8', 1e300), [0, 1, 1], 'too large for float32'),
    (images('c8'), [0, 1, 1], 'x: is complex64, must be real numbers'),
    (images('U'), [0, 1, 1], 'x: is <U'),
    (images('O'), [0, 1, 1], 'x: is object'),
    (images('u1'), [0, 1], '3 inputs, but 2 labels'),
    (images('u1'), [[0], [1], [1]], 'y: has the shape [3, 1], must have [n]'),
    (images('u1'), np.eye(3), 'y: has the shape [3, 3]'),
    (images('u1'), [0, 1, 2**31], 'y: holds 0 to 2147483648'),
    (images('u1'), [0, 1, -1], 'y: holds -1 to 1'),
    (images('u1'), [0, 1, 0.5], 'y: holds 0.5 at row 2'),
    (images('u1'), [0, 1, np.nan], 'y: holds nan at row 2'),
    (images('u1'), ['a', 'b', 'c'], 'y: is <U1'),
    (images('u1'), 3, 'y: has the shape []'),
    (np.array([[-1, 2]]), np.array([[0, 1]]), 'x: holds -1 to 2'),
    (np.array([[1, 2**40]]), np.array([[0, 1]]), 'x: holds 1 to 1099511627776'),
    (np.array([[1, 2]]), np.array([[0, -2]]), 'y: holds -2 to 0'),
  ],
)
def test_forms_that_are_refused(x, y, words):
  with pytest.raises(InputError, match=re.escape(words)) as caught:
    forms.form(x, y, 'mine')
  assert str(caught.value).startswith('mine') and '\n' not in str(caught.value)


def arrays(**changes):
  x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
  found = {'x': x, 'y': np.arange(6) % 3, 'client': np.arange(6) // 2}
  found |= {'x_test': x[:2], 'y_test': np.array([0, 2])}
  return found | changes


def test_a_label_of_255_in_bytes(tmp_path):
  y = np.array([255, 3, 255, 0, 1, 254], np.uint8)
  np.savez(tmp_path / 'a.npz', **arrays(y=y, y_test=y[:2]))
  own = convert('arrays', tmp_path / 'a.npz', tmp_path / 'out')
  assert np.asarray(own.clients.y).tolist() == y.tolist()
  assert own.num_classes == 256 and own.max_value == 255


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'x': arrays()['x'][:5]}, '5 rows of x, 6 of y and 6 of client'),
    ({'x': np.uint8(3)}, 'x has the shape []'),
    ({'y': np.int64(3)}, 'y []'),
    ({'client': np.int64(3)}, 'client []'),
    ({'client': np.arange(6)[:, None]}, 'client [6, 1]'),
    ({'client': np.arange(6) + 0.5}, 'client is float64; must be whole'),
    (
      {'client': np.array(list('aabbcc'))},
      'client.npy: expected real numbers, got <U1',
    ),
    ({n: a[:0] for n, a in arrays().items()}, 'has no rows'),
    ({'x_test': arrays()['x'][:0], 'y_test': []}, 'test set: x has the shape'),
    (
      {'x_test': arrays()['x'][:2, :1]},
      "client 0 ('0'): has examples",
    ),
    ({'x_test': arrays()['x'][:2] / 255}, 'client 0: its largest value is 255'),
    ({'y_test': np.array([0, 2**31])}, 'test set: y: holds 0 to 2147483648'),
    ({'y': np.arange(6) - 1}, 'client 0: y: holds -1'),
    ({'y': np.eye(6)}, 'client 0: y: has the shape'),
    ({'x': np.full((6, 2, 2), np.nan), 'x_test': np.ones((2, 2, 2))}, 'finite'),
    ({'y_test': np.array([[0], [2]])}, 'test set: y: has the shape [2, 1]'),
  ],
)
def test_arrays_that_are_refused(changes, words, tmp_path):
  np.savez(tmp_path / 'a.npz', **arrays(**changes))
  refused('arrays', tmp_path / 'a.npz', tmp_path, words)


def npz(tmp_path):
  np.savez_compressed(tmp_path / 'a.npz', **arrays())
  return (tmp_path / 'a.npz').read_bytes()


def header(shape):
  buffer = io.BytesIO()
  own = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(buffer, own)
  return buffer.getvalue()


def archive(**members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
    for name in arrays():
      own = io.BytesIO()
      np.save(own, arrays()[name])
      file.writestr(f'{name}.npy', members.get(name, own.getvalue()))
  return buffer.getvalue()


def encrypted():
  content = bytearray(archive())
  for mark, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
    start = 0
    while (start := content.find(mark, start)) >= 0:
      content[start + at] |= 1
      start += 4
  return bytes(content)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'cannot be read'),
    (b'PK\3\4', 'cannot be read'),
    (b'hello', 'cannot be read'),
    (archive()[:-30], 'cannot be read'),
    (archive()[: len(archive()) // 2], 'cannot be read'),
    (archive(x=b'\x93NUMPY\1\0\x10\0{[(')[:], 'cannot be read'),
    (archive(x=b''), 'cannot be read'),
    (archive(x=b'\x93NUMPY'), 'cannot be read'),
    (archive(x=header((2**40,))), 'expected 1,099,511,627,'),
    (archive(x=header((6, 2, 2)) + bytes(9)), 'x.npy: expected'),
    (encrypted(), 'cannot be read'),
    (archive().replace(b'\x08\0', b'\x63\0'), 'cannot be read'),
  ],
)
def test_damaged_archives(content, words, tmp_path):
  (tmp_path / 'a.npz').write_bytes(content)
  refused('arrays', tmp_path / 'a.npz', tmp_path, words)


def test_objects_are_never_unpickled(tmp_path):
  np.savez(tmp_path / 'a.npz', **arrays(x=np.array([{}] * 6)))
  refused('arrays', tmp_path / 'a.npz', tmp_path, 'cannot be read')


def test_pipes_and_folders_instead_of_files(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  refused('arrays', tmp_path / 'pipe', tmp_path, 'must be a file or a folder')
  refused('words', tmp_path / 'pipe', tmp_path, 'pipe: ')
  refused('arrays', '/dev/zero', tmp_path, 'must be a file or a folder')
  (tmp_path / 'in').mkdir()
  for name, array in arrays().items():
    np.save(tmp_path / 'in' / f'{name}.npy', array)
  (tmp_path / 'in' / 'y.npy').unlink()
  os.mkfifo(tmp_path / 'in' / 'y.npy')
  refused('arrays', tmp_path / 'in', tmp_path, 'y.npy: is not a regular file')


GENERATORS = {
  'raises': ('raise KeyError("my\\nkey")', 'fails at client -1 (KeyError'),
  'exits': ('import sys; sys.exit(3)', 'fails at client -1 (SystemExit: 3'),
  'gives nothing': ('yield from ()', 'yields nothing for -1'),
  'returns nothing': ('return None', 'fails at client -1 (TypeError'),
  'one array': (
    'yield np.zeros((2, 3))',
    'client -1: expected a pair of arrays, (x, y), got ndarray',
  ),
  'text': (
    'yield "xy"',
    'client -1: expected a pair of arrays, (x, y), got str',
  ),
  'three': (
    'yield 1, 2, 3',
    'client -1: expected a pair of arrays, (x, y), got tuple',
  ),
  'numbers': ('yield 1.0, 2', 'client -1: y must be an array'),
  'lengths': ('yield np.zeros((2, 3)), [0]', '2 inputs, but 1 labels'),
  'ragged': (
    'yield [[1], [1, 2]], [0, 1]',
    'client -1: x: must be an array of numbers (',
  ),
  'ends at once': (
    'if k == -1: yield np.zeros((2, 3)), [0, 1]',
    'no client has examples',
  ),
  'another shape': (
    'yield np.zeros((2, 3 + (k > 0))), [0, 1]\n  if k == -1: return\n'
    '  yield np.zeros((2, 4)), [0, 1]',
    'client 1: has examples float32[4], labels [], the test set float32[3]',
  ),
  'another scale': (
    'yield np.zeros((2, 3), "u1" if k < 0 else "f4"), [0, 1]',
    'client 0: its largest value is 1, that of the test set 255',
  ),
  'fails late': (
    'yield np.zeros((2, 3)), [0, 1]\n  if k == -1: return\n  1 / 0',
    'fails at client 1 (ZeroDivisionError',
  ),
  'a label too large': (
    'yield np.zeros((2, 3)), [0, 2**31]',
    'test set, client -1: y: holds 0 to 2147483648',
  ),
  'the model of the world': (
    'yield {}, []',
    'x: is a dict of arrays, must be one array',
  ),
}


@pytest.mark.parametrize('name', GENERATORS)
def test_generators_that_are_refused(name, tmp_path, monkeypatch):
  body, words = GENERATORS[name]
  module = f'mine_{abs(hash(name))}'
  (tmp_path / f'{module}.py').write_text(
    f'import numpy as np\n\ndef clients(k):\n  {body}\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr('sys.dont_write_bytecode', True)
  refused('generator', f'{module}:clients', tmp_path, words)


@pytest.mark.parametrize(
  ('module', 'words'),
  [
    ('raise RuntimeError("no")', 'must be module:function (RuntimeError: no'),
    ('import sys; sys.exit()', 'must be module:function (SystemExit'),
    ('clients = 3', 'clients is int, must be a function'),
    ('def (', 'must be module:function (SyntaxError'),
    ('', 'must be module:function (AttributeError'),
  ],
)
def test_modules_that_are_refused(module, words, tmp_path, monkeypatch):
  name = f'module_{abs(hash(module))}'
  (tmp_path / f'{name}.py').write_text(module)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr('sys.dont_write_bytecode', True)
  refused('generator', f'{name}:clients', tmp_path, words)


# Images.


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)


def folders(tmp_path, image=None):
  """Makes train/ of ann and bob, test/, each with a cat and a dog."""
  image = image or Image.fromarray(np.full((4, 4), 7, np.uint8))
  for label in ('cat', 'dog'):
    for where in ('test', 'train/ann', 'train/bob'):
      save(tmp_path / 'in' / where / label / '0.png', image)
  return tmp_path / 'in'


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
MODES = {
  '1': (Image.fromarray(GREY > 99), (GREY > 99) * 255, 255),
  'L': (Image.fromarray(GREY), GREY, 255),
  'LA': (Image.merge('LA', [Image.fromarray(GREY)] * 2), [GREY] * 2, 255),
  'RGB': (Image.merge('RGB', [Image.fromarray(GREY)] * 3), [GREY] * 3, 255),
  'RGBA': (Image.merge('RGBA', [Image.fromarray(GREY)] * 4), [GREY] * 4, 255),
  'I;16': (
    Image.fromarray(GREY.astype(np.uint16) * 257),
    GREY.astype(np.float32) * 257,
    65535,
  ),
}


@pytest.mark.parametrize('mode', MODES)
def test_images_of_every_mode_arrive_exactly(mode, tmp_path):
  image, expected, largest = MODES[mode]
  assert image.mode == mode
  save(tmp_path / 'a.png', image)
  pixels, max_value = image_folders.read_image(tmp_path / 'a.png')
  expected = np.asarray(expected)
  if expected.ndim == 3:
    expected = np.moveaxis(expected, 0, -1)
  assert max_value == largest
  np.testing.assert_array_equal(pixels, expected.reshape(16, 16, -1))


def test_a_palette_gives_its_colours(tmp_path):
  image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), 'P')
  image.putpalette([9, 8, 7, 0, 0, 255, 255, 1, 2])
  save(tmp_path / 'a.gif', image)
  pixels, largest = image_folders.read_image(tmp_path / 'a.gif')
  assert largest == 255
  assert pixels.tolist() == [
    [[9, 8, 7], [0, 0, 255]],
    [[255, 1, 2], [0, 0, 255]],
  ]


def deep_png():
  """Makes a PNG of 16 bits per channel, which Pillow silently cuts to 8."""

  def chunk(kind, content):
    import zlib

    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check

  import zlib

  rows = zlib.compress(b'\0' + struct.pack('>6H', 1, 2, 3, 4, 5, 65535))
  head = struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', rows)
    + chunk(b'IEND', b'')
  )


def animated():
  buffer = io.BytesIO()
  frames = [Image.fromarray(np.full((4, 4), k, np.uint8)) for k in (0, 99)]
  frames[0].save(buffer, 'GIF', save_all=True, append_images=frames[1:])
  return buffer.getvalue()


def as_bytes(image, kind):
  buffer = io.BytesIO()
  image.save(buffer, kind)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('a.png', deep_png(), 'has the mode RGB of 16 bits'),
    ('a.gif', animated(), 'has 2 frames; must have one'),
    (
      'a.jpg',
      as_bytes(Image.new('CMYK', (4, 4)), 'JPEG'),
      'has the mode CMYK; must be',
    ),
    ('a.tif', as_bytes(Image.new('F', (4, 4)), 'TIFF'), 'has the mode F'),
    ('a.tif', as_bytes(Image.new('I', (4, 4)), 'TIFF'), 'has the mode I'),
    ('a.png', b'', 'cannot be read as an image'),
    ('a.png', as_bytes(Image.new('L', (90, 90)), 'PNG')[:60], 'cannot be read'),
    ('a.png', b'GIF89a' + bytes(40), 'cannot be read as an image'),
    (
      'a.png',
      as_bytes(Image.new('1', (20_000, 20_000)), 'PNG'),
      'cannot be read as an image (Image size (400000000 pixels)',
    ),
    (
      'a.png',
      as_bytes(Image.new('L', (4, 5)), 'PNG'),
      'has the shape (5, 4',
    ),
    ('a.png', as_bytes(Image.new('RGB', (4, 4)), 'PNG'), 'has the shape'),
    ('a.png', as_bytes(Image.new('I;16', (4, 4)), 'PNG'), 'values up to 65535'),
  ],
)
@pytest.mark.parametrize('where', ['train/bob/dog', 'test/dog'])
def test_images_that_are_refused(name, content, words, where, tmp_path):
  place = folders(tmp_path)
  (place / where / name).write_bytes(content)
  refused('images', place, tmp_path, words)


@pytest.mark.parametrize(
  'where',
  [
    'train/ann/.ipynb_checkpoints/0-checkpoint.png',
    'test/.ipynb_checkpoints/0.png',
    'train/.ipynb_checkpoints/cat/0.png',
    'train/__MACOSX/cat/0.png',
    'test/__MACOSX/0.png',
    'train/ann/cat/._0.png',
    'train/ann/@eaDir/0.png',
    'train/ann/cat/Thumbs.db',
    'train/desktop.ini',
    '.DS_Store',
    'train/ann/.DS_Store',
    'train/$RECYCLE.BIN/dog/0.png',
    'train/System Volume Information/cat/0.png',
    'train/lost+found/cat/0.png',
    'train/README.txt',
  ],
)
def test_files_that_are_not_data_are_ignored(where, tmp_path):
  place = folders(tmp_path)
  (place / where).parent.mkdir(parents=True, exist_ok=True)
  (place / where).write_bytes((place / 'test/cat/0.png').read_bytes())
  own = convert('images', place, tmp_path / 'out')
  assert own.clients.num_clients == 2 and own.num_classes == 2
  assert np.asarray(own.clients.y).tolist() == [0, 1, 0, 1]
  assert own.test.y.tolist() == [0, 1]


@pytest.mark.parametrize(
  'where', ['train/0.png', 'train/ann/0.JPG', 'test/0.png', 'train/ann/cat/x/y']
)
def test_images_at_another_level_are_refused(where, tmp_path):
  place = folders(tmp_path)
  (place / where).parent.mkdir(parents=True, exist_ok=True)
  (place / where).write_bytes(b'')
  refused('images', place, tmp_path, 'must be in train/CLIENT/LABEL')


def test_names_have_numbers_in_natural_order(tmp_path):
  image = Image.fromarray(np.full((4, 4), 7, np.uint8))
  for client in ('client10', 'client9', 'client1'):
    for label in ('10', '9'):
      save(tmp_path / 'in' / 'train' / client / label / '0.png', image)
  save(tmp_path / 'in' / 'test' / '10' / '0.PNG', image)
  own = convert('images', tmp_path / 'in', tmp_path / 'out')
  assert stored.client_names(tmp_path / 'out') == [
    'client1',
    'client9',
    'client10',
  ]
  assert stored.describe(tmp_path / 'out').classes == ('9', '10')
  assert own.test.y.tolist() == [1]


def test_two_spellings_of_one_name(tmp_path):
  place = folders(tmp_path)
  for name in ('Jos\u00e9', 'Jose\u0301'):
    save(place / 'train' / name / 'cat' / '0.png', Image.new('L', (4, 4)))
  refused('images', place, tmp_path, 'are one name; must be different')


# LEAF and texts.


def leaf_file(users):
  return json.dumps(
    {
      'users': [name for name, _ in users],
      'num_samples': [len(rows) for _, rows in users],
      'user_data': {
        name: {'x': [[r] * 4 for r in rows], 'y': [int(r) for r in rows]}
        for name, rows in users
      },
    }
  )


def leaf_folder(tmp_path, *files):
  for split, contents in (('train', files), ('test', files[:1])):
    (tmp_path / 'in' / split).mkdir(parents=True)
    for k, users in enumerate(contents):
      (tmp_path / 'in' / split / f'f{k + 8}.json').write_text(leaf_file(users))
  return tmp_path / 'in'


def test_a_user_in_several_files_is_one_client(tmp_path):
  """Both readers join its examples; f10 follows f9."""
  place = leaf_folder(
    tmp_path,
    [('a', [0, 1]), ('b', [2])],
    [('c', [3]), ('a', [4])],
    [('a', [5]), ('b', [])],
  )
  dataset = load_dataset('leaf', str(place))
  assert dataset.client_names == ('a', 'b', 'c')
  assert dataset.train.y.tolist() == [0, 1, 4, 5, 2, 3]
  assert dataset.owners.tolist() == [0, 0, 0, 0, 1, 2]
  own = convert('leaf', place, tmp_path / 'out')
  assert own.clients.num_examples.tolist() == [4, 1, 1]
  assert np.asarray(own.clients.y).tolist() == [0, 1, 4, 5, 2, 3]
  assert stored.client_names(tmp_path / 'out') == ['a', 'b', 'c']
  np.testing.assert_array_equal(np.asarray(own.clients.x), dataset.train.x)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (
      leaf_file([('a', [0])]).replace('"x"', '"y": [1], "x"'),
      "duplicate key 'y'",
    ),
    (
      leaf_file([('\u00e9', [0]), ('e\u0301', [1])]),
      'are one name',
    ),
    (leaf_file([('a', [0]), ('a', [1])]), "user 'a' must be a unique name"),
    (
      leaf_file([('a', [0])]).replace('[0]', '[2147483648]'),
      'holds 2147483648 to 2147483648',
    ),
    ('[' * 10**5, 'is not JSON'),
    ('', 'is not JSON'),
  ],
)
def test_users_that_are_refused(content, words, tmp_path):
  place = leaf_folder(tmp_path, [('z', [0, 1])])
  (place / 'train' / 'g.json').write_text(content)
  refused('leaf', place, tmp_path, words)
  with pytest.raises(InputError, match=re.escape(words)):
    load_dataset('leaf', str(place))


def test_lines_of_json_end_where_json_says(tmp_path):
  """A string may contain U+2028 and the like; CR ends a line."""
  for name, ends, mark in (
    ('unix', '\n', b''),
    ('mac', '\r', b''),
    ('windows', '\r\n', b'\xef\xbb\xbf'),
  ):
    posts = [
      {'author': 'a', 'text': 'to be\u2028or \u0085not\x0c'},
      {'author': 'b', 'text': 'that is'},
    ]
    lines = [json.dumps(post, ensure_ascii=False) for post in posts]
    lines = [line.replace('\\u0085', '\u0085') for line in lines]
    path = tmp_path / name
    path.write_bytes(mark + (ends.join(lines) + ends).encode())
    dataset = load_dataset('words', str(path))
    assert dataset.client_names == ('a',), name
    assert (dataset.train.y >= 0).sum() == 3


def test_text_in_utf_16_and_files_in_capitals(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'ann.TXT').write_bytes('to be or not'.encode('utf-16'))
  (tmp_path / 'in' / 'bob.txt').write_text('that is the question')
  (tmp_path / 'in' / '._bob.txt').write_bytes(b'\xff\xff')
  assert load_dataset('words', str(tmp_path / 'in')).client_names == ('ann',)
  (tmp_path / 'in' / 'ann.txt').write_text('another')
  refused(
    'words', tmp_path / 'in', tmp_path, "'ann.TXT' and 'ann.txt' are one name"
  )


def test_a_play_in_two_files_is_refused(tmp_path):
  play = 'Hamlet\n\nSCENE\tElsinore.\n' + 'A\tline one\n\tline two\n' * 2
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'hamlet.txt').write_text(play)
  with zipfile.ZipFile(tmp_path / 'in' / 'hamlet.zip', 'w') as file:
    file.writestr('hamlet.txt', play)
  refused('shakespeare', tmp_path / 'in', tmp_path, 'are one name')


# Damaged folders of a federation.


@pytest.fixture
def federation(tmp_path):
  np.savez(tmp_path / 'a.npz', **arrays())
  convert('arrays', tmp_path / 'a.npz', tmp_path / 'out')
  return tmp_path / 'out'


def tampered(**changes):
  return lambda found: found | changes


def shard(**changes):
  def change(found):
    found['shards'][0] |= changes
    return found

  return change


def file_of(name, **changes):
  def change(found):
    found['shards'][0][name] |= changes
    return found

  return change


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda found: [], 'does not describe a federation'),
    (lambda found: 3, 'does not describe a federation'),
    (tampered(format='x'), 'does not describe a federation'),
    (tampered(version='x'), "expected format version 1, got 'x'"),
    (tampered(version=[]), 'expected format version 1, got []'),
    (tampered(num_classes=-1), 'num_classes = -1 is not a possible value'),
    (tampered(num_classes='3'), "num_classes = '3'"),
    (tampered(num_classes=True), 'num_classes = True'),
    (tampered(num_classes=2), 'labels up to 2 with num_classes = 2'),
    (tampered(max_value=0), 'max_value = 0'),
    (tampered(max_value=float('nan')), 'NaN is not a JSON number'),
    (tampered(padding=99), 'padding = 99'),
    (tampered(classes=[1]), 'classes = [1]'),
    (tampered(shards=[]), 'shards = []'),
    (tampered(shards={}), 'shards = {}'),
    (tampered(shards=[3]), '3 must be an object'),
    (tampered(test=None), 'test = None'),
    (shard(x=None), 'x = None'),
    (shard(clients=0), 'clients = 0'),
    (shard(clients=10**12), 'clients = 1000000000000'),
    (shard(clients=2), 'the arrays of a shard have different lengths'),
    (shard(labels=[2, 0]), 'labels = [2, 0]'),
    (shard(labels='ab'), "labels = 'ab'"),
    (shard(sum='1'), "sum = '1'"),
    (shard(sum=10**400), 'is not'),
    (file_of('x', dtype='|O'), "dtype = '|O'"),
    (file_of('x', dtype='<f8'), "dtype = '<f8'"),
    (file_of('x', shape=[]), 'shape = []'),
    (file_of('x', shape=[-1]), 'shape = [-1]'),
    (file_of('x', shape=[2**63]), 'shape = ['),
    (file_of('x', shape=[6, 9, 2, 1]), 'differ in shape or dtype'),
    (file_of('y', shape=[5]), 'different lengths'),
    (file_of('x', sha256=5), 'sha256 = 5'),
    (file_of('x', sha256='0' * 64), None),
    (file_of('x', bytes=7), 'expected 7 bytes'),
  ],
)
def test_a_tampered_description_is_one_line(federation, change, words):
  path = federation / 'federation.json'
  found = change(json.loads(path.read_text()))
  path.write_text(json.dumps(found))
  if words is None:  # Only the content shows the damage.
    stored.read(federation)
    words = 'checksum mismatch'
  else:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
      stored.read(federation)
    assert '\n' not in str(caught.value)
  with pytest.raises(InputError, match=re.escape(words)):
    stored.verify(federation)


def test_sizes_that_add_up_but_are_negative(federation):
  path = federation / 'clients-00000-sizes.npy'
  np.save(path, np.array([-2, 6, 2]))
  with pytest.raises(InputError, match='a client has -2 examples'):
    stored.read(federation)


def test_pipes_instead_of_shards(federation):
  path = federation / 'clients-00000-x.npy'
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(
    InputError, match='clients-00000-x.npy: is not a regular file'
  ):
    stored.read(federation)
