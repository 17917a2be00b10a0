"""A checkpoint is read as it was written, or it is not used."""

import builtins
import errno
import json
import os
import pickle
import re
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import checkpoint

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


def tree(number):
  """Returns every dtype and shape to save; a tuple, an empty tree, no key."""
  rng = np.random.default_rng(number)
  return {
    'params': {
      'dense': {'kernel': rng.normal(size=(300, 70)).astype(np.float32)},
      'empty': np.zeros((0, 3), np.float32),
      'scale': rng.normal(size=5).astype(ml_dtypes.bfloat16),
    },
    'server': (np.int32(number), (), [np.array(True)]),
    'clients': (),
  }


def save(folder, numbers, keep=2, accuracies=None):
  checkpoints = checkpoint.Checkpoints(folder, keep=keep)
  for i, number in enumerate(numbers):
    accuracy = accuracies[i] if accuracies else None
    checkpoints.save(number, tree(number), {'round': number}, accuracy)
  return checkpoints


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).dtype == np.asarray(y).dtype
    np.testing.assert_array_equal(x, y)


def kept(folder):
  return sorted(os.listdir(folder / 'checkpoints'))


def test_saved_trees_are_restored(tmp_path):
  save(tmp_path, [3]).close()
  found = checkpoint.Checkpoints(tmp_path, keep=2).newest()
  assert found.metadata['round'] == 3
  back = checkpoint.restore(found, tree(0))
  assert_same(back, tree(3))
  assert isinstance(back['server'], tuple)


def test_the_newest_and_the_best_are_kept(tmp_path):
  save(tmp_path, range(1, 7), accuracies=[0.1, 0.9, 0.3, 0.4, 0.5, None])
  assert kept(tmp_path) == ['2', '5', '6']
  params = tree(2)['params']
  del params['empty']
  assert_same(fa.load_params(tmp_path, best=True), params)
  params = tree(6)['params']
  del params['empty']
  assert_same(fa.load_params(str(tmp_path)), params)


def files(path):
  return [p for p in sorted(path.rglob('*')) if p.is_file()]


def largest(path):
  return max(files(path), key=lambda p: p.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def halve(path):
  os.truncate(path, path.stat().st_size // 2)


def flip_each(path):
  """Flips a bit of every file that has one."""
  for file in files(path):
    if file.stat().st_size:
      flip(file)


DAMAGE = {
  'a bit flipped in every file': flip_each,
  'a bit flipped in the metadata': lambda path: flip(path / 'told/metadata'),
  'a bit flipped': lambda path: flip(largest(path)),
  'cut short': lambda path: halve(largest(path)),
  'every file empty': lambda path: [os.truncate(p, 0) for p in files(path)],
  'no files': lambda path: (shutil.rmtree(path), path.mkdir()),
  'arrays gone': lambda path: shutil.rmtree(path / 'leaves'),
  'metadata gone': lambda path: shutil.rmtree(path / 'told'),
  'metadata no json': lambda path: (path / 'told/metadata').write_text('{'),
  'metadata null': lambda path: (path / 'told/metadata').write_text('null'),
  'metadata of another': lambda path: (
    shutil.rmtree(path / 'told'),
    shutil.copytree(path.parent / '1' / 'told', path / 'told'),
  ),
  'arrays of another': lambda path: (
    shutil.rmtree(path / 'leaves'),
    shutil.copytree(path.parent / '1' / 'leaves', path / 'leaves'),
  ),
}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_previous_used(
  tmp_path, how, caplog
):
  save(tmp_path, [1, 2]).close()
  DAMAGE[how](tmp_path / 'checkpoints' / '2')
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  found = checkpoints.newest()
  assert found.metadata['round'] == 1
  assert_same(checkpoint.restore(found, tree(0)), tree(1))
  (warning,) = [r for r in caplog.records if r.name == 'absl']
  message = warning.getMessage()
  assert 'checkpoints/2: damaged, using the previous one' in message
  assert '\n' not in message
  # It is renamed, and its number is free again.
  checkpoints.save(2, tree(2), {'round': 2}, None)
  assert kept(tmp_path) == ['1', '2', '2.damaged']
  assert checkpoints.newest().metadata['round'] == 2


def test_every_bit_of_the_metadata_counts(tmp_path):
  """Any changed byte leaves the same JSON, or the checkpoint is not used."""
  save(tmp_path, [1, 2]).close()
  path = tmp_path / 'checkpoints' / '2' / 'told' / 'metadata'
  good = path.read_bytes()
  reader, readable = checkpoint._checkpointer(), 0
  for i in range(0, len(good), 3):
    content = bytearray(good)
    content[i] ^= 1 << i % 7
    path.write_bytes(content)
    try:
      found = checkpoint._read(reader, path.parents[1]).metadata
    except Exception:
      continue
    readable += 1
    assert found == json.loads(good)
  assert readable < 5
  reader.close()


def test_other_files_are_ignored(tmp_path):
  save(tmp_path, [1]).close()
  for name in ('3', '2.deleted', '2.orbax-checkpoint-tmp', 'notes', '٣'):
    (tmp_path / 'checkpoints' / name).write_text('mine')
  (tmp_path / 'checkpoints' / '007').mkdir()
  assert (
    checkpoint.Checkpoints(tmp_path, keep=2).newest().metadata['round'] == 1
  )
  assert len(kept(tmp_path)) == 7


def test_all_checkpoints_are_damaged(tmp_path):
  save(tmp_path, [1, 2]).close()
  for number in '12':
    halve(largest(tmp_path / 'checkpoints' / number))
  with pytest.raises(InputError, match=r'checkpoints \[2, 1\] are all'):
    checkpoint.Checkpoints(tmp_path, keep=2).newest()
  assert kept(tmp_path) == ['1', '2']  # No checkpoint was changed.
  with pytest.raises(InputError, match='checkpoints/2: is damaged'):
    fa.load_params(tmp_path)


def test_no_checkpoint(tmp_path):
  (tmp_path / 'a').mkdir()
  assert checkpoint.Checkpoints(tmp_path / 'a', keep=2).newest() is None
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    fa.load_params(tmp_path / 'nowhere')
  assert not (tmp_path / 'nowhere').exists()
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    fa.load_params(tmp_path / 'a')


def test_a_partial_checkpoint_is_ignored(tmp_path):
  """A kill during a save leaves it; the next save removes it."""
  save(tmp_path, [1]).close()
  half = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'checkpoints' / '1', half)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  assert checkpoints.newest().metadata['round'] == 1
  checkpoints.save(2, tree(2), {'round': 2}, None)
  checkpoints.close()
  assert kept(tmp_path) == ['1', '2']


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'w': np.zeros((3, 71))}, 'got params.w float64[3, 70];'),
    ({'w': np.zeros((3, 70), np.float32)}, 'expected params.w float32[3, 70] '),
    ({'v': np.zeros(2)}, 'got params.w float64[3, 70];'),
    ({'x': np.zeros(2)}, 'got nothing; choose a new workdir'),
    ({'w': np.zeros((0, 70))}, 'expected nothing for the model and the'),
  ],
)
def test_arrays_of_another_model_are_refused(change, words):
  """Other names are refused too, where shapes and dtypes are the same."""
  saved = checkpoint.Checkpoint(
    [np.zeros((3, 70))], {'paths': [['params', 'w']]}
  )
  like = {'params': {'w': np.zeros((3, 70))} | change}
  with pytest.raises(InputError, match=re.escape(words)):
    checkpoint.restore(saved, like)
  renamed = {'params': {'weights': np.zeros((3, 70))}}
  with pytest.raises(InputError, match='expected params.weights float64'):
    checkpoint.restore(saved, renamed)


@pytest.mark.parametrize(
  ('error', 'kind'),
  [
    (MemoryError(), MemoryError),
    (ValueError('Input/output error'), OSError),
    (ValueError('no such key'), InputError),
  ],
)
def test_read_errors_are_not_reported_as_damage(
  tmp_path, monkeypatch, error, kind
):
  save(tmp_path, [1]).close()

  def fails(*args):
    raise error

  monkeypatch.setattr(checkpoint, '_read', fails)
  with pytest.raises(kind, match='is damaged' if kind is InputError else None):
    fa.load_params(tmp_path)


class _Evil:
  def __reduce__(self):
    return os.system, ('touch it-was-run',)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
  """Python has an audit event for every class that a pickle names."""
  monkeypatch.chdir(tmp_path)
  save(tmp_path, [1, 2]).close()
  for path in files(tmp_path / 'checkpoints' / '2'):
    path.write_bytes(pickle.dumps(_Evil()))
  named = []
  sys.addaudithook(
    lambda event, args: (
      named.append(args) if event == 'pickle.find_class' else None
    )
  )
  found = checkpoint.Checkpoints(tmp_path, keep=2).newest()
  assert found.metadata['round'] == 1 and not named
  assert not (tmp_path / 'it-was-run').exists()
  pickle.loads(pickle.dumps(np.float32))
  assert named  # The hook does see pickles.


def test_what_cannot_be_written_is_an_os_error(tmp_path):
  checkpoints = save(tmp_path, [1])
  shutil.rmtree(tmp_path / 'checkpoints')
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(OSError, match='checkpoint 2 cannot be written'):
    checkpoints.save(2, tree(2), {'round': 2}, None)


def test_digest_sees_values_shapes_and_dtypes():
  base = np.arange(6, dtype=np.int32)
  digests = {
    checkpoint.digest([array])
    for array in (
      base,
      base.reshape(2, 3),
      base.astype(np.int64),
      base[::-1],
      base.view(np.float32),
    )
  }
  assert len(digests) == 5
  assert checkpoint.digest([base[::-1]]) == checkpoint.digest(
    [base[::-1].copy()]
  )


def test_a_renamed_checkpoint_is_not_used(tmp_path, caplog):
  """A state that was saved after round 2 is not that after round 4."""
  save(tmp_path, [2, 3]).close()
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '2', folder / '4')
  found = checkpoint.Checkpoints(tmp_path, keep=2).newest()
  assert found.metadata['round'] == 3
  assert 'it was saved as 2, not as 4' in caplog.text
  assert kept(tmp_path) == ['2', '3', '4.damaged']


@pytest.mark.parametrize('number', [errno.EACCES, errno.EBUSY, errno.EIO])
def test_read_errors_are_not_damage(tmp_path, monkeypatch, number):
  """It is not renamed: it may be readable later, or by another user."""
  save(tmp_path, [2, 3]).close()
  real = builtins.open
  path = next((tmp_path / 'checkpoints' / '3').rglob('*')).parent

  def refusing(file, *args, **kwargs):
    if str(file).startswith(str(path)):
      raise OSError(number, os.strerror(number), str(file))
    return real(file, *args, **kwargs)

  (tmp_path / 'checkpoints' / '3' / 'told' / 'metadata').write_text('{')
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  monkeypatch.setattr(builtins, 'open', refusing)
  with pytest.raises(OSError, match=os.strerror(number)):
    checkpoints.newest()
  monkeypatch.undo()
  assert kept(tmp_path) == ['2', '3']


def test_storage_that_runs_out_of_files_is_not_damage(tmp_path, monkeypatch):
  save(tmp_path, [2, 3]).close()

  def fails(*args):
    raise ValueError(f'reading "x": {os.strerror(errno.EMFILE)}')

  monkeypatch.setattr(checkpoint, '_read', fails)
  with pytest.raises(OSError, match='Too many open files'):
    checkpoint.Checkpoints(tmp_path, keep=2).newest()
  assert kept(tmp_path) == ['2', '3']
