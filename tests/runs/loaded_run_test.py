"""A run is loaded from its folder: model, history, pictures, weights."""

import contextlib
import io
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import model_card
from tests.testing.run_folders import lines

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


def centred(width=10):
  """Makes a linear model that subtracts a running mean, its state."""

  def apply(variables, x):
    params, state = variables
    x = jnp.float32(x).reshape(len(x), -1) / 16
    return (x - state['mean'][None]) @ params['layer']['w'] + params['b'][None]

  def train(variables, batch, context):
    x = jnp.float32(batch.x).reshape(len(batch.x), -1) / 16
    real = jnp.float32(batch.mask)
    mean = real @ x / jnp.maximum(real.sum(), 1.0)
    state = {'mean': 0.9 * variables.state['mean'] + 0.1 * mean}
    return apply(variables, batch.x), state

  def init(key):
    w = 0.1 * jax.random.normal(key, (64, width))
    return fa.Variables(
      {'layer': {'w': w}, 'b': jnp.zeros(width)}, {'mean': jnp.zeros(64)}
    )

  return fa.Model('centred', init, apply, train=train)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'run'
  config = fa.RunConfig(
    rounds=3, eval_every=2, num_clients=20, client_fraction=0.1, pictures=False
  )
  with contextlib.redirect_stdout(io.StringIO()):
    fa.train(config, path, model=centred())
  return path


def test_the_model_is_that_of_the_run(folder):
  run = fa.load_run(folder, model=centred())
  data = fa.load_dataset('digits')
  logits = run.predict(data.test.x)
  right = np.mean(logits.argmax(-1) == data.test.y)
  assert run.final == pytest.approx(right)
  x = data.test.x.reshape(len(data.test.x), -1) / 16
  state = run._tree(best=False)['model_state']
  twin = (x - state['mean']) @ run.params['layer']['w'] + run.params['b']
  np.testing.assert_allclose(logits, twin, rtol=1e-4, atol=1e-5)
  assert np.abs(state['mean']).max() > 0.01  # The state was trained too.
  jax.tree.map(
    np.testing.assert_array_equal, run.params, fa.load_params(folder)
  )
  one = run.predict(data.test.x[:1], best=True)
  assert one.shape == (1, 10)
  assert run.status == 'finished' and run.config.rounds == 3


def test_history_has_the_columns_of_the_lines(folder):
  run = fa.load_run(folder)
  records = lines(folder)
  assert set(run.history) == {key for record in records for key in record}
  for name, column in run.history.items():
    expected = [record.get(name) for record in records]
    np.testing.assert_array_equal(
      column, [np.nan if value is None else value for value in expected]
    )
  np.testing.assert_array_equal(run.history['round'], [0, 1, 2, 3])
  # Round 1 was not tested.
  assert np.isnan(run.history['test_accuracy']).tolist() == [0, 1, 0, 0]


def test_frame(folder, monkeypatch):
  run = fa.load_run(folder)
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(InputError, match='to_frame: pandas cannot be imported'):
      run.to_frame()
  pytest.importorskip('pandas')
  frame = run.to_frame()
  assert frame.index.tolist() == [0, 1, 2, 3]
  np.testing.assert_array_equal(
    frame['test_accuracy'], run.history['test_accuracy']
  )


def test_plots(folder, tmp_path):
  run = fa.load_run(folder)
  run.plot(tmp_path / 'curves.svg')
  content = (tmp_path / 'curves.svg').read_bytes()
  assert content.startswith(b'<?xml')
  for name, words in (
    ('curves.svg', 'exists already'),
    ('curves.txt', 'must end with .png, .pdf, .svg'),
    ('nofolder/x.png', 'the folder .*nofolder does not exist'),
  ):
    with pytest.raises(InputError, match=words):
      run.plot(tmp_path / name)
  assert (tmp_path / 'curves.svg').read_bytes() == content


def read_safetensors(path):
  """Reads the format by hand: a length, a header in JSON, the arrays."""
  content = path.read_bytes()
  size = int.from_bytes(content[:8], 'little')
  header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
  about = header.pop('__metadata__')
  arrays = {}
  for name, entry in header.items():
    assert entry['dtype'] == 'F32'
    start, end = entry['data_offsets']
    array = np.frombuffer(body[start:end], '<f4')
    arrays[name] = array.reshape(entry['shape'])
  return arrays, about


def test_weights_as_safetensors_with_a_card(folder, tmp_path):
  pytest.importorskip('safetensors')
  run = fa.load_run(folder)
  run.export(tmp_path / 'model')
  arrays, about = read_safetensors(tmp_path / 'model' / 'model.safetensors')
  assert set(arrays) == {'b', 'layer.w', 'state.mean'}
  np.testing.assert_array_equal(arrays['layer.w'], run.params['layer']['w'])
  np.testing.assert_array_equal(arrays['b'], run.params['b'])
  assert about['format'] == 'flax'
  card = (tmp_path / 'model' / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: fedavg_jax\n')
  assert f'| final test accuracy | {run.final:.4f} |' in card
  assert 'by the algorithm fedavg, 3 rounds (finished).' in card
  assert '| parameters | 714 |' in card and '| layer.w | [64, 10] |' in card
  assert '| client_fraction | 0.1 |' in card and 'data_dir' not in card
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(InputError, match='exists already; choose a new path'):
    run.export(tmp_path / 'model')
  assert sorted(tmp_path.rglob('*')) == before


def test_no_folder_is_made_below_a_file(folder, tmp_path, monkeypatch):
  for name in ('safetensors', 'safetensors.numpy'):  # It is not reached.
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='cannot be created .*must be folders'):
    fa.load_run(folder).export(tmp_path / 'file' / 'x')
  assert list(tmp_path.iterdir()) == [tmp_path / 'file']


def test_the_card_names_the_algorithm_and_whose_test_it_is(folder):
  run = fa.load_run(folder)
  config = run.config.replace({'algorithm': 'fedexp'})
  card = model_card.card({}, config, run._run, best=True)
  assert 'by the algorithm fedexp,' in card and 'Averaging' not in card
  value = f'{run.final:.4f}'
  assert f'| final test accuracy (of the last round) | {value} |' in card
  assert '| best test accuracy |' in card


def test_export_without_the_library(folder, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
  with pytest.raises(InputError, match=r"'fedavg_jax.safetensors.'$"):
    fa.load_run(folder).export(tmp_path / 'model')
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_is_one_line(folder, tmp_path):
  x = fa.load_dataset('digits').test.x
  for call, words in (
    (lambda: fa.load_run(tmp_path), 'config.json: cannot be read'),
    (
      lambda: fa.load_run(folder, model='cnn'),
      'model: is str, must be an fa.Model',
    ),
    (
      lambda: fa.load_run(folder).predict(x),
      'was given its model from Python; pass the model: fa.load_run',
    ),
    (
      lambda: fa.load_run(folder, model=centred(9)).predict(x),
      r'model: expected b of the shape \[9\], the checkpoint has \[10\]',
    ),
    (
      lambda: fa.load_run(folder, model=centred()).predict(x[:0]),
      'x: must have at least one example',
    ),
  ):
    with pytest.raises(InputError, match=words):
      call()
