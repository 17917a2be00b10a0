"""Decodes text files of any origin and splits them into lines."""

import codecs
import re

# The longest is first: the mark of UTF-32 begins like that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)
_END = re.compile(r'\r\n|\r|\n')


def decode(content: bytes) -> str:
  """Decodes UTF-8, or the encoding of a byte order mark, which is removed.

  Raises:
    UnicodeError: the bytes are not text of that encoding.
  """
  for mark, encoding in _MARKS:
    if content.startswith(mark):
      return content.decode(encoding)
  return content.decode('utf-8')


def split_lines(text: str) -> list[str]:
  r"""Splits text at \n, \r\n and \r only, without an empty line at the end.

  `str.splitlines` splits at eight more characters, which JSON allows inside a
  string.

  >>> split_lines('a\u2028b\r\nc\n')
  ['a\u2028b', 'c']
  """
  lines = _END.split(text)
  return lines[:-1] if not lines[-1] else lines
