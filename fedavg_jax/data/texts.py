"""Plays and authors: who says what, and that as arrays of tokens.

NumPy only. Characters are bytes, as in McMahan et al. 2017; words are those
that authors use most.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import io
import pathlib
import re
import struct
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from fedavg_jax.core import text
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.folders import check_names
from fedavg_jax.core.folders import entries
from fedavg_jax.core.folders import is_data
from fedavg_jax.data import readers

# 256 bytes, the end of a line, and what lies behind it.
END, PADDING, NUM_CHARACTERS = 256, 257, 258
# What old and new editions of a text write differently.
_PLAIN = str.maketrans(
  {'‘': "'", '’': "'", '“': '"', '”': '"', '—': '--', '–': '-', '\xa0': ' '}
)
_HEADING = re.compile(r'(ACT|SCENE)\b[ IVXLC:]*$')
_HEADINGS = re.compile(r'(ACT|SCENE|Scene|Act) [IVXLC\d]+\b')
# A name: capitalised words, few of them, of which the first may be a title.
_TITLE = r'(?:\d\. |MRS\. |ST\. |Mrs\. )?'
_NAME = rf"({_TITLE}[A-Z][\w'&-]*(?: (?:[A-Z][\w'&-]*|of|the|de|and)){{0,4}})\."
_CAPITALS = rf"({_TITLE}[A-Z][A-Z'&-]*(?: [A-Z][A-Z'&-]*){{0,4}})\."
# Directions that stand in no brackets: a line of their own, or behind a speech.
_DIRECTION = re.compile(r'(Re-?[Ee]nter|Enter|Exit|Exeunt|Flourish|Alarums?)\b')
_LEAVES = re.compile(r'(?:\s{2,}|(?<=[.!?;,-])\s)(?:Exit|Exeunt|Enter)\b.*$')


class _Style(NamedTuple):
  """How an edition prints speeches.

  Attributes:
    begin: a name, and what is said behind it on the same line.
    further: a further line of the speech.
  """

  begin: re.Pattern[str]
  further: re.Pattern[str]


# The editions that make up the eBook differ from play to play.
_STYLES = (
  _Style(re.compile(rf'  {_NAME} +(\S.*)'), re.compile(r'    (.*)')),
  _Style(re.compile(rf'{_CAPITALS} +(\S.*)'), re.compile(r' +(.*)')),
  _Style(re.compile(rf' *{_CAPITALS}()\s*$'), re.compile(r'(.*)')),
)
# With fewer speeches a work is a poem.
_FEWEST_SPEECHES = 100
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
UNKNOWN = 0  # The token of all words that are not in the vocabulary.


def read_complete_works(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """Reads Project Gutenberg's eBook 100, the text file or its zip archive.

  Works are separated by the titles of its contents. Every play follows one of
  three ways to print speeches, the one that fits most often; works without
  speeches are poems and left out. Stage directions in brackets are nobody's,
  and so is who enters and leaves; other directions stay in the speech.

  Args:
    path: of the file.

  Returns:
    Title -> role -> its lines, in the order they are spoken.

  Raises:
    InputError: the file cannot be read, has no contents, or no role speaks.
  """
  lines = text.split_lines(_text(path).translate(_PLAIN))
  plays = {}
  for title, own in _works(path, lines):
    style = max(_STYLES, key=lambda style: _speeches(style, own))
    if _speeches(style, own) >= _FEWEST_SPEECHES:
      plays[title] = _roles(style, own)
  if not plays:
    raise InputError(
      f'{path}: no role speaks; must be the complete works, with speeches'
      ' "NAME. ..."'
    )
  return plays


def _works(path, lines) -> Iterable[tuple[str, list[str]]]:
  """(title, lines) of every work that the contents name."""

  def plain(line):
    return line.strip().rstrip(':').upper()

  titles: list[str] = []
  contents = [i for i, line in enumerate(lines) if plain(line) == 'CONTENTS']
  number = contents[0] + 1 if contents else len(lines)
  # Until the first work begins.
  while number < len(lines) and plain(lines[number]) not in titles:
    if title := plain(lines[number]):
      titles.append(title)
    number += 1
  if number == len(lines):
    raise InputError(
      f'{path}: has no contents that name its works; must be Project'
      " Gutenberg's eBook 100, 100-0.txt or 100-0.zip"
    )
  starts = []
  for title in titles:
    at = next(
      (i for i in range(number, len(lines)) if plain(lines[i]) == title), None
    )
    if at is not None:
      starts.append((at, title))
      number = at + 1
  ends = [at for at, _ in starts[1:]] + [len(lines)]
  for (at, title), end in zip(starts, ends, strict=True):
    yield title, lines[at:end]


def _speeches(style: _Style, lines: Sequence[str]) -> int:
  return sum(style.begin.match(line) is not None for line in lines)


def _roles(style: _Style, lines: Sequence[str]) -> dict[str, list[str]]:
  """What every role of a play says."""
  roles: dict[str, list[str]] = {}
  role, direction, skips = '', False, False
  for line in lines:
    amid = direction  # This line began inside a stage direction.
    line, direction = _outside_brackets(line, direction)
    plain = line.strip()
    if not plain:  # It may also be a direction amid a speech.
      skips = False
      continue
    if not amid and (speech := style.begin.match(line)):
      role, said, skips = speech[1].upper(), speech[2], False
    elif further := style.further.match(line):
      said = further[1]
    else:
      continue
    if role.startswith(('ACT ', 'SCENE ')) or _HEADINGS.match(plain):
      role = ''
    # Where all lines begin at the margin, those below it belong to it.
    skips = skips or _DIRECTION.match(plain) is not None
    said = _LEAVES.sub('', said).strip()
    if role and said and not skips:
      roles.setdefault(role, []).append(said)
    skips = skips and style is _STYLES[-1]
  return roles


def read_play(path: pathlib.Path) -> dict[str, list[str]]:
  """Reads a play: the lines of every role, in the order they are spoken.

  The format of the plain-text plays (one file each): a cast, which ends with a
  line that begins with SCENE and a tab; then speeches, `NAME<tab>line`, their
  further lines behind a tab. A long name begins on a line of its own. What
  stands in brackets is a stage direction; headings of acts and scenes and the
  play's own title are nobody's.

  Args:
    path: the file, UTF-8.

  Returns:
    Role -> its lines.

  Raises:
    InputError: the file cannot be read, is no text or has no roles.
  """
  lines = text.split_lines(_text(path))
  title = next((line.strip() for line in lines if line.strip()), '')
  nobodys = (title, 'INDUCTION', 'PROLOGUE', 'EPILOGUE')
  begin = next(
    (i for i, line in enumerate(lines) if line.startswith('SCENE\t')), None
  )
  roles: dict[str, list[str]] = {}
  role, name, direction = '', '', False
  for line in lines[begin + 1 :] if begin is not None else []:
    before, tab, spoken = line.partition('\t')
    if not tab:  # A blank line, a heading, or the first half of a long name.
      name = '' if _HEADING.match(line) else line.strip()
      continue
    if before.strip() and not direction:
      role, name = f'{name} {before.strip(" :")}'.strip(), ''
    if _HEADING.match(role):  # Scene and place.
      role = ''
      continue
    # Directions may span several lines, and stand amid what is spoken.
    kept, direction = _outside_brackets(spoken, direction)
    kept = kept.strip()
    if kept and role and kept not in nobodys and not _HEADING.match(kept):
      roles.setdefault(role, []).append(kept)
  if not roles:
    raise InputError(
      f'{path}: no role speaks; must be a play with a line "SCENE<tab>..." and'
      ' then lines "NAME<tab>..."'
    )
  return roles


def split_lines(lines: Sequence[str]) -> tuple[list[str], list[str]]:
  """A role's training and test lines: the last fifth, at least one, is test.

  McMahan et al. 2017, section 3; as cut as in the authors' script, which LEAF
  keeps.
  """
  tested = max(int(0.2 * len(lines)), 1)
  return list(lines[:-tested]), list(lines[-tested:])


def encode_lines(lines: Iterable[str], length: int) -> Examples:
  """Lines as bytes: after each one the next, after the last the end.

  Args:
    lines: none of them empty.
    length: T; a longer line becomes several examples.

  Returns:
    x [n, T] int32, `PADDING` behind a line; y [n, T] int32, `NO_LABEL` there.
  """
  rows_x, rows_y = [], []
  for line in lines:
    said = [*line.translate(_PLAIN).encode(), END]
    for start in range(0, len(said) - 1, length):
      piece = said[start : start + length + 1]
      padding = length + 1 - len(piece)
      rows_x.append(piece[:-1] + [PADDING] * padding)
      rows_y.append(piece[1:] + [NO_LABEL] * padding)
  shape = (len(rows_x), length)
  return Examples(
    np.array(rows_x, np.int32).reshape(shape),
    np.array(rows_y, np.int32).reshape(shape),
  )


def read_authors(path: pathlib.Path) -> dict[str, list[str]]:
  """Reads texts by author: the words of each, in their order, in lower case.

  Args:
    path: a folder with a file NAME.txt for every author, or a file of JSON
      lines, each an object with the strings `author` and `text`, any number of
      them for an author.

  Returns:
    Author -> words, authors in alphabetical order.

  Raises:
    InputError: a file cannot be read, is something else, or has no words.
  """
  texts: dict[str, list[str]] = {}
  if path.is_dir():
    files = [file for file in entries(path) if file.suffix.lower() == '.txt']
    names = [file.name for file in files]
    check_names([file.stem for file in files], f'{path}: authors', names)
    texts = {file.stem: [_text(file)] for file in files}
    if not texts:
      raise InputError(f'{path}: holds no AUTHOR.txt')
  else:
    for number, line in enumerate(text.split_lines(_text(path)), 1):
      if not line.strip():
        continue
      try:
        post = readers.parse_json(line)
        author, said = post['author'], post['text']
        if not isinstance(author, str) or not isinstance(said, str):
          raise TypeError
      except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(
          f'{path}: line {number} must be a JSON object with the strings author'
          ' and text, each once'
        ) from None
      texts.setdefault(author, []).append(said)
    if not texts:
      raise InputError(f'{path}: holds no line')
  check_names(list(texts), f'{path}: authors')
  words = {}
  for author in sorted(texts):
    plain = ' '.join(texts[author]).translate(_PLAIN).lower()
    words[author] = _WORD.findall(plain)
    if not words[author]:
      raise InputError(f'{path}: author {author!r:.80} has no words')
  return words


def vocabulary(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
  """The most frequent words and their tokens, from 1; 0 is `UNKNOWN`.

  Args:
    texts: words of the training authors.
    size: of the vocabulary, `UNKNOWN` included.
  """
  counts = Counter(word for words in texts for word in words)
  frequent = sorted(counts, key=lambda word: (-counts[word], word))
  return {word: i for i, word in enumerate(frequent[: size - 1], 1)}


def encode_words(
  words: Sequence[str], tokens: Mapping[str, int], length: int
) -> Examples:
  """Words in sequences of T, and after each one the next.

  A next word that is not in the vocabulary is neither learnt nor counted.

  Args:
    words: of an author.
    tokens: from `vocabulary`.
    length: T.

  Returns:
    x [n, T] int32, y [n, T] int32; behind the end `UNKNOWN` and `NO_LABEL`. A
    single word has nothing to predict: n is 0.
  """
  said = np.array([tokens.get(word, UNKNOWN) for word in words], np.int32)
  n = -(-(len(said) - 1) // length)
  x = np.full(n * length, UNKNOWN, np.int32)
  y = np.full(n * length, NO_LABEL, np.int32)
  x[: len(said) - 1] = said[:-1]
  y[: len(said) - 1] = np.where(said[1:] == UNKNOWN, NO_LABEL, said[1:])
  return Examples(x.reshape(n, length), y.reshape(n, length))


def _outside_brackets(line: str, inside: bool) -> tuple[str, bool]:
  """What of a line is in no brackets, and whether one is still open."""
  kept = []
  for piece in re.split(r'([\[\]])', line):
    if piece in '[]' and piece:
      inside = piece == '['
    elif not inside:
      kept.append(piece)
  return ''.join(kept), inside


def _text(path: pathlib.Path) -> str:
  """A text file, or the only one of a zip archive."""
  content = readers.read_bytes(path)
  try:
    if content[:4] in (b'PK\3\4', b'PK\5\6'):
      with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # What systems put into archives beside the file is nobody's.
        (name,) = [
          name
          for name in archive.namelist()
          if name[-1:] != '/'
          and all(map(is_data, map(pathlib.Path, name.split('/'))))
        ]
        limit = readers.unpacked_limit(len(content))
        with archive.open(name) as file:
          content = readers.check_unpacked(path, file.read(limit), limit)
    return text.decode(content)
  except InputError:
    raise
  except UnicodeError as error:
    reason = getattr(error, 'reason', error)
    raise InputError(
      f'{path}: must be text in UTF-8, or begin with a byte order mark'
      f' ({reason})'
    ) from error
  # Of a damaged archive; RuntimeError of one with a password.
  except (
    *(ValueError, OSError, EOFError, LookupError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
  ) as e:
    raise InputError(
      f'{path}: not an archive of one file ({e}); {readers.GET_ANEW}'
    ) from e
  except RuntimeError as error:
    raise InputError(f'{path}: cannot be unpacked ({error})') from error
