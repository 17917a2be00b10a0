"""Loads texts with natural clients: roles of plays, or authors."""

import pathlib

from absl import logging

from fedavg_jax.core import client_data
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.folders import check_names
from fedavg_jax.core.folders import entries
from fedavg_jax.data import texts
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.dataset import number_owners

# McMahan et al. 2017: unrolled time steps, words of the vocabulary and the most
# words of an author. Every tenth author is in the test set.
_LINE, _PHRASE = 80, 10
_VOCABULARY, _MOST_WORDS, _TEST_AUTHORS = 10_000, 5000, 10


def load_shakespeare(path: pathlib.Path) -> Dataset:
  """Loads the lines of plays; roles with at least two lines are the clients.

  Raises:
    InputError: a file is missing or wrong, or no role has two lines.
  """
  roles = {
    (title, role): lines
    for title, play in _plays(path).items()
    for role, lines in play.items()
    if len(lines) >= 2
  }
  parts = [
    [texts.encode_lines(some, _LINE) for some in texts.split_lines(lines)]
    for lines in roles.values()
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
    client_names=tuple(f'{title}: {role}' for title, role in roles),
  )


def _plays(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """Reads the plays of the eBook, or of a folder with one play per file.

  Returns:
    Title -> role -> its lines.
  """
  if path.is_file():
    return texts.read_complete_works(path)
  files = [
    file
    for suffix in ('.txt', '.zip')
    for file in entries(path)
    if file.suffix.lower() == suffix
  ]
  ebooks = [
    file for file in files if file.stem.lower() in ('100-0', 'pg100', '100')
  ]
  if len(ebooks) > 1:
    raise InputError(
      f'data_dir = {str(path)!r}: {ebooks[0].name} and {ebooks[1].name} are the'
      ' same plays; name one of them'
    )
  if ebooks:
    return texts.read_complete_works(ebooks[0])
  names = [file.name for file in files]
  check_names([file.stem for file in files], f'{path}: plays', names)
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
      f'data_dir = {str(path)!r}: has neither 100-0.txt nor 100-0.zip of'
      ' Project Gutenberg nor plays, NAME.txt'
    )
  for error in poems:
    logging.info('Skipped: %s', error)
  return plays


def load_words(path: pathlib.Path) -> Dataset:
  """Loads the words of authors; every tenth by name is in the test set.

  Raises:
    InputError: a file is missing or wrong, or there are too few words.
  """
  authors = {
    name: words[:_MOST_WORDS]
    for name, words in texts.read_authors(path).items()
  }
  every = min(_TEST_AUTHORS, len(authors))
  test = [words for i, words in enumerate(authors.values(), 1) if not i % every]
  train = {
    name: words
    for i, (name, words) in enumerate(authors.items(), 1)
    if i % every
  }
  tokens = texts.vocabulary(train.values(), _VOCABULARY)
  encoded = {
    name: texts.encode_words(words, tokens, _PHRASE)
    for name, words in train.items()
  }
  encoded = {name: part for name, part in encoded.items() if len(part.y)}
  tested = [texts.encode_words(words, tokens, _PHRASE) for words in test]
  parts = [list(encoded.values()), [part for part in tested if len(part.y)]]
  if not all(parts):
    raise InputError(
      f'{path}: must have at least two authors with at least two words each'
    )
  return Dataset(
    'words',
    *map(client_data.join, parts),
    num_classes=_VOCABULARY,
    max_value=1.0,
    owners=number_owners(parts[0]),
    client_names=tuple(encoded),
    classes=('<unknown>', *tokens),
  )
