"""Plays and authors are read from real texts and from small, made ones."""

import json
import zipfile

import numpy as np
import pytest

from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import catalog
from fedavg_jax.data import texts

# One play in each of the three printed layouts, and a poem.
INDENTED = """
ACT I. SCENE 1. A heath

Enter LEAR and FOOL

  LEAR. Blow, winds, and crack
    your cheeks!
  FOOL. O nuncle. [He dances]
  First Lord. My liege.
    [Aside] He is mad.               Exit
                    [They go on
      for two lines]
  LEAR. Rage! blow!
"""
MARGIN = """
ACT I. SCENE I. A hall

DUKE. Speak.
  And be quick.

Enter a messenger

AEGEON. I will,
  my lord.
"""
ALONE = """
SCENE II. A field.

KING JOHN.
Now, say, Chatillon,
what would France with us?

[_Exit._]

Speak.

1. QUEEN.
To thee no star be dark.
[Aside.] None.

Enter another,
and another. Exeunt.

MRS. FORD.
Nay. Exeunt
"""


def speech(number, style):
  """Returns more lines of a play, so that it is long enough to count."""
  lines = []
  for i in range(number):
    name = f'CHORUS {"A" if i % 2 else "B"}'
    lines.append(
      {
        'indented': f'  {name}. Line {i}.\n    More {i}.',
        'margin': f'{name}. Line {i}.\n  More {i}.',
        'alone': f'{name}.\nLine {i}.\nMore {i}.\n',
      }[style]
    )
  return '\n'.join(lines) + '\n'


def book():
  works = {
    'THE TRAGEDY OF ONE': INDENTED + speech(120, 'indented'),
    'A COMEDY OF TWO': MARGIN + speech(120, 'margin'),
    'THE LIFE OF THREE': ALONE + speech(120, 'alone'),
    'A POEM': 'When I do count the clock\nthat tells the time.\n',
  }
  contents = '\n\n'.join(f'          {title}' for title in works)
  bodies = '\n\n'.join(f'{title}\n{body}' for title, body in works.items())
  return f'The Works\n\n   Contents\n\n{contents}\n\n\n{bodies}\n'


def test_three_ways_to_print_a_play(tmp_path):
  path = tmp_path / '100-0.txt'
  path.write_text('\ufeff' + book())
  plays = texts.read_complete_works(path)
  assert list(plays) == [
    'THE TRAGEDY OF ONE',
    'A COMEDY OF TWO',
    'THE LIFE OF THREE',
  ]
  for play in plays.values():
    chorus = {name: play.pop(name) for name in ('CHORUS A', 'CHORUS B')}
    assert chorus['CHORUS A'][:3] == ['Line 1.', 'More 1.', 'Line 3.']
    assert len(chorus['CHORUS A']) == len(chorus['CHORUS B']) == 120
  assert plays['THE TRAGEDY OF ONE'] == {
    'LEAR': ['Blow, winds, and crack', 'your cheeks!', 'Rage! blow!'],
    'FOOL': ['O nuncle.'],
    'FIRST LORD': ['My liege.', 'He is mad.'],
  }
  assert plays['A COMEDY OF TWO'] == {
    'DUKE': ['Speak.', 'And be quick.'],
    'AEGEON': ['I will,', 'my lord.'],
  }
  assert plays['THE LIFE OF THREE'] == {
    'KING JOHN': [
      'Now, say, Chatillon,',
      'what would France with us?',
      'Speak.',
    ],
    '1. QUEEN': ['To thee no star be dark.', 'None.'],
    'MRS. FORD': ['Nay.'],
  }


def test_the_archive_is_read_as_its_file(tmp_path):
  (tmp_path / '100-0.txt').write_text(book())
  with zipfile.ZipFile(tmp_path / '100-0.zip', 'w') as archive:
    archive.write(tmp_path / '100-0.txt', '100-0.txt')
  assert texts.read_complete_works(
    tmp_path / '100-0.zip'
  ) == texts.read_complete_works(tmp_path / '100-0.txt')


@pytest.mark.parametrize(
  ('lines', 'train', 'test'),
  [(2, 1, 1), (3, 2, 1), (9, 8, 1), (10, 8, 2), (14, 12, 2), (15, 12, 3)],
)
def test_the_last_fifth_is_the_test(lines, train, test):
  """The test has a fifth, rounded down, but at least one line."""
  spoken = [f'line {i}' for i in range(lines)]
  first, last = texts.split_lines(spoken)
  assert first + last == spoken and (len(first), len(last)) == (train, test)


def test_a_line_becomes_its_characters_and_what_follows_them():
  x, y = texts.encode_lines(['To be', 'O’'], 8)
  assert x.tolist()[0] == [*b'To be', *[texts.PADDING] * 3]
  assert y.tolist()[0] == [*b'o be', texts.END, *[NO_LABEL] * 3]
  assert x.tolist()[1] == [*b"O'", *[texts.PADDING] * 6]
  # As many predictions as characters.
  assert (y != NO_LABEL).sum() == 7


def test_a_long_line_continues_in_another_example():
  x, y = texts.encode_lines(['abcdefgh', 'abcd'], 4)
  assert [bytes(row.tolist()).decode() for row in x] == ['abcd', 'efgh', 'abcd']
  assert y.tolist() == [[*b'bcde'], [*b'fgh', texts.END], [*b'bcd', texts.END]]


def test_the_federation_of_a_hand_made_book(tmp_path):
  (tmp_path / '100-0.txt').write_text(book())
  data = catalog.load_dataset('shakespeare', str(tmp_path / '100-0.txt'))
  counts = np.bincount(data.owners)
  # LEAR 3, FIRST LORD 2, DUKE 2, AEGEON 2, KING JOHN 3, 1. QUEEN 2; FOOL and
  # MRS. FORD have one line and are dropped; choruses of 120, 24 for the test.
  assert sorted(counts) == [1, 1, 1, 1, 2, 2, *[96] * 6]
  assert len(data.test.y) == 6 * 24 + 6 and data.num_classes == 258
  lear = data.train.x[data.owners == 0]
  assert bytes(lear[0][lear[0] < 256].tolist()) == b'Blow, winds, and crack'
  assert data.train.x.shape[1] == 80 and data.padding == texts.PADDING


@pytest.mark.parametrize(
  ('play', 'role', 'line'),
  [
    ('THE TRAGEDY OF HAMLET, PRINCE OF DENMARK', 'HAMLET', 'To be, or not to'),
    ('THE TRAGEDY OF ROMEO AND JULIET', 'ROMEO', 'But soft, what light'),
    ('THE TRAGEDY OF KING LEAR', 'EDMUND', 'A credulous father!'),
    ('THE TEMPEST', 'PROSPERO', "Now my charms are all o'erthrown"),
    ('TWELFTH NIGHT; OR, WHAT YOU WILL', 'DUKE', 'If music be the food'),
    ('THE COMEDY OF ERRORS', 'AEGEON', 'Proceed, Solinus, to procure'),
    ('THE MERRY WIVES OF WINDSOR', 'MRS. PAGE', "What! have I scap'd"),
    ('THE MERRY WIVES OF WINDSOR', 'MRS. FORD', 'Mistress Page! trust me'),
    ('AS YOU LIKE IT', 'JAQUES', "All the world's a stage"),
  ],
)
def test_known_passages_have_their_role(real_book, play, role, line):
  said = [text for text in real_book[play][role] if text.startswith(line)]
  assert len(said) == 1
  others = [
    name
    for name, lines in real_book[play].items()
    if name != role and any(text.startswith(line) for text in lines)
  ]
  assert not others


def test_stage_directions_belong_to_no_role(real_book):
  lines = [
    text
    for play in real_book.values()
    for said in play.values()
    for text in said
  ]
  assert len(lines) > 100_000
  directions = [t for t in lines if t.startswith(('Enter ', 'Exeunt', 'Exit'))]
  trailing = [t for t in lines if t.endswith((' Exit', ' Exeunt'))]
  # The eBook has one of them as speech: 'Exit JAQUES ROSALIND', an error.
  assert len(directions) <= 1 and not trailing


@pytest.fixture(scope='module')
def real_book(real_data):
  path = real_data / 'shakespeare' / '100-0.zip'
  if not path.is_file():
    pytest.skip('real data: FEDAVG_DATA names no folder with the book')
  return texts.read_complete_works(path)


@pytest.mark.slow
def test_the_real_book(real_data):
  """McMahan et al. have 1,146 roles, 3,564,579 and 870,014 characters."""
  folder = real_data / 'shakespeare'
  data = catalog.load_dataset('shakespeare', str(folder))
  roles = len(np.unique(data.owners))
  assert 1100 < roles < 1300
  for examples, characters in ((data.train, 3_564_579), (data.test, 870_014)):
    assert (examples.y != NO_LABEL).sum() == pytest.approx(characters, rel=0.06)
  plays = catalog.load_dataset('shakespeare', str(folder / 'plays'))
  assert len(np.unique(plays.owners)) == pytest.approx(roles, rel=0.05)
  assert len(plays.train.y) == pytest.approx(len(data.train.y), rel=0.02)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('no contents here', 'has no contents that name its works'),
    ('Contents\n\n A POEM\n\n A POEM\nroses', 'no role speaks'),
  ],
)
def test_a_text_without_roles(tmp_path, content, said):
  path = tmp_path / '100-0.txt'
  path.write_text(content)
  with pytest.raises(InputError, match=said):
    texts.read_complete_works(path)


def test_folders_without_plays(tmp_path):
  with pytest.raises(InputError, match='has neither 100-0.txt'):
    catalog.load_dataset('shakespeare', str(tmp_path))
  (tmp_path / 'sonnets.txt').write_text('From fairest creatures\n')
  with pytest.raises(InputError, match=r'sonnets\.txt: no role speaks'):
    catalog.load_dataset('shakespeare', str(tmp_path))
  (tmp_path / 'play.txt').write_text('P\nSCENE\tHere\n\nA\tone line\n')
  with pytest.raises(InputError, match='no role has two lines'):
    catalog.load_dataset('shakespeare', str(tmp_path))
  with pytest.raises(InputError, match='it does not exist'):
    catalog.load_dataset('shakespeare', str(tmp_path / 'nothing'))
  with pytest.raises(InputError, match="data_dir = ''"):
    catalog.load_dataset('words')


def test_damaged_archives(tmp_path):
  path = tmp_path / '100-0.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.txt', book())
    archive.writestr('b.txt', book())
  with pytest.raises(InputError, match='is not an archive of one file'):
    texts.read_complete_works(path)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.txt', book())
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match='is not an archive of one file'):
    texts.read_complete_works(path)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.txt', b'\0' * 10**8)
  with pytest.raises(InputError, match='unpacks to more than'):
    texts.read_complete_works(path)


def test_system_files_in_an_archive_are_ignored(tmp_path):
  path = tmp_path / '100-0.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('book/', '')
    archive.writestr('book/100-0.txt', book())
    archive.writestr('__MACOSX/book/._100-0.txt', b'\0\5\x16\7')
    archive.writestr('book/.DS_Store', b'\0\0\0\1Bud1')
  (tmp_path / '100-0.txt').write_text(book())
  assert texts.read_complete_works(path) == texts.read_complete_works(
    tmp_path / '100-0.txt'
  )
  with pytest.raises(InputError, match='100-0.txt and 100-0.zip are the same'):
    catalog.load_dataset('shakespeare', str(tmp_path))


# Words by author.


def write_authors(folder, posts):
  path = folder / 'posts.jsonl'
  lines = [json.dumps({'author': a, 'text': t}) for a, t in posts]
  path.write_text('\n'.join(lines) + '\n\n')
  return path


def test_a_folder_and_json_lines_are_the_same(tmp_path):
  posts = [('Bo', 'Don’t stop,'), ('al', 'One 2 three'), ('Bo', 'NOW!')]
  path = write_authors(tmp_path, posts)
  folder = tmp_path / 'authors'
  folder.mkdir()
  (folder / 'Bo.txt').write_text('Don’t stop,\nNOW!')
  (folder / 'al.txt').write_text('One 2 three')
  expected = {'Bo': ["don't", 'stop', 'now'], 'al': ['one', 'three']}
  assert texts.read_authors(path) == texts.read_authors(folder) == expected
  assert list(texts.read_authors(path)) == ['Bo', 'al']


def test_the_vocabulary_is_the_most_frequent():
  tokens = texts.vocabulary([['b', 'a', 'c'], ['a', 'b', 'a', 'd']], 4)
  assert tokens == {'a': 1, 'b': 2, 'c': 3}  # d and unknown words are 0.


def test_words_and_what_follows_them():
  tokens = {'a': 1, 'b': 2}
  x, y = texts.encode_words(['a', 'b', 'z', 'a', 'b'], tokens, 3)
  assert x.tolist() == [[1, 2, 0], [1, 0, 0]]
  # z is not in the vocabulary, so no label, but it is an input.
  assert y.tolist() == [[2, NO_LABEL, 1], [2, NO_LABEL, NO_LABEL]]
  assert texts.encode_words(['a'], tokens, 3).x.shape == (0, 3)


def test_a_generated_corpus(tmp_path):
  """Authors of the test set are not in the training set."""
  rng = np.random.default_rng(0)
  posts = [
    (f'author{i:02}', ' '.join(rng.choice(['to', 'be', 'or', 'not'], 12 + i)))
    for i in range(23)
  ]
  data = catalog.load_dataset('words', str(write_authors(tmp_path, posts)))
  assert len(np.unique(data.owners)) == 21 and data.num_classes == 10_000
  words = [12 + i for i in range(23)]
  tested = [words[9], words[19]]
  assert (data.test.y != NO_LABEL).sum() == sum(tested) - 2
  assert (data.train.y != NO_LABEL).sum() == sum(words) - sum(tested) - 21
  assert set(np.unique(data.train.x)) == {0, 1, 2, 3, 4}


def test_an_author_has_at_most_five_thousand_words(tmp_path):
  posts = [('a', 'word ' * 6000), ('b', 'other words here')]
  data = catalog.load_dataset('words', str(write_authors(tmp_path, posts)))
  assert (data.train.y != NO_LABEL).sum() == 4999


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('', 'has no lines'),
    ('{"author": "a"}', 'line 1 must be a JSON object'),
    ('{"author": "a", "text": "b c"}\nx', 'line 2 must be a JSON object'),
    ('{"author": 3, "text": "b c"}', 'line 1 must be a JSON object'),
    ('{"author": "a", "text": "1 2 !"}', "author 'a' has no words"),
    (
      '{"author": "a", "author": "b", "text": "c"}',
      'line 1 must be.*once each',
    ),
    (
      '{"author": "a", "text": NaN, "text": "c"}',
      'line 1 must be a JSON object',
    ),
    ('{"author": "a", "text": "b c"}', 'must have at least two authors'),
    ('{"author": "a", "text": "b"}\n{"author": "c", "text": "d"}', 'two words'),
  ],
)
def test_bad_authors(tmp_path, content, said):
  path = tmp_path / 'posts.jsonl'
  path.write_text(content)
  with pytest.raises(InputError, match=said) as info:
    catalog.load_dataset('words', str(path))
  assert '\n' not in str(info.value) and str(path) in str(info.value)


def test_a_folder_without_authors_and_one_without_words(tmp_path):
  with pytest.raises(InputError, match='has no AUTHOR.txt'):
    texts.read_authors(tmp_path)
  (tmp_path / 'ann.txt').write_text('')
  with pytest.raises(InputError, match="author 'ann' has no words"):
    texts.read_authors(tmp_path)


def test_a_text_may_begin_with_the_letters_of_an_archive(tmp_path):
  (tmp_path / 'ann.txt').write_text('PK was her name')
  (tmp_path / 'bob.txt').write_text('or not')
  assert texts.read_authors(tmp_path)['ann'] == ['pk', 'was', 'her', 'name']


def test_the_words_of_the_tokens_are_named(tmp_path):
  for author in ('a', 'b'):
    (tmp_path / f'{author}.txt').write_text('to be or not to be')
  data = catalog.load_dataset('words', str(tmp_path))
  assert data.classes == ('<unknown>', 'be', 'to', 'not', 'or')
  first = [data.classes[token] for token in data.train.x[0][:3]]
  assert first == ['to', 'be', 'or']
