"""A conversion that ends early leaves no files, or those to resume from."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import shard_writer
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer
from tests.testing.conversions import convert


class Killed(Exception):
  """Ends a conversion as a signal would, between two shards."""


def parts():
  """Returns six clients of two images each; each fills a shard."""
  y = np.array([0, 1], np.int32)
  return [Examples(np.full((2, 2, 2, 1), k, np.uint8), y) for k in range(6)]


def bad():
  """Returns the same clients, but the last one has an invalid label."""
  return [*parts()[:-1], parts()[-1]._replace(y=np.array([0, 9], np.int32))]


def write(folder, clients, *, kill_after=0, **changes):
  written = []

  def wrote(clients, size):
    written.append((clients, size))
    if len(written) == kill_after:
      raise Killed

  options = {'num_classes': 2, 'max_value': 255.0, 'source': {'of': 'a test'}}
  stored_writer.write(
    folder,
    iter(clients),
    parts()[0],
    **(options | {'shard_bytes': 1} | changes),
    wrote=wrote,
  )


def killed(folder):
  with pytest.raises(Killed):
    write(folder, parts(), kill_after=3)


def listing(folder):
  return {p: p.is_file() and p.read_bytes() for p in folder.rglob('*')}


def test_a_failed_conversion_removes_only_its_own_files(tmp_path):
  killed(tmp_path / 'f')
  mine = {}
  for name in (
    *('clients-of-mine.txt', 'clients-00007-notes', 'clients-1-x.npy'),
    *('test-z.npy', 'my-federation.json', 'conversion.jsonl.old'),
  ):
    mine[tmp_path / 'f' / name] = b'mine'
    (tmp_path / 'f' / name).write_bytes(b'mine')
  with pytest.raises(InputError, match='client 5: labels are 0 to 9'):
    write(tmp_path / 'f', bad())
  assert listing(tmp_path / 'f') == mine


def test_partial_files_of_a_kill_are_removed_too(tmp_path):
  killed(tmp_path / 'f')
  (tmp_path / 'f' / '.part.clients-00003-x.npy').write_bytes(b'half')
  with pytest.raises(InputError, match='client 3'):
    write(tmp_path / 'f', [*parts()[:3], bad()[-1]])
  assert not listing(tmp_path)


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('own', ['.', 'a', 'a/b/c'])
def test_folders_that_the_conversion_made_are_removed(own, again, tmp_path):
  """Folders that existed before stay, however often it was resumed."""
  (tmp_path / own).mkdir(parents=True, exist_ok=True)
  before = listing(tmp_path)
  folder = tmp_path / 'a' / 'b' / 'c'
  if again:
    killed(folder)
    with pytest.raises(Killed):
      write(folder, parts(), kill_after=1)
  with pytest.raises(InputError, match='client 5'):
    write(folder, bad())
  assert listing(tmp_path) == before


@pytest.mark.parametrize(
  'clients',
  [
    [],
    [Examples(own.x[:0], own.y[:0]) for own in parts()],
    parts()[:2],
    parts()[1:],
    [parts()[0], *parts()],
  ],
)
def test_a_source_with_fewer_or_more_clients(clients, tmp_path):
  killed(tmp_path / 'f')
  before = listing(tmp_path)
  with pytest.raises(InputError, match='of the source have changed since'):
    write(tmp_path / 'f', clients)
  assert listing(tmp_path) == before
  write(tmp_path / 'f', parts())
  assert stored.verify(tmp_path / 'f') == 3 * 6 + 2


def test_a_shard_that_was_changed_before_resuming(tmp_path):
  """Its length is right, but its SHA-256 is not."""
  killed(tmp_path / 'f')
  path = tmp_path / 'f' / 'clients-00001-y.npy'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  before = listing(tmp_path)
  with pytest.raises(InputError, match='00001-y.npy: is not what was written'):
    write(tmp_path / 'f', parts())
  assert listing(tmp_path) == before


def test_a_pipe_instead_of_a_journal_or_a_description(tmp_path):
  for name, words in (
    ('conversion.jsonl', 'conversion.jsonl: is not a regular file'),
    ('federation.json', 'already has a federation'),
  ):
    (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / name / name)
    with pytest.raises(InputError, match=words):
      write(tmp_path / name, parts())
    assert [p.name for p in (tmp_path / name).iterdir()] == [name]
  for read in (stored.read, stored.verify):
    with pytest.raises(
      InputError, match='federation.json: is not a regular file'
    ):
      read(tmp_path / 'federation.json')


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    (b'5\n', 'another format'),
    (b'[]\n', 'another format'),
    (b'{}\n{}\n', 'x|names|labels'),
    (b'\xff\xfe\n', 'is not the journal'),
    (b'[' * 99_999 + b'\n', 'is not the journal'),
  ],
)
def test_a_journal_of_another_program(line, words, tmp_path):
  killed(tmp_path / 'f')
  (tmp_path / 'f' / 'conversion.jsonl').write_bytes(line)
  before = listing(tmp_path)
  with pytest.raises(InputError, match=words) as caught:
    write(tmp_path / 'f', parts())
  assert '\n' not in str(caught.value) and listing(tmp_path) == before


def test_rows_without_labels_are_refused(tmp_path):
  rows = Examples(parts()[1].x, parts()[1].y[:0])
  with pytest.raises(InputError, match='client 1: 2 inputs, but 0 labels'):
    write(tmp_path / 'f', [parts()[0], rows, *parts()[2:]])
  assert not listing(tmp_path)


def test_nothing_is_written_between_the_files_of_a_shard(tmp_path, monkeypatch):
  """The folder is replaced after the first file of the second shard."""
  write_file = shard_writer.write_file

  def replaced(path, content):
    found = write_file(path, content)
    if path.name == 'clients-00001-x.npy':
      shutil.rmtree(path.parent)
      path.parent.mkdir()
      (path.parent / '.lock').touch()
    return found

  monkeypatch.setattr(shard_writer, 'write_file', replaced)
  with pytest.raises(InputError, match='deleted or replaced by another'):
    write(tmp_path / 'f', parts())
  assert [p.name for p in (tmp_path / 'f').iterdir()] == ['.lock']


def test_names_do_not_change_the_data(tmp_path):
  """A run that was started without names resumes on data with names."""
  write(tmp_path / 'plain', parts())
  write(tmp_path / 'named', parts(), classes=['cat', 'dog'])
  found = json.loads((tmp_path / 'named' / 'federation.json').read_text())
  assert found['classes'] == ['cat', 'dog']
  own = [stored.read(tmp_path / name).sha256 for name in ('plain', 'named')]
  assert own[0] == own[1]
  # The previous version wrote it so.
  del found['classes']
  for shard in found['shards']:
    del shard['names']
  (tmp_path / 'named' / 'federation.json').write_text(json.dumps(found))
  assert stored.read(tmp_path / 'named').sha256 == own[0]


@pytest.mark.parametrize(
  ('number', 'stays'),
  [
    *((errno.EIO, True), (errno.ENOSPC, True), (errno.EMFILE, True)),
    *((errno.ENOENT, False), (errno.EISDIR, False)),
  ],
)
def test_a_generator_resumes_after_errors_of_the_machine(
  number, stays, tmp_path, monkeypatch
):
  """A full disk is not the user's mistake; a missing file is."""
  name = f'mine_{number}'
  (tmp_path / f'{name}.py').write_text(
    f"""
import os
import numpy as np

def clients(first):
  for k in range(first, 4):
    if k == 2 and not os.path.exists({str(tmp_path / 'go')!r}):
      raise OSError({number}, os.strerror({number}))
    yield np.full((2, 3), k / 4), [0, 1]
"""
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr('sys.dont_write_bytecode', True)
  with pytest.raises(OSError if stays else InputError) as caught:
    convert('generator', f'{name}:clients', tmp_path / 'f', shard_bytes=1)
  assert isinstance(caught.value, InputError) != stays
  assert (tmp_path / 'f').exists() == stays
  (tmp_path / 'go').touch()
  own = convert('generator', f'{name}:clients', tmp_path / 'f', shard_bytes=1)
  assert own.clients.num_examples.tolist() == [2] * 4
