"""Parses plays and texts by author, and encodes them as arrays of tokens.

NumPy only. Characters are bytes, as in McMahan et al. 2017; the vocabulary has
the most frequent words.
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

# Tokens 0 to 255 are bytes; then come the end of a line and the padding.
END, PADDING, NUM_CHARACTERS = 256, 257, 258
# Characters that old and new editions of a text write differently.
_PLAIN = str.maketrans(
  {'‘': "'", '’': "'", '“': '"', '”': '"', '—': '--', '–': '-', '\xa0': ' '}
)
_HEADING = re.compile(r'(ACT|SCENE)\b[ IVXLC:]*$')
_HEADINGS = re.compile(r'(ACT|SCENE|Scene|Act) [IVXLC\d]+\b')
# A name is one to five capitalised words, of which the first may be a title.
_TITLE = r'(?:\d\. |MRS\. |ST\. |Mrs\. )?'
_NAME = rf"({_TITLE}[A-Z][\w'&-]*(?: (?:[A-Z][\w'&-]*|of|the|de|and)){{0,4}})\."
_CAPITALS = rf"({_TITLE}[A-Z][A-Z'&-]*(?: [A-Z][A-Z'&-]*){{0,4}})\."
# Directions without brackets, on a separate line or after a speech.
_DIRECTION = re.compile(r'(Re-?[Ee]nter|Enter|Exit|Exeunt|Flourish|Alarums?)\b')
_LEAVES = re.compile(r'(?:\s{2,}|(?<=[.!?;,-])\s)(?:Exit|Exeunt|Enter)\b.*$')


class _Style(NamedTuple):
  """Describes how an edition prints speeches.

  Attributes:
    begin: the pattern of a name and the speech's first words on the same line.
    further: the pattern of a further line of the speech.
  """

  begin: re.Pattern[str]
  further: re.Pattern[str]


# The eBook prints different plays in different styles.
_STYLES = (
  _Style(re.compile(rf'  {_NAME} +(\S.*)'), re.compile(r'    (.*)')),
  _Style(re.compile(rf'{_CAPITALS} +(\S.*)'), re.compile(r' +(.*)')),
  _Style(re.compile(rf' *{_CAPITALS}()\s*$'), re.compile(r'(.*)')),
)
# A work with fewer speeches is a poem.
_FEWEST_SPEECHES = 100
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
UNKNOWN = 0  # The token of all words that are not in the vocabulary.


def read_complete_works(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  r"""Reads Project Gutenberg's eBook 100, the complete works of Shakespeare.

  Works are separated by the titles in its table of contents. Every play is
  parsed by the one of three styles of printing speeches that matches most
  often; works without speeches are poems and are skipped. Stage directions in
  brackets, entrances and exits are dropped; other directions remain in the
  speech.

  Args:
    path: the text file or its zip archive.

  Returns:
    Title -> role -> its lines, in the order in which they are spoken.

  Raises:
    InputError: the file cannot be read, has no contents, or no role speaks.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> book = 'Contents\n\nA PLAY\n\nA PLAY\n\n' + 'ANN. To be.\n' * 100
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / '100-0.txt'
  ...   _ = path.write_text(book)
  ...   plays = fa.data.read_complete_works(path)
  >>> [(title, list(play), len(play['ANN'])) for title, play in plays.items()]
  [('A PLAY', ['ANN'], 100)]
  """
  lines = text.split_lines(_text(path).translate(_PLAIN))
  plays = {}
  for title, work in _works(path, lines):
    style = max(_STYLES, key=lambda style: _speeches(style, work))
    if _speeches(style, work) >= _FEWEST_SPEECHES:
      plays[title] = _roles(style, work)
  if not plays:
    raise InputError(
      f'{path}: no role speaks; must be the complete works, with speeches'
      ' "NAME. ..."'
    )
  return plays


def _works(path, lines) -> Iterable[tuple[str, list[str]]]:
  """Yields title and lines of every work in the table of contents."""

  def plain(line):
    return line.strip().rstrip(':').upper()

  titles: list[str] = []
  contents = [i for i, line in enumerate(lines) if plain(line) == 'CONTENTS']
  number = contents[0] + 1 if contents else len(lines)
  # The contents end where the first work begins with its title.
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
  """Returns role -> its lines for a play."""
  roles: dict[str, list[str]] = {}
  role, direction, skips = '', False, False
  for line in lines:
    amid = direction  # The line begins inside a stage direction.
    line, direction = _outside_brackets(line, direction)
    plain = line.strip()
    if not plain:  # A direction may also interrupt a speech.
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
    # Where all lines begin at the margin, those below a direction belong to it.
    skips = skips or _DIRECTION.match(plain) is not None
    said = _LEAVES.sub('', said).strip()
    if role and said and not skips:
      roles.setdefault(role, []).append(said)
    skips = skips and style is _STYLES[-1]
  return roles


def read_play(path: pathlib.Path) -> dict[str, list[str]]:
  r"""Reads a plain-text play.

  In this format a cast ends with a line that begins with SCENE and a tab. Then
  come speeches, `NAME<tab>line`, whose further lines begin with a tab. A long
  name begins on a separate line. Stage directions in brackets, headings of acts
  and scenes and the title of the play are dropped.

  Args:
    path: the text file or its zip archive.

  Returns:
    Role -> its lines, in the order in which they are spoken.

  Raises:
    InputError: the file cannot be read, is not text, or has no roles.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'play.txt'
  ...   _ = path.write_text('SCENE\tRome\nANN\tTo be\n\tor not.\nBOB\tAy.\n')
  ...   roles = fa.data.read_play(path)
  >>> roles
  {'ANN': ['To be', 'or not.'], 'BOB': ['Ay.']}
  """
  lines = text.split_lines(_text(path))
  title = next((line.strip() for line in lines if line.strip()), '')
  headings = (title, 'INDUCTION', 'PROLOGUE', 'EPILOGUE')
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
    if _HEADING.match(role):  # A heading with the scene and its place.
      role = ''
      continue
    # Directions may span several lines, and interrupt a speech.
    kept, direction = _outside_brackets(spoken, direction)
    kept = kept.strip()
    if kept and role and kept not in headings and not _HEADING.match(kept):
      roles.setdefault(role, []).append(kept)
  if not roles:
    raise InputError(
      f'{path}: no role speaks; must be a play with a line "SCENE<tab>..." and'
      ' then lines "NAME<tab>..."'
    )
  return roles


def split_lines(lines: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits a role's lines into training and test lines.

  The last fifth, rounded down but at least one line, is for the test (McMahan
  et al. 2017, section 3), as in the authors' script, which LEAF contains.
  """
  tested = max(int(0.2 * len(lines)), 1)
  return list(lines[:-tested]), list(lines[-tested:])


def encode_lines(lines: Iterable[str], length: int) -> Examples:
  """Encodes lines as bytes; each byte's label is the next one, or `END`.

  Args:
    lines: the lines, none of them empty.
    length: T, the tokens of a sequence; a longer line becomes several.

  Returns:
    x [n, T] int32, with `PADDING` behind a line; y [n, T] int32, with
    `NO_LABEL` there.
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
  """Reads the words of each author's text, in lower case.

  Args:
    path: a folder with a file NAME.txt for every author; or a file of JSON
      lines, each an object with the strings `author` and `text`, with any
      number of lines per author.

  Returns:
    Author -> words in their order, with authors in alphabetical order.

  Raises:
    InputError: a file cannot be read, has another format, or has no words.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'posts.jsonl'
  ...   _ = path.write_text('{"author": "ann", "text": "To be, or not"}')
  ...   authors = fa.data.read_authors(path)
  >>> authors
  {'ann': ['to', 'be', 'or', 'not']}
  """
  texts: dict[str, list[str]] = {}
  if path.is_dir():
    files = [file for file in entries(path) if file.suffix.lower() == '.txt']
    names = [file.name for file in files]
    check_names([file.stem for file in files], f'{path}: authors', names)
    texts = {file.stem: [_text(file)] for file in files}
    if not texts:
      raise InputError(f'{path}: has no AUTHOR.txt')
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
          ' and text, once each'
        ) from None
      texts.setdefault(author, []).append(said)
    if not texts:
      raise InputError(f'{path}: has no lines')
  check_names(list(texts), f'{path}: authors')
  words = {}
  for author in sorted(texts):
    plain = ' '.join(texts[author]).translate(_PLAIN).lower()
    words[author] = _WORD.findall(plain)
    if not words[author]:
      raise InputError(f'{path}: author {author!r:.80} has no words')
  return words


def vocabulary(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
  """Returns word -> token for the most frequent words.

  Tokens count from 1, the most frequent word first; 0 is `UNKNOWN`.

  Args:
    texts: the words of each training author.
    size: the size of the vocabulary, `UNKNOWN` included.
  """
  counts = Counter(word for words in texts for word in words)
  frequent = sorted(counts, key=lambda word: (-counts[word], word))
  return {word: i for i, word in enumerate(frequent[: size - 1], 1)}


def encode_words(
  words: Sequence[str], tokens: Mapping[str, int], length: int
) -> Examples:
  """Encodes words in sequences of T; each word's label is the next one.

  A next word that is not in the vocabulary gets `NO_LABEL`, so it is neither
  trained on nor counted.

  Args:
    words: the words of an author.
    tokens: word -> token, from `vocabulary`.
    length: T, the words of a sequence.

  Returns:
    x [n, T] int32 and y [n, T] int32, padded with `UNKNOWN` and `NO_LABEL`. A
    single word has no next one, so n is 0.
  """
  said = np.array([tokens.get(word, UNKNOWN) for word in words], np.int32)
  n = -(-(len(said) - 1) // length)
  x = np.full(n * length, UNKNOWN, np.int32)
  y = np.full(n * length, NO_LABEL, np.int32)
  x[: len(said) - 1] = said[:-1]
  y[: len(said) - 1] = np.where(said[1:] == UNKNOWN, NO_LABEL, said[1:])
  return Examples(x.reshape(n, length), y.reshape(n, length))


def _outside_brackets(line: str, inside: bool) -> tuple[str, bool]:
  """Returns a line without what is in brackets, and whether one is open."""
  kept = []
  for piece in re.split(r'([\[\]])', line):
    if piece in '[]' and piece:
      inside = piece == '['
    elif not inside:
      kept.append(piece)
  return ''.join(kept), inside


def _text(path: pathlib.Path) -> str:
  """Reads a text file, or the only file of a zip archive."""
  content = readers.read_bytes(path)
  try:
    if content[:4] in (b'PK\3\4', b'PK\5\6'):
      with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Operating systems add files of their own to archives.
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
  # Errors of a damaged archive; RuntimeError is that of an encrypted one.
  except (
    *(ValueError, OSError, EOFError, LookupError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
  ) as e:
    raise InputError(
      f'{path}: is not an archive of one file ({e}); {readers.GET_ANEW}'
    ) from e
  except RuntimeError as error:
    raise InputError(f'{path}: cannot be unpacked ({error})') from error
