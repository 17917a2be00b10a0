"""Data sets with natural clients: users, roles of plays, authors."""

import pathlib

from absl import logging
import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import readers
from fedavg_jax.data import texts
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.dataset import number_owners

# Unrolled time steps, words of the vocabulary and most words of an author, all
# of McMahan et al. 2017; every tenth author is kept for the test.
_LINE, _PHRASE = 80, 10
_VOCABULARY, _MOST_WORDS, _TEST_AUTHORS = 10_000, 5000, 10


def leaf_files(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """The json of a split, 'train' or 'test', of LEAF's.

  Raises:
    InputError: there is none.
  """
  files = sorted(
    path
    for path in (folder / split).glob('*')
    if path.name.endswith(('.json', '.json.gz'))
  )
  if not files:
    raise InputError(
      f'data_dir = {str(folder)!r}: {split}/ holds no json; must be a folder'
      " of LEAF's, with train/ and test/"
    )
  return files


def with_channels(x: np.ndarray) -> np.ndarray:
  """LEAF's inputs [n, ...] as images [n, H, W, C]."""
  shape = x.shape[1:]
  if len(shape) == 1:  # Rows of pixels, most often of a square image.
    side = int(np.sqrt(shape[0]))
    shape = (side, side) if side**2 == shape[0] else (shape[0], 1)
  if len(shape) == 2:
    shape = (*shape, 1)
  return x.reshape(len(x), *shape)


def load_leaf(folder: pathlib.Path) -> Dataset:
  """LEAF's users as clients: those with training examples, in their order."""
  train, test = (
    [
      own
      for file in leaf_files(folder, split)
      for own in readers.read_leaf(file).values()
      if len(own.y)
    ]
    for split in ('train', 'test')
  )
  shapes = {own.x.shape[1:] for own in train + test}
  if not train or not test or len(shapes) > 1:
    raise InputError(
      f'data_dir = {str(folder)!r}: inputs have the shapes {sorted(shapes)};'
      ' train and test must both have examples, of one shape'
    )
  joined = [client_data.join(split) for split in (train, test)]
  return Dataset(
    'leaf',
    *(own._replace(x=with_channels(own.x)) for own in joined),
    num_classes=int(max(own.y.max() for own in joined)) + 1,
    max_value=1.0,
    owners=number_owners(train),
  )


def load_shakespeare(path: pathlib.Path) -> Dataset:
  """Lines of the roles of plays that have two at least."""
  parts = [
    [texts.encode_lines(lines, _LINE) for lines in texts.split_lines(lines)]
    for play in _plays(path).values()
    for lines in play.values()
    if len(lines) >= 2
  ]
  if not parts:
    raise InputError(f'{path}: no role has two lines')
  train, test = zip(*parts, strict=True)
  return Dataset(
    'shakespeare',
    client_data.join(train),
    client_data.join(test),
    num_classes=texts.NUM_CHARACTERS,
    max_value=1.0,
    owners=number_owners(train),
    padding=texts.PADDING,
  )


def _plays(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """The plays of the eBook, or of a folder with one in each file."""
  if path.is_file():
    return texts.read_complete_works(path)
  files = sorted(path.glob('*.txt')) + sorted(path.glob('*.zip'))
  whole = [file for file in files if file.stem in ('100-0', 'pg100', '100')]
  if whole:
    return texts.read_complete_works(whole[0])
  plays, poems = {}, []
  for file in files:
    try:
      plays[file.stem] = texts.read_play(file)
    except InputError as error:
      poems.append(error)
  if not plays and poems:
    raise poems[0]
  if not plays:
    raise InputError(
      f'data_dir = {str(path)!r}: holds neither 100-0.txt nor 100-0.zip of'
      ' Project Gutenberg nor plays, NAME.txt'
    )
  for error in poems:
    logging.info('left out: %s', error)
  return plays


def load_words(path: pathlib.Path) -> Dataset:
  """Words of authors; every tenth in alphabetical order is tested on."""
  authors = [words[:_MOST_WORDS] for words in texts.read_authors(path).values()]
  every = min(_TEST_AUTHORS, len(authors))
  test = authors[every - 1 :: every]
  train = [words for i, words in enumerate(authors, 1) if i % every]
  tokens = texts.vocabulary(train, _VOCABULARY)
  parts = [
    [texts.encode_words(words, tokens, _PHRASE) for words in split]
    for split in (train, test)
  ]
  parts = [[own for own in split if len(own.y)] for split in parts]
  if not all(parts):
    raise InputError(f'{path}: must have two authors of two words at least')
  return Dataset(
    'words',
    *map(client_data.join, parts),
    num_classes=_VOCABULARY,
    max_value=1.0,
    owners=number_owners(parts[0]),
  )
