"""A federation on disk is read as it was written; damage is reported."""

import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import catalog
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer
from fedavg_jax.data.dataset import in_memory
from fedavg_jax.data.shard_writer import NamedExamples
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import run_config
from fedavg_jax.runs import train

SIZES = (1, 5, 3, 8, 2, 7, 40)


def examples(kind='uint8'):
  """Returns the examples of each client; one has a single example."""
  rng = np.random.default_rng(3)
  parts = []
  for size in SIZES:
    if kind == 'tokens':
      x = rng.integers(0, 90, (size, 6)).astype(np.int32)
      y = rng.integers(NO_LABEL, 4, (size, 6)).astype(np.int32)
    else:
      x = rng.integers(0, 256, (size, 4, 4, 1)).astype(kind)
      y = rng.integers(0, 4, size).astype(np.int32)
    parts.append(Examples(x, y))
  return parts


def write(folder, parts, **changes):
  options = {
    **{'num_classes': 4, 'max_value': 255.0, 'source': {'of': 'a test'}},
    **{'shard_bytes': 200},
  } | changes
  test = options.pop('test') if 'test' in options else parts[1]
  stored_writer.write(folder, iter(parts), test, **options)


@pytest.mark.parametrize('kind', ('uint8', 'float32', 'tokens'))
@pytest.mark.parametrize('shard_bytes', (1, 200, 10**6))
def test_what_is_read_is_what_was_written(kind, shard_bytes, tmp_path):
  parts = examples(kind)
  known = 90 if kind == 'tokens' else 4
  write(tmp_path / 'f', parts, shard_bytes=shard_bytes, num_classes=known)
  own = stored.read(tmp_path / 'f')
  x, y = map(np.concatenate, zip(*parts, strict=True))
  np.testing.assert_array_equal(own.clients.num_examples, SIZES)
  for got, expected in ((own.clients.x, x), (own.clients.y, y)):
    np.testing.assert_array_equal(np.asarray(got), expected)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert got.nbytes == expected.nbytes and len(got) == len(expected)
    for first in range(len(expected) + 1):
      for stop in range(first, len(expected) + 1):
        rows = got[first:stop]
        assert rows.dtype == expected.dtype
        np.testing.assert_array_equal(rows, expected[first:stop])
  assert (own.clients.y.min(), own.clients.y.max()) == (y.min(), y.max())
  np.testing.assert_array_equal(own.test.x, parts[1].x)
  np.testing.assert_array_equal(own.test.y, parts[1].y)
  scaled = x.astype(np.float64) / 255
  np.testing.assert_allclose(own.statistics, (scaled.mean(), scaled.std()))
  some = {'uint8': 2, 'float32': 5, 'tokens': 4}[kind]
  shards = {1: 7, 200: some, 10**6: 1}[shard_bytes]
  assert stored.verify(tmp_path / 'f') == 3 * shards + 2


def test_an_interrupted_conversion_resumes(tmp_path):
  """All that was written is used; the result is that of one conversion."""
  parts = examples()

  def clients(fail_after):
    for number, own in enumerate(parts):
      if number == fail_after:
        raise KeyboardInterrupt
      yield own

  write(tmp_path / 'whole', parts)
  options = {'num_classes': 4, 'max_value': 255.0, 'source': {'of': 'a test'}}
  for fail_after in (0, 4, 6):
    with pytest.raises(KeyboardInterrupt):
      stored_writer.write(
        tmp_path / 'f',
        clients(fail_after),
        parts[1],
        shard_bytes=200,
        **options,
      )
    with pytest.raises(InputError, match='conversion has not finished'):
      stored.read(tmp_path / 'f')
  with open(tmp_path / 'f' / 'conversion.jsonl', 'a') as file:
    file.write('{"half of a li')
  with pytest.raises(InputError, match='has a conversion with another source'):
    write(tmp_path / 'f', parts, source={'of': 'another'})
  write(tmp_path / 'f', parts)
  content = [
    {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    for name in ('whole', 'f')
  ]
  assert content[0] == content[1]
  with pytest.raises(InputError, match='already has a federation'):
    write(tmp_path / 'f', parts)


def test_a_conversion_killed_after_its_last_shard_can_be_read(tmp_path):
  write(tmp_path / 'f', examples())
  (tmp_path / 'f' / 'conversion.jsonl').write_text('{}')
  assert stored.read(tmp_path / 'f').clients.num_clients == len(SIZES)


def test_a_conversion_does_not_resume_from_a_changed_source(tmp_path):
  parts = examples()
  with pytest.raises(RuntimeError):
    write(tmp_path / 'f', parts, wrote=stop_after(2))
  before = listing(tmp_path)
  test = Examples(*(array.copy() for array in parts[1]))
  for change in (
    lambda: np.bitwise_xor(parts[0].x, 1, out=parts[0].x),
    lambda: np.subtract(3, parts[2].y, out=parts[2].y),  # Only the labels.
    lambda: parts.__delitem__(2),
    lambda: parts.insert(0, parts[0]),
  ):
    kept = [Examples(*(array.copy() for array in own)) for own in parts]
    change()
    with pytest.raises(InputError, match='of the source have changed since'):
      write(tmp_path / 'f', parts, test=test)
    assert listing(tmp_path) == before
    parts[:] = kept
  other = test._replace(y=3 - test.y)
  with pytest.raises(InputError, match='has a conversion with another test'):
    write(tmp_path / 'f', parts, test=other)
  assert listing(tmp_path) == before
  write(tmp_path / 'f', parts, test=test)
  same(tmp_path / 'f', [*parts, test])


def listing(folder):
  """Returns every path below a folder, with the content of files."""
  return {p: p.is_file() and p.read_bytes() for p in folder.rglob('*')}


@pytest.mark.parametrize('again', [False, True])
def test_a_conversion_that_fails_on_its_data_leaves_nothing(tmp_path, again):
  """The files of an earlier, interrupted conversion are removed too."""
  parts = examples()
  if again:
    with pytest.raises(RuntimeError):
      write(tmp_path / 'new' / 'f', parts, wrote=stop_after(1))
  bad = [*parts[:-1], parts[-1]._replace(y=parts[-1].y + 9)]
  with pytest.raises(InputError, match='client 6: labels are'):
    write(tmp_path / 'new' / 'f', bad, test=parts[1])
  assert not (tmp_path / 'new' / 'f').exists()
  assert again or not listing(tmp_path)


def test_a_bad_test_set_is_refused_before_anything_is_written(tmp_path):
  parts = examples()
  bad = parts[1]._replace(y=parts[1].y + 9)
  with pytest.raises(InputError, match='the test set: labels are'):
    write(tmp_path / 'f', parts, test=bad)
  assert not listing(tmp_path)


def test_a_folder_that_was_replaced_is_left_alone(tmp_path):
  """Another process has deleted it and started its own in the meantime."""
  folder = tmp_path / 'f'

  def wrote(clients, size):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / '.lock').touch()
    (folder / 'theirs').touch()

  with pytest.raises(InputError, match='was deleted or replaced by another'):
    write(folder, examples(), wrote=wrote)
  assert {p.name for p in folder.iterdir()} == {'.lock', 'theirs'}


def test_names_are_written_and_verified(tmp_path):
  named = [NamedExamples(*own, f'é{k}') for k, own in enumerate(examples())]
  write(tmp_path / 'f', named, test=examples()[1], classes=['a', 'b', 'c', 'd'])
  assert stored.client_names(tmp_path / 'f') == [own.name for own in named]
  assert stored.describe(tmp_path / 'f').classes == ('a', 'b', 'c', 'd')
  path = tmp_path / 'f' / 'clients-00000-names.json'
  path.write_bytes(path.read_bytes().replace(b'0', b'1'))
  with pytest.raises(InputError, match='names.json: checksum mismatch'):
    stored.client_names(tmp_path / 'f')


def stop_after(number):
  def wrote(clients, size):
    del clients, size
    nonlocal number
    number -= 1
    if not number:
      raise RuntimeError

  return wrote


def test_clients_without_examples_are_left_out(tmp_path):
  """Resumed conversions and shards without other clients are included."""
  parts, empty = examples(), Examples(*(a[:0] for a in examples()[1]))
  full = [empty, *parts[:3], *[empty] * 9, *parts[3:], empty]
  write(tmp_path / 'whole', full, test=parts[1])
  for i in (1, 2):
    with pytest.raises(RuntimeError):
      write(tmp_path / f'f{i}', full, test=parts[1], wrote=stop_after(i))
    write(tmp_path / f'f{i}', full, test=parts[1])
  for name in ('whole', 'f1', 'f2'):
    same(tmp_path / name, [*parts, parts[1]])


def test_many_shards_need_few_open_files(tmp_path):
  write(tmp_path / 'f', examples() * 6, shard_bytes=1)
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(
    resource.RLIMIT_NOFILE, (len(os.listdir('/dev/fd')) + 10, limits[1])
  )
  try:
    own = stored.read(tmp_path / 'f')
    assert np.asarray(own.clients.y).shape == (6 * sum(SIZES),)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shard_that_is_cut_while_it_is_read_is_reported(tmp_path):
  write(tmp_path / 'f', examples())
  own = stored.read(tmp_path / 'f')
  path = tmp_path / 'f' / 'clients-00000-y.npy'
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(InputError, match='00000-y.npy: was cut short'):
    own.clients.y[0 : sum(SIZES)]


def test_two_conversions_do_not_share_a_folder(tmp_path):
  def wrote(clients, size):
    with pytest.raises(InputError, match='is in use by another process'):
      write(tmp_path / 'f', examples())

  write(tmp_path / 'f', examples(), wrote=wrote)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def change(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def version(path):
  content = json.loads(path.read_text())
  path.write_text(json.dumps(content | {'version': 2}))


@pytest.mark.parametrize(
  'name, harm, said',
  [
    ('clients-00001-x.npy', pathlib.Path.unlink, 'is missing'),
    ('clients-00001-y.npy', cut, r'expected \d+ bytes, got \d+'),
    ('test-x.npy', cut, r'expected \d+ bytes, got \d+'),
    ('federation.json', version, 'expected format version 1, got 2'),
    ('federation.json', cut, 'does not describe a federation'),
    ('federation.json', pathlib.Path.unlink, 'must be in a folder that'),
    ('clients-00000-x.npy', change, None),
  ],
)
def test_damage_is_reported(name, harm, said, tmp_path):
  write(tmp_path / 'f', examples())
  harm(tmp_path / 'f' / name)
  if said is None:  # The file has the right length.
    stored.read(tmp_path / 'f')
    with pytest.raises(InputError, match=f'{name}: checksum mismatch'):
      stored.verify(tmp_path / 'f')
    return
  if said == 'does not describe a federation':
    (tmp_path / 'f' / name).write_text('{')
  with pytest.raises(InputError, match=said) as error:
    stored.read(tmp_path / 'f')
  assert name in str(error.value)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'num_classes': 3}, r'labels are 1 to 3; must be in \[0, 2\]'),
    ({'parts': 'nan'}, 'inputs must be finite'),
    ({'parts': 'shape'}, 'must have the same shape and dtype'),
    ({'parts': 'double'}, 'x is float64 and y int32'),
    ({'parts': 'none'}, 'no client has examples'),
    ({'parts': 'tree'}, 'the test set: is a tree of arrays'),
  ],
)
def test_invalid_federations_are_refused(changes, said, tmp_path):
  parts = examples()
  kind = changes.pop('parts', '')
  if kind == 'nan':
    parts = examples('float32')
    parts[2].x[0, 0] = np.nan
  if kind == 'shape':
    parts[2] = Examples(parts[2].x[:, :3], parts[2].y)
  if kind == 'double':
    parts = examples('float64')
  if kind == 'tree':
    parts[1] = Examples({'pixels': parts[1].x}, parts[1].y)
  test = parts[1]
  if kind == 'none':
    parts = []
  with pytest.raises(InputError, match=said):
    write(tmp_path / 'f', parts, test=test, **changes)


def config(folder, **changes):
  from configs import quickstart  # A user's own config would import it, too.

  config = quickstart.get_config()
  config.dataset, config.data_dir = 'stored', str(folder)
  config.partition, config.num_clients = 'natural', 0
  config.rounds, config.client.batch_size = 6, 3
  config.update_from_flattened_dict(changes)
  return config


def models(workdir):
  return jax.tree.leaves(checkpoint.load_params(workdir))


@pytest.mark.slow
@pytest.mark.parametrize('algorithm', ('fedavg', 'scaffold'))
@pytest.mark.parametrize('kind', ('uint8', 'float32'))
def test_a_run_from_disk_is_the_run_from_memory(algorithm, kind, tmp_path):
  """The bits are equal, wherever examples and client states are."""
  write(tmp_path / 'f', examples(kind))
  got = {}
  for name, changes in {
    'device': {},
    'host': {'examples_on': 'host', 'client_states_on': 'host'},
    'disk': {'examples_on': 'host', 'client_states_on': 'disk'},
  }.items():
    cfg = config(tmp_path / 'f', algorithm=algorithm, **changes)
    summary = train.train(cfg, tmp_path / name)
    lines = (tmp_path / name / 'metrics.jsonl').read_text()
    losses = re.findall(r'"train_loss": ([^,]*)', lines)
    got[name] = (
      checkpoint.digest(models(tmp_path / name)),
      losses,
      summary['status'],
    )
    assert len(losses) == 7
  assert got['host'] == got['device'] and got['disk'] == got['device']


def test_a_stored_federation_can_be_divided_again(tmp_path):
  write(tmp_path / 'f', examples())
  cfg = run_config.read(config(tmp_path / 'f', partition='iid', num_clients=11))
  federation = builders.prepare(cfg)
  np.testing.assert_array_equal(federation.clients.num_examples, [6] * 11)
  held = run_config.read(config(tmp_path / 'f', holdout_fraction=0.5))
  federation = builders.prepare(held)
  assert federation.held.num_examples.sum() > 20


@pytest.mark.slow
def test_a_run_does_not_resume_on_another_federation(tmp_path):
  write(tmp_path / 'f', examples())
  cfg = config(tmp_path / 'f', rounds=2)
  train.train(cfg, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'f')
  parts = examples()
  parts[0].x[0, 0] ^= 1
  write(tmp_path / 'f', parts)
  cfg.rounds = 4
  with pytest.raises(InputError, match='have changed: SHA-256'):
    train.train(cfg, tmp_path / 'run', extend=True)


def run(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'fedavg_jax', 'convert', *map(str, flags)],
    capture_output=True,
    text=True,
  )


def same(folder, expected):
  """Checks that a folder has these clients in their order, and the test set."""
  own = stored.read(folder)
  *clients, test = expected
  np.testing.assert_array_equal(
    own.clients.num_examples, [len(part.y) for part in clients]
  )
  x, y = map(np.concatenate, zip(*clients, strict=True))
  np.testing.assert_array_equal(np.asarray(own.clients.x), x)
  np.testing.assert_array_equal(np.asarray(own.clients.y), y)
  np.testing.assert_array_equal(own.test.x, test.x)
  np.testing.assert_array_equal(own.test.y, test.y)
  assert own.clients.x.dtype == x.dtype


@pytest.mark.parametrize('in_folder', (False, True))
def test_arrays(in_folder, tmp_path):
  parts = examples()
  x, y = map(np.concatenate, zip(*parts, strict=True))
  owner = np.repeat([40, 7, 13, 2, 99, 5, 6], SIZES)
  order = np.random.default_rng(0).permutation(len(y))
  arrays = {'x': x[order], 'y': y[order], 'client': owner[order]}
  arrays |= {'x_test': x[:9], 'y_test': y[:9]}
  path = tmp_path / 'clients.npz'
  if in_folder:
    path = tmp_path / 'clients'
    path.mkdir()
    for name, array in arrays.items():
      np.save(path / f'{name}.npy', array)
  else:
    np.savez(path, **arrays)
  done = run('--source=arrays', f'--path={path}', f'--out={tmp_path}/f')
  assert done.returncode == 0, done.stderr
  assert '7 clients, 66 examples' in done.stdout
  expected = [
    Examples(
      arrays['x'][arrays['client'] == k], arrays['y'][arrays['client'] == k]
    )
    for k in sorted(set(owner))
  ]
  same(tmp_path / 'f', [*expected, Examples(x[:9], y[:9])])


def test_images(tmp_path):
  rng = np.random.default_rng(0)
  expected = []
  for client in ('ann', 'bob', 'test'):
    x, y = [], []
    for label, name in enumerate(('cat', 'dog')):
      folder = tmp_path / 'in' / ('train' if client != 'test' else '')
      folder = folder / client / name
      folder.mkdir(parents=True)
      for i in range(2 + label + len(client)):
        pixels = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{i:02}.png')
        x.append(pixels)
        y.append(label)
    expected.append(Examples(np.stack(x), np.array(y, np.int32)))
  done = run('--source=images', f'--path={tmp_path}/in', f'--out={tmp_path}/f')
  assert done.returncode == 0, done.stderr
  same(tmp_path / 'f', expected)
  Image.new('RGB', (9, 9)).save(tmp_path / 'in/train/bob/cat/other.png')
  done = run('--source=images', f'--path={tmp_path}/in', f'--out={tmp_path}/g')
  assert done.returncode == 2 and 'other.png: has the shape (9, 9, 3)' in (
    done.stderr
  )


def test_an_interrupted_generator_resumes(tmp_path):
  (tmp_path / 'mine.py').write_text(
    """
import numpy as np
import os

def clients(first):
  for k in range(first, 50):
    if k == 30 and not os.path.exists('go'):
      raise KeyboardInterrupt
    rng = np.random.default_rng(k + 1)
    size = k % 5 + 1
    x = rng.integers(0, 256, (size, 300, 300), np.uint8)
    yield x, rng.integers(0, 3, size)
"""
  )
  command = [
    *(sys.executable, '-m', 'fedavg_jax', 'convert', '--source=generator'),
    *('--path=mine:clients', '--out=f', '--shard_mib=1'),
  ]
  first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert first.returncode == 130 and first.stderr == 'error: interrupted\n'
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'f').glob('*.npy')}
  assert before
  (tmp_path / 'go').touch()
  again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert again.returncode == 0, again.stderr
  assert '50 clients' in again.stdout
  assert all(p.stat().st_mtime_ns == at for p, at in before.items())
  own = stored.read(tmp_path / 'f')
  for k in (0, 29, 30, 49):
    rows = own.clients.x[slice(*own.clients.offsets[k : k + 2])]
    rng = np.random.default_rng(k + 1)
    size = (k % 5 + 1, 300, 300)
    np.testing.assert_array_equal(
      rows[..., 0], rng.integers(0, 256, size, np.uint8)
    )
  done = run('--verify', tmp_path / 'f')
  assert done.returncode == 0 and 'files match' in done.stdout


def test_leaf_and_words(tmp_path):
  data = {
    'users': ['u', 'v'],
    'num_samples': [2, 1],
    'user_data': {
      'u': {'x': [[0.5] * 4, [0.25] * 4], 'y': [1, 0]},
      'v': {'x': [[0.75] * 4], 'y': [2]},
    },
  }
  for split in ('train', 'test'):
    (tmp_path / 'leaf' / split).mkdir(parents=True)
    (tmp_path / 'leaf' / split / 'all.json').write_text(json.dumps(data))
  (tmp_path / 'words').mkdir()
  for author in 'abc':
    (tmp_path / 'words' / f'{author}.txt').write_text(f'to be or not {author}')
  for kind in ('leaf', 'words'):
    done = run(
      f'--source={kind}',
      f'--path={tmp_path}/{kind}',
      f'--out={tmp_path}/{kind}.f',
    )
    assert done.returncode == 0, done.stderr
    dataset = catalog.load_dataset(kind, str(tmp_path / kind))
    own = in_memory(catalog.load_dataset('stored', f'{tmp_path}/{kind}.f'))
    for name in ('train', 'test'):
      for got, expected in zip(
        getattr(own, name), getattr(dataset, name), strict=True
      ):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(own.owners, dataset.owners)
    assert own.num_classes == dataset.num_classes
    assert own.padding == dataset.padding


@pytest.mark.parametrize(
  'flags, said',
  [
    ([], '--source is missing'),
    (
      ['--source=arrays', '--path=none', '--out=f'],
      '--path none: does not exist',
    ),
    (['--source=arrays', '--path=.', '--out=f'], 'lacks x, y, client'),
    (['--source=images', '--path=.', '--out=f'], 'must contain train/CLIENT'),
    (['--source=generator', '--path=no:where', '--out=f'], 'module:function'),
    (['--verify=none'], 'none/federation.json: is missing'),
  ],
)
def test_what_cannot_be_converted_is_refused(flags, said, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'fedavg_jax', 'convert', *flags],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and said in done.stderr
  assert done.stderr.count('\n') == 1 and not (tmp_path / 'f').exists()
