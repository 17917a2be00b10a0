"""Readers of files return arrays or raise InputError, whatever the bytes."""

import gzip
import json
import lzma
import os
import tracemalloc

from hypothesis import HealthCheck
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data import readers
from fedavg_jax.data import texts

# CIFAR-10.


@pytest.mark.slow
def test_real_cifar10(real_data, tmp_path):
  """The file has the official layout: a label, then the planes of its image."""
  folder = real_data / 'cifar10'
  x = np.load(lzma.open(folder / 'test_images.npy.xz'))[:500]
  y = np.load(folder / 'test_labels.npy')[:500]
  with open(tmp_path / 'test_batch.bin', 'wb') as file:
    for image, label in zip(x, y, strict=True):
      file.write(bytes([int(label)]))
      for channel in range(3):
        file.write(image[:, :, channel].tobytes())
  read = readers.read_cifar10(tmp_path / 'test_batch.bin')
  np.testing.assert_array_equal(read.x, x)
  np.testing.assert_array_equal(read.y, y)
  assert (read.x.dtype, read.y.dtype) == (np.uint8, np.int32)


# LEAF's json.

LEAF = {
  'users': ['b', 'a'],
  'num_samples': [2, 1],
  'user_data': {
    'a': {'x': [[0.5, 1]], 'y': [3]},
    'b': {'x': [[0, 0.25], [1, 1]], 'y': [0, 61]},
  },
}


def leaf(tmp_path, tree, name='leaf.json'):
  path = tmp_path / name
  path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
  return readers.read_leaf(path)


def test_leaf(tmp_path):
  users = leaf(tmp_path, LEAF)
  assert list(users) == ['b', 'a']
  np.testing.assert_array_equal(users['b'].x, [[0, 0.25], [1, 1]])
  np.testing.assert_array_equal(users['b'].y, [0, 61])
  np.testing.assert_array_equal(users['a'].x, [[0.5, 1]])
  assert users['a'].x.dtype == np.float32 and users['a'].y.dtype == np.int32


def test_leaf_of_a_user_without_examples(tmp_path):
  tree = json.loads(json.dumps(LEAF))
  tree['users'].append('c')
  tree['num_samples'].append(0)
  tree['user_data']['c'] = {'x': [], 'y': []}
  users = leaf(tmp_path, tree)
  assert users['c'].x.shape == (0, 2) and users['c'].y.shape == (0,)


@pytest.mark.slow
def test_real_femnist(real_data):
  folder = real_data / 'femnist_leaf' / 'train'
  users = {}
  for path in sorted(folder.glob('*.json.gz')):
    users |= readers.read_leaf(path)
  assert len(users) >= 105
  x = np.concatenate([e.x for e in users.values()])
  y = np.concatenate([e.y for e in users.values()])
  assert x.shape[1:] == (784,) and 0 <= x.min() and x.max() == 1.0
  assert (y.min(), y.max()) == (0, 61)
  assert np.median(x) == 1.0  # The background is white.


def without(key):
  return {k: v for k, v in LEAF.items() if k != key}


def with_user(**changes):
  user = LEAF['user_data']['b'] | changes
  return LEAF | {'user_data': LEAF['user_data'] | {'b': user}}


BAD_LEAF = {
  'nothing': ('', 'is not JSON'),
  'cut': (json.dumps(LEAF)[:-20], 'is not JSON'),
  'nan': (json.dumps(LEAF).replace('0.25', 'NaN'), 'NaN is not a JSON number'),
  'infinity': (json.dumps(LEAF).replace('0.25', '-Infinity'), '-Infinity'),
  'too large': (json.dumps(LEAF).replace('0.25', '1e99'), 'must be finite'),
  'too many digits': (
    json.dumps(LEAF).replace('61', '9' * 9999),
    'is not JSON',
  ),
  'deep': ('[' * 99_999, 'is not JSON'),
  'a list': ([], 'must be an object with users'),
  'no users': (without('users'), 'must be an object'),
  'no counts': (without('num_samples'), 'must be an object'),
  'no data': (without('user_data'), 'must be an object'),
  'users as text': (LEAF | {'users': 'ab'}, 'must be lists'),
  'a count too few': (LEAF | {'num_samples': [2]}, '2 users but 1 num_samples'),
  'data as list': (LEAF | {'user_data': []}, 'no user_data'),
  'unknown user': (
    LEAF | {'users': ['b', 'z']},
    "user 'z' must be a unique name",
  ),
  'user twice': (
    LEAF | {'users': ['b', 'b']},
    "user 'b' must be a unique name",
  ),
  'user as list': (
    LEAF | {'users': ['b', [1]]},
    r'user \[1\] must be a unique name',
  ),
  'other count': (LEAF | {'num_samples': [2, 7]}, "'a': has 1 x and 1 y.*7"),
  'a y too few': (with_user(y=[3]), "'b': has 2 x and 1 y"),
  'x no list': (with_user(x=7), 'must have lists x and y'),
  'y missing': (with_user(y=None), 'must have lists x and y'),
  'x of text': (
    with_user(x=['to be', 'or not']),
    'x: expected numbers, got str',
  ),
  'x of nulls': (
    with_user(x=[[None, 1], [1, 1]]),
    'x: expected numbers, got NoneType',
  ),
  'x of bools': (
    with_user(x=[[True, True], [True, True]]),
    'x: expected numbers, got bool',
  ),
  'ragged x': (with_user(x=[[1, 2], [1]]), 'x must be numbers of one shape'),
  'y of fractions': (
    with_user(y=[0.5, 1]),
    'y: holds 0.5 at row 0, must be whole numbers',
  ),
  'y below 0': (with_user(y=[-1, 1]), r'y: holds -1 to 1, must be in \[0,'),
  'y too large': (with_user(y=[2**40, 1]), 'y: holds 1 to 1099511627776'),
  'y of lists': (with_user(y=[[1], [1]]), r'y: has the shape \[2, 1\]'),
  'y of nothing exact': (
    with_user(y=[2**70, 1]),
    'y: is object, must be whole',
  ),
  'x of numbers': (with_user(x=[1, 2]), r'x has the shape \[2\]; must have'),
  'x of nothing': (with_user(x=[[], []]), r'x has the shape \[2, 0\]'),
  'two shapes': (with_user(x=[[1], [1]]), r'shapes \[\(1,\), \(2,\)\]'),
}


@pytest.mark.parametrize('name', BAD_LEAF)
def test_bad_leaf(tmp_path, name):
  tree, said = BAD_LEAF[name]
  with pytest.raises(InputError, match=said) as info:
    leaf(tmp_path, tree)
  message = str(info.value)
  assert message.startswith(str(tmp_path / 'leaf.json')) and '\n' not in message


# Plays.

PLAY = """
\tA SMALL PLAY

\tDRAMATIS PERSONAE

KING\tof somewhere.

SCENE\tSomewhere.


\tA SMALL PLAY

ACT I

SCENE I\tA room.

\t[Enter KING and
\tFOOL, with a lute]

KING\tWho is there? [Aside] I know
\tit well.

FOOL:\tIt is I,

\t[Bows]

\tyour fool.

SECOND
MURDERER\tAnd I. [Exeunt

KING\tare led away]

\tA SMALL PLAY

ACT II

SCENE II:\tA street.

KING\tAlas.

\tEPILOGUE
"""


def test_a_play(tmp_path):
  (tmp_path / 'play.txt').write_text(PLAY)
  assert texts.read_play(tmp_path / 'play.txt') == {
    'KING': ['Who is there?  I know', 'it well.', 'Alas.'],
    'FOOL': ['It is I,', 'your fool.'],
    'SECOND MURDERER': ['And I.'],
  }


@pytest.mark.slow
def test_real_plays(real_data):
  roles, characters = 0, 0
  paths = sorted((real_data / 'shakespeare' / 'plays').glob('*.txt'))
  poems = []
  for path in paths:
    try:
      play = texts.read_play(path)
    except InputError:
      poems.append(path.stem)
      continue
    spoken = [lines for lines in play.values() if len(lines) >= 2]
    roles += len(spoken)
    characters += sum(len('\n'.join(lines)) for lines in spoken)
    for role in play:
      assert '\t' not in role and '[' not in role and role == role.strip()
  assert len(poems) == 5 and 'sonnets' in poems
  # McMahan et al. have 1,146 roles and 4.43 million characters.
  assert 1100 < roles < 1300
  assert 4.2e6 < characters < 4.5e6


# Any bytes.

BOOK = 'Contents\n\n ONE\n\n TWO\n\nONE\n' + 'A.\nsays\n\n' * 100 + 'TWO\nroses'

IDX = b'\0\0\x08\x03' + np.array((2, 3, 3), '>u4').tobytes() + bytes(range(18))
GOOD = {
  'idx': IDX,
  'cifar10': bytes(3073 * 2),
  'leaf': json.dumps(LEAF).encode(),
  'play': PLAY.encode(),
  'book': BOOK.encode(),
  'authors': b'{"author": "a", "text": "b c"}\n',
}
READERS = {
  'idx': lambda path: readers.read_idx(path, (2, 3, 3)),
  'cifar10': readers.read_cifar10,
  'leaf': readers.read_leaf,
  'play': texts.read_play,
  'book': texts.read_complete_works,
  'authors': texts.read_authors,
}
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(
      st.sampled_from(['users', 'num_samples', 'user_data', 'x', 'y', 'a']),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)


def read(name, path):
  """Returns what a reader returns, or None where it refuses in one line."""
  try:
    return READERS[name](path)
  except InputError as error:
    assert str(error).startswith(str(path)) and '\n' not in str(error)
    assert len(str(error)) < len(str(path)) + 600
    return None


fuzzed = settings(
  max_examples=200,
  deadline=2000,  # Milliseconds, so that nothing hangs.
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize('name', READERS)
def test_good_bytes_are_read(tmp_path, name):
  path = tmp_path / 'file'
  path.write_bytes(GOOD[name])
  plain = read(name, path)
  path.write_bytes(gzip.compress(GOOD[name]))
  assert plain is not None and read(name, path) is not None


@pytest.mark.parametrize('name', READERS)
@fuzzed
@given(content=st.binary(max_size=400), zipped=st.booleans())
@example(content=b'\x1f\x8b', zipped=False)
@example(content=b'', zipped=True)
def test_any_bytes(tmp_path, name, content, zipped):
  path = tmp_path / 'file'
  path.write_bytes(gzip.compress(content) if zipped else content)
  read(name, path)


@pytest.mark.parametrize('name', READERS)
@fuzzed
@given(data=st.data())
def test_good_bytes_that_are_damaged(tmp_path, name, data):
  """A slice of a valid file is left out, or replaced by other bytes."""
  good = GOOD[name]
  first = data.draw(st.integers(0, len(good)))
  last = data.draw(st.integers(first, min(len(good), first + 40)))
  piece = data.draw(st.binary(max_size=40))
  content = good[:first] + piece + good[last:]
  if data.draw(st.booleans()):
    content = gzip.compress(content)[: data.draw(st.integers(10, 4000))]
  path = tmp_path / 'file'
  path.write_bytes(content)
  read(name, path)


@fuzzed
@given(tree=JSON)
def test_any_json(tmp_path, tree):
  path = tmp_path / 'file'
  path.write_text(json.dumps(tree))
  read('leaf', path)


@fuzzed
@given(x=st.lists(JSON, max_size=3), y=st.lists(JSON, max_size=3), count=JSON)
def test_any_examples_of_leaf(tmp_path, x, y, count):
  tree = {'users': ['a'], 'num_samples': [count]}
  tree['user_data'] = {'a': {'x': x, 'y': y}}
  path = tmp_path / 'file'
  path.write_text(json.dumps(tree))
  users = read('leaf', path)
  if users is not None:
    assert len(users['a'].x) == len(users['a'].y) == count
    assert np.isfinite(users['a'].x).all()


@fuzzed
@given(text=st.text(alphabet='ACTSEN I[]:\tab\n\r\u2028\x1c', max_size=200))
def test_any_text_of_a_play(tmp_path, text):
  path = tmp_path / 'file'
  path.write_text('SCENE\tHere.\n' + text)
  play = read('play', path)
  if play is not None:
    assert all(lines and all(lines) for lines in play.values())
    for lines in play.values():
      assert not any('[' in line or ']' in line for line in lines)


BOMBS = {  # Made where they are used: packing takes a second.
  # NumPy's texts are as wide as the longest one, here 20,000 times.
  'a long text': lambda: json.dumps(
    {
      'users': ['a'],
      'num_samples': [20_001],
      'user_data': {
        'a': {'x': ['a' * 10**6] + ['b'] * 20_000, 'y': [0] * 20_001}
      },
    }
  ).encode(),
  'promises much': lambda: b'\0\0\x08\x03' + b'\xff' * 12,
  'unpacks to much': lambda: gzip.compress(bytes(2**28)),
  'unpacks to much behind a header': lambda: gzip.compress(IDX + bytes(2**28)),
  'json that unpacks to much': lambda: gzip.compress(
    b'[' + b'0,' * 2**26 + b'0]'
  ),
  'a play that unpacks to much': lambda: gzip.compress(
    b'SCENE\tx\n' + b'A\ta\n' * 2**25
  ),
}


@pytest.mark.parametrize('bomb', BOMBS)
@pytest.mark.parametrize('name', READERS)
def test_nothing_is_allocated_out_of_proportion(tmp_path, name, bomb):
  """A quarter of a MiB has 256 MiB in it; a header promises 79 billion GB."""
  path = tmp_path / 'file'
  content = BOMBS[bomb]()
  path.write_bytes(content)
  tracemalloc.start()
  try:
    read(name, path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The unpacked bytes and a copy as text; a Python object for each number.
  assert peak < 2**20 + 20 * 200 * len(content) / 8


def test_files_that_cannot_be_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with open(tmp_path / 'holes', 'wb') as file:
    file.truncate(2**40)  # A sparse file of 1 TiB.
  for name in READERS:
    for file in ('nowhere', '.', 'pipe', '/dev/zero'):
      assert read(name, tmp_path / file) is None
  for name in ('idx', 'cifar10'):
    assert read(name, tmp_path / 'holes') is None
