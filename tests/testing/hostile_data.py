"""Defines cases of invalid data, like those of `hostile_inputs`.

The data are ambiguous, changed, of another kind or endless; each case is one
line that names what, where and the rule.

"""

from collections.abc import Callable
import gzip
import json
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from fedavg_jax.core.client_data import Examples
from fedavg_jax.data import stored_writer
from tests.testing.hostile_inputs import Case
from tests.testing.hostile_inputs import key
from tests.testing.hostile_inputs import leaf
from tests.testing.hostile_inputs import texts

Prepare = Callable[[pathlib.Path], object]


def _first(**changes: Any) -> Callable[[dict], object]:
  """Changes the only user of one of LEAF's files."""
  return lambda tree: tree['user_data']['a'].update(changes)


def _twice(folder: pathlib.Path) -> None:
  leaf(lambda tree: None).prepare(folder)
  path = folder / 'leaf' / 'train' / 'all.json'
  path.with_name('all.json.gz').write_bytes(gzip.compress(path.read_bytes()))


def _spelt_twice(folder: pathlib.Path) -> None:
  """Makes two users in two files, whose names look alike."""
  leaf(lambda tree: None).prepare(folder)
  path = folder / 'leaf' / 'train' / 'all.json'
  for name, user in (('b', 'é'), ('c', 'e\u0301')):
    content = path.read_text().replace('"a"', json.dumps(user))
    path.with_name(f'{name}.json').write_text(content)


def _leaf_key_twice(folder: pathlib.Path) -> None:
  leaf(lambda tree: None).prepare(folder)
  path = folder / 'leaf' / 'train' / 'all.json'
  path.write_text(path.read_text().replace('"y"', '"y": [1, 1], "y"'))


def _named(dataset: str, prepare: Prepare, *words: str) -> Case:
  """Makes a case with a folder `in`, which `prepare` fills."""

  def make(folder: pathlib.Path) -> None:
    (folder / 'in').mkdir()
    prepare(folder / 'in')

  model = 'word_lstm' if dataset == 'words' else 'char_lstm'
  args = [f'--config.dataset={dataset}', '--config.data_dir=in']
  args += ['--config.partition=natural', '--config.num_clients=0']
  return Case([*args, f'--config.model={model}'], list(words), make)


def _write(**contents: str | bytes) -> Prepare:
  """Writes files by name, in which `_` is a dot."""

  def write(folder: pathlib.Path) -> None:
    for name, content in contents.items():
      data = content.encode() if isinstance(content, str) else content
      (folder / name.replace('_', '.')).write_bytes(data)

  return write


def _zip(path: pathlib.Path, name: str, content: str) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(name, content)


PLAY = 'Play\nSCENE\tHere\n\n' + 'A\tone line\n\ttwo lines\n' * 9


def _play_twice(folder: pathlib.Path) -> None:
  (folder / 'hamlet.txt').write_text(PLAY)
  _zip(folder / 'hamlet.zip', 'hamlet.txt', PLAY)


def _book_twice(folder: pathlib.Path) -> None:
  (folder / '100-0.txt').write_text(PLAY)
  _zip(folder / 'pg100.zip', 'pg100.txt', PLAY)


def _trace(content: str | bytes, *words: str) -> Case:
  data = content.encode() if isinstance(content, str) else content
  return Case(
    ['--config.availability_trace=trace.csv'],
    ['trace.csv', *words],
    lambda folder: (folder / 'trace.csv').write_bytes(data),
  )


def _federation(folder: pathlib.Path) -> None:
  """Writes a federation of three clients of two images each."""
  y = np.array([0, 1], np.int32)
  clients = [Examples(np.full((2, 4, 4, 1), k, np.uint8), y) for k in range(3)]
  options: Any = {'num_classes': 2, 'max_value': 255.0, 'source': {}}
  stored_writer.write(folder / 'f', iter(clients), clients[0], **options)


def stored(change: Prepare, *words: str) -> Case:
  """Makes a case of a federation on disk that was changed."""

  def prepare(folder: pathlib.Path) -> None:
    _federation(folder)
    change(folder / 'f')

  args = ['--config.dataset=stored', '--config.data_dir=f']
  args += ['--config.partition=natural', '--config.num_clients=0']
  return Case(args, list(words), prepare)


def tampered(change: Callable[[dict], object], *words: str) -> Case:
  """Makes a case of a federation whose description was changed."""

  def edit(folder: pathlib.Path) -> None:
    path = folder / 'federation.json'
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))

  return stored(edit, 'federation.json', *words)


def _shard(**changes: Any) -> Callable[[dict], object]:
  return lambda found: found['shards'][0].update(changes)


def _file(name: str, **changes: Any) -> Callable[[dict], object]:
  return lambda found: found['shards'][0][name].update(changes)


def _pipe(name: str) -> Prepare:
  def replace(folder: pathlib.Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

  return replace


def _written(name: str, content: bytes) -> Prepare:
  return lambda folder: (folder / name).write_bytes(content)


_LEAF = ('--config.dataset=leaf', '--config.data_dir=leaf')

USERS = {
  'a file and its archive': Case(
    [*_LEAF], ["'all.json' and 'all.json.gz' are one name"], _twice
  ),
  'one name spelt twice': Case(
    [*_LEAF], ["'\\xe9' and 'e\\u0301' are one name"], _spelt_twice
  ),
  'a key twice': Case(
    [*_LEAF], ['all.json', "duplicate key 'y'"], _leaf_key_twice
  ),
  'no pixels': leaf(_first(x=[[], []]), "user 'a'", 'the shape [2, 0]'),
  'single numbers': leaf(_first(x=[1, 0.5]), "user 'a'", 'the shape [2]'),
  'rows for labels': leaf(_first(y=[[0], [1]]), "user 'a'", 'not one-hot rows'),
  'a label too large': leaf(
    _first(y=[0, 2**31]), "user 'a'", '0 to 2147483648'
  ),
  'half a label': leaf(_first(y=[0, 0.5]), "user 'a'", '0.5 at row 1'),
  'a label of text': leaf(
    _first(y=['0', '1']), "user 'a'", 'y: expected whole numbers, got str'
  ),
  'another shape': leaf(
    _first(x=[[0.5] * 9] * 2), "user 'a'", '(3, 3, 1)', 'test/ (2, 2, 1)'
  ),
}

TEXTS = {
  'a key twice': texts(
    'words', '{"author": "a", "author": "b", "text": "c"}', 'line 1', 'once'
  ),
  'one author spelt twice': texts(
    'words',
    '{"author": "\u00e9", "text": "b c"}\n{"author": "e\u0301", "text": "b c"}',
    "'\\xe9' and 'e\\u0301' are one name",
  ),
  'half of UTF-16': texts('words', 'x', 'line 1')._replace(
    words=['byte order mark'],
    prepare=lambda folder: (folder / 'text').write_bytes(b'\xff\xfea'),
  ),
  'a pipe': texts('words', '')._replace(
    words=['text: is not a regular file'],
    prepare=lambda folder: os.mkfifo(folder / 'text'),
  ),
  'an author twice': _named(
    'words',
    _write(ann_txt='to be', ann_TXT='or not', bob_txt='that is'),
    "'ann.TXT' and 'ann.txt' are one name",
  ),
  'a play twice': _named(
    'shakespeare', _play_twice, "'hamlet.txt' and 'hamlet.zip' are one name"
  ),
  'the book twice': _named(
    'shakespeare', _book_twice, '100-0.txt and pg100.zip are the same plays'
  ),
  'hidden files alone': _named(
    'words', _write(_ann_txt='to be', Thumbs_db='x'), 'has no AUTHOR.txt'
  ),
}

TRACES = {
  'a column more': _trace('client,first,last\n0,1,2,3\n', 'line 2', '0,1,2,3'),
  'semicolons': _trace('client;first;last\n0;1;2\n', 'line 1 must be client,'),
  'a number of Python': _trace('client,first,last\n0,1,1_0\n', 'line 2'),
  'a point': _trace('client,first,last\n0,1,2.0\n', 'line 2', 'whole numbers'),
  'not text': _trace(b'\xff\xff', 'cannot be read'),
  'a spreadsheet': _trace(b'PK\3\4\0\0\xff', 'cannot be read'),
  'a quote without end': _trace('client,first,last\n"0,1,2\n', 'whole numbers'),
  'a pipe': _trace('')._replace(
    words=['trace.csv: is not a regular file'],
    prepare=lambda folder: os.mkfifo(folder / 'trace.csv'),
  ),
  'the home of nobody': key(
    'availability_trace', '~nobody-at-all/t.csv', '~nobody-at-all', 'read'
  ),
}

FEDERATIONS = {
  'a pipe': stored(
    _pipe('federation.json'), 'federation.json: is not a regular file'
  ),
  'a list': stored(_written('federation.json', b'[]'), 'federation.json'),
  'too deep': stored(
    _written('federation.json', b'[' * 99_999), 'federation.json'
  ),
  'not text': stored(_written('federation.json', b'\xff'), 'federation.json'),
  'a key twice': stored(
    _written('federation.json', b'{"format": 1, "format": 2}'),
    'federation.json',
    "duplicate key 'format'",
  ),
  'shards of text': tampered(
    lambda f: f.update(shards='all'), "shards = 'all'"
  ),
  'shards of paths': tampered(
    lambda f: f.update(shards=['../f']), "'../f' must be an object"
  ),
  'no shard': tampered(lambda f: f.update(shards=[]), 'shards = []'),
  'a size below 0': tampered(_file('x', shape=[-6, 4, 4, 1]), 'shape = [-6'),
  'another type': tampered(_file('x', dtype='<f8'), "dtype = '<f8'"),
  'no checksum': tampered(_file('y', sha256=None), 'sha256 = None'),
  'many classes': tampered(lambda f: f.update(num_classes=10**30), '= 10000'),
  'few classes': tampered(lambda f: f.update(num_classes=1), 'labels up to 1'),
  'no scale': tampered(lambda f: f.update(max_value=0), 'max_value = 0'),
  'a scale of text': tampered(lambda f: f.update(max_value='255'), 'max_value'),
  'a scale of nothing': tampered(lambda f: f.pop('max_value'), 'is missing'),
  'a sum of text': tampered(_shard(sum='many'), "sum = 'many'"),
  'labels of one': tampered(_shard(labels=[1]), 'labels = [1]'),
  'a test of nothing': tampered(lambda f: f.update(test=None), 'test = None'),
  'an array is a pipe': stored(
    _pipe('clients-00000-x.npy'), 'clients-00000-x.npy: is not a regular file'
  ),
  'sizes below 0': stored(
    lambda folder: np.save(
      folder / 'clients-00000-sizes.npy', np.array([-2, 6, 2])
    ),
    'a client has -2 examples',
  ),
  'a file': Case(
    ['--config.dataset=stored', '--config.data_dir=f'],
    ['federation.json', 'does not describe a federation'],
    lambda folder: (folder / 'f').write_text('mine'),
  ),
  'one folder too high': Case(
    ['--config.dataset=mnist', '--config.data_dir=home'],
    ['data_dir', 'did you mean home/mnist?'],
    lambda folder: (folder / 'home' / 'mnist').mkdir(parents=True),
  ),
}

CASES = {
  f'{kind}: {name}': case
  for kind, cases in {
    'users': USERS,
    'texts': TEXTS,
    'trace': TRACES,
    'stored': FEDERATIONS,
  }.items()
  for name, case in cases.items()
}
