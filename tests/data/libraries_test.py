"""The same columns are read by three libraries, where they are installed."""

import sys

import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import tables
from fedavg_jax.data.tables import Columns
from fedavg_jax.data.tables import Table
from fedavg_jax.runs import own_parts

# The libraries, and what they import, raise warnings of their own.
pytestmark = pytest.mark.filterwarnings('default')

CLASSES = ['cat', 'dog', 'eel']
# Client 'w2' has one example.
WHO = ['w1', 'w0', 'w0', 'w1', 'w0', 'w1', 'w2', 'w0']
COLUMNS = Columns(x='pixels', y='kind', client='who')


def rows(split):
  """Makes the columns of a split: pixels [n, 4, 3], kind [n], who [n]."""
  rng = np.random.default_rng(len(split))
  number = 8 if split == 'train' else 3
  return {
    'pixels': rng.integers(0, 256, (number, 4, 3), dtype=np.uint8),
    'kind': [i % 3 for i in range(number)],
    'who': WHO[:number],
  }


def save_hf(folder):
  library = pytest.importorskip('datasets')
  features = library.Features(
    {
      'pixels': library.Array2D((4, 3), 'uint8'),
      'kind': library.ClassLabel(names=CLASSES),
      'who': library.Value('string'),
    }
  )
  library.DatasetDict(
    {
      split: library.Dataset.from_dict(rows(split), features)
      for split in ('train', 'test')
    }
  ).save_to_disk(str(folder))
  return 'hf:mine', CLASSES


def save_tfds(folder):
  tfds = pytest.importorskip('tensorflow_datasets')

  class ColumnsOfThree(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'pixels': tfds.features.Tensor(shape=(4, 3), dtype=np.uint8),
            'kind': tfds.features.ClassLabel(names=CLASSES),
            'who': tfds.features.Text(),
          }
        ),
        disable_shuffling=True,
      )

    def _split_generators(self, manager):
      return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
      columns = rows(split)
      for i in range(len(columns['kind'])):
        yield i, {name: column[i] for name, column in columns.items()}

  builder = ColumnsOfThree(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  return 'tfds:columns_of_three', CLASSES


SPLITS = 'train', 'test'


def save_parquet(folder):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  folder.mkdir()
  for split in SPLITS:
    columns = rows(split) | {'pixels': rows(split)['pixels'].tolist()}
    kinds = {'pixels': pyarrow.list_(pyarrow.list_(pyarrow.uint8()))}
    table = pyarrow.table(
      {
        name: pyarrow.array(column, kinds.get(name))
        for name, column in columns.items()
      }
    )
    half = table.num_rows // 2
    parquet.write_table(table[:half], folder / f'{split}-00000.parquet')
    parquet.write_table(table[half:], folder / f'{split}-00001.parquet')
  return 'parquet', []


SAVES = {'hf': save_hf, 'tfds': save_tfds, 'parquet': save_parquet}


@pytest.mark.parametrize('library', SAVES)
def test_columns_of_a_library(library, tmp_path):
  name, classes = SAVES[library](tmp_path / 'data')
  data = fa.load_dataset(name, str(tmp_path / 'data'), COLUMNS)
  for split, found in (('train', data.train), ('test', data.test)):
    columns = rows(split)
    np.testing.assert_array_equal(found.x, columns['pixels'][..., None])
    assert found.x.dtype == np.uint8 and found.y.dtype == np.int32
    np.testing.assert_array_equal(found.y, columns['kind'])
  assert (data.num_classes, data.max_value) == (3, 255.0)
  assert data.client_names == ('w0', 'w1', 'w2')
  assert [data.client_names[owner] for owner in data.owners] == WHO
  assert list(data.classes) == classes
  # A config names the columns among the options of the data set.
  config = fa.RunConfig(
    dataset=name,
    data_dir=str(tmp_path / 'data'),
    options={'dataset': {'x': 'pixels', 'y': 'kind', 'test': 0.25}},
  )
  drawn = own_parts.load_dataset(config)
  assert (len(drawn.train.y), len(drawn.test.y)) == (6, 2)
  assert drawn.owners is None
  both = np.concatenate([drawn.train.x, drawn.test.x])[..., 0]
  expected = rows('train')['pixels']
  assert sorted(x.tobytes() for x in both) == sorted(
    x.tobytes() for x in expected
  )
  for columns, words in (
    (Columns(x='pixel', y='kind'), 'has no column pixel; .*mean pixels'),
    (Columns(test='tset'), 'has no split tset; must be one of .*mean test'),
  ):
    with pytest.raises(InputError, match=words):
      fa.load_dataset(name, str(tmp_path / 'data'), columns)


def test_a_saved_data_set_without_splits_is_the_split_train(tmp_path):
  """Reads a folder without dataset_dict.json."""
  library = pytest.importorskip('datasets')
  folder = str(tmp_path / 'data')
  library.Dataset.from_dict(
    {'x': [[i, 1, 2] for i in range(4)], 'y': [0, 1, 0, 1], 'who': [3, 3, 1, 3]}
  ).save_to_disk(folder)
  columns = Columns(x='x', y='y', client='who', test=0.25)
  data = fa.load_dataset('hf:mine', folder, columns)
  assert (len(data.train.y), len(data.test.y)) == (3, 1)
  assert data.client_names == ('1', '3')
  with pytest.raises(InputError, match='has no split test; must be one of tra'):
    fa.load_dataset('hf:mine', folder, Columns(x='x', y='y'))


def test_a_folder_of_hugging_face_must_exist(tmp_path):
  with pytest.raises(
    InputError, match=r"^data_dir = '.*none': must be a folde"
  ):
    fa.load_dataset('hf:mine', str(tmp_path / 'none'))


@pytest.mark.parametrize(
  ('who', 'kind', 'words'),
  [
    ([1, None, 2], [0, 1, 0], 'train: who is missing in row 1 '),
    (['a', 'b', None], [0, 1, 0], 'train: who is missing in row 2 '),
    ([1, 1, 2], [None, 1, 0], 'train: kind is missing in row 0 '),
    ([1, 1, 2], ['a', None, 'b'], 'train: kind is missing in row 1 '),
    ([2, 10, 2], [0, 1, 0], ''),
  ],
)
def test_a_missing_label_or_client_is_refused(tmp_path, who, kind, words):
  """Arrow keeps integers whole only in a column without nulls."""
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  table = pyarrow.table({'pixels': [[1], [2], [3]], 'kind': kind, 'who': who})
  parquet.write_table(table, tmp_path / 'train.parquet')
  columns = COLUMNS._replace(test=0.34)
  if words:
    with pytest.raises(InputError, match=words) as info:
      fa.load_dataset('parquet', str(tmp_path), columns)
    assert '\n' not in str(info.value)
  else:
    data = fa.load_dataset('parquet', str(tmp_path), columns)
    assert data.client_names == ('2', '10')


def test_a_missing_label_of_the_test_set_is_refused():
  x = np.zeros((2, 2), np.float32)
  nothing = np.asarray(None)  # As a row of Hugging Face becomes an array.
  for labels in (['a', nothing], [0, nothing], [0, np.nan]):
    with pytest.raises(InputError, match='test: label is missing in row 1 '):
      tables.to_dataset(
        'mine', Columns(), table(x, [labels[0]] * 2), table(x, labels)
      )


def test_a_column_of_structs_is_named(tmp_path):
  """Encoded images of Hugging Face are structs in Parquet."""
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  image = {'bytes': b'png', 'path': 'a.png'}
  table = pyarrow.table({'image': [image, image], 'label': [0, 1]})
  parquet.write_table(table, tmp_path / 'train.parquet')
  with pytest.raises(InputError, match='column image is of type struct<bytes'):
    fa.load_dataset('parquet', str(tmp_path), Columns(test=0.5))


@pytest.mark.parametrize(
  ('columns', 'words'),
  [
    (Columns(test=0), 'columns.test = 0: must be a name, or a fraction in'),
    (Columns(test=-0.5), 'columns.test = -0.5: must be a name, or a fraction'),
    (Columns(test=1.5), 'columns.test = 1.5: must be a name, or a fraction in'),
    (Columns(x=''), "columns.x = '': must be a name$"),
    (Columns(test='train'), "columns.test = 'train': is the split of training"),
  ],
)
def test_columns_from_python_are_checked(tmp_path, columns, words):
  with pytest.raises(InputError, match=words):
    fa.load_dataset('parquet', str(tmp_path), columns)


@pytest.mark.parametrize(
  ('name', 'module', 'install'),
  [
    ('hf:mine', 'datasets', "'fedavg_jax.hf.'"),
    ('parquet', 'pyarrow.parquet', 'pyarrow'),
  ],
)
def test_a_library_that_is_missing(
  monkeypatch, tmp_path, name, module, install
):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(
    InputError, match=rf"dataset = '{name}': {module} .*install {install}$"
  ) as info:
    fa.load_dataset(name, str(tmp_path))
  assert '\n' not in str(info.value)


def test_data_that_are_missing(tmp_path):
  pytest.importorskip('pyarrow')
  with pytest.raises(InputError, match='must be a folder of Parquet files'):
    fa.load_dataset('parquet', str(tmp_path / 'none'))
  (tmp_path / 'train.parquet').write_bytes(b'no Parquet')
  (tmp_path / 'test.parquet').write_bytes(b'no Parquet')
  with pytest.raises(InputError, match='parquet.: cannot be read') as info:
    fa.load_dataset('parquet', str(tmp_path))
  assert '\n' not in str(info.value)


def test_a_name_that_no_library_knows(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  with pytest.raises(InputError, match='tfds:no_such_data.: cannot be read'):
    fa.load_dataset('tfds:no_such_data', str(tmp_path))


def table(x, y, who=(), classes=()):
  return Table({'image': x, 'label': y, 'who': who}, classes)


def test_labels_and_clients_may_be_texts_or_numbers():
  x = np.zeros((3, 2, 2), np.float32)
  train = table(x, ['b', 'a', 'b'], [7, 2, 7])
  data = tables.to_dataset(
    'mine', Columns(client='who'), train, table(x[:1], ['b'])
  )
  assert data.train.y.tolist() == [1, 0, 1] and data.test.y.tolist() == [1]
  assert data.classes == ('a', 'b') and data.max_value == 1.0
  assert data.client_names == ('2', '7') and data.owners.tolist() == [1, 0, 1]
  data = tables.to_dataset('mine', Columns(test=0.5), table(x, [0, 4, 1]), None)
  assert data.num_classes == 5 and data.owners is None and not data.classes


@pytest.mark.parametrize(
  ('train', 'test', 'words'),
  [
    (
      table([[[1]], [[1, 2]]], [0, 1]),
      None,
      r'has the shapes \(1, 1\), \(1, 2',
    ),
    (table(np.zeros((1, 2)), [0]), None, 'has too few examples to draw a'),
    (table([], []), None, 'train: must have at least one example'),
    (
      table(np.zeros((1, 2)), ['a']),
      table(np.zeros((1, 2)), ['b']),
      "test: label has 'b', which is no label in training",
    ),
    (
      table(np.zeros((1, 2)), [0]),
      table(np.zeros((1, 3)), [0]),
      r'image has the shape \[2\] in training, \[3\] in the test set',
    ),
    (
      table(np.zeros((1, 2)), [0]),
      table(np.zeros((1, 2), np.uint8), [0]),
      'its largest value is 1',
    ),
  ],
)
def test_columns_that_are_refused(train, test, words):
  with pytest.raises(InputError, match=words):
    tables.to_dataset('mine', Columns(test=0.5), train, test)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'xs': 'a'}, 'options.dataset.xs: must be one of x, y, client, train, te'),
    ({'x': ''}, "options.dataset.x = '': must be a name$"),
    ({'y': 3}, 'options.dataset.y = 3: must be a name$'),
    ({'test': 'train'}, "options.dataset.test = 'train': is the split of trai"),
    ({'test': 1.0}, 'test = 1.0: must be a name, or a fraction in'),
  ],
)
def test_options_that_are_refused(options, words):
  with pytest.raises(InputError, match=words):
    fa.RunConfig(dataset='hf:mine', options={'dataset': options})
