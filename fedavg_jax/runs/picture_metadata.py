"""Writes and reads the maker of a picture, a field of its metadata.

It is Software in a PNG, /Creator in the information of a PDF, and dc:creator in
an SVG. Only a picture of the same maker is replaced.
"""

import pathlib
import re
import struct
from xml.etree import ElementTree

_PNG_START = b'\x89PNG\r\n\x1a\n'
_NAMES = {
  'dc': 'http://purl.org/dc/elements/1.1/',
  'cc': 'http://creativecommons.org/ns#',
  'rdf': 'http://www.w3.org/1999/02/22-rdf-syntax-ns#',
  'svg': 'http://www.w3.org/2000/svg',
}
_SVG_MAKER = 'svg:metadata/rdf:RDF/cc:Work/dc:creator/cc:Agent/dc:title'


def metadata(path: pathlib.Path, maker: str) -> dict[str, str]:
  """Returns the metadata of a new picture, as matplotlib takes them.

  >>> metadata(pathlib.Path('a.png'), 'fedavg_jax compare')
  {'Software': 'fedavg_jax compare'}

  Args:
    path: the path of the picture: a PNG, PDF or SVG, by its end.
    maker: the value of the field.
  """
  return {'Software' if path.suffix == '.png' else 'Creator': maker}


def is_made_by(path: pathlib.Path, maker: str) -> bool:
  """Returns whether a file is a picture whose metadata name a maker.

  Args:
    path: the path of the file, whose format is that of its end.
    maker: the whole value of the field.
  """
  read = {'.png': _of_png, '.pdf': _of_pdf, '.svg': _of_svg}.get(path.suffix)
  if read is None or not path.is_file():
    return False
  return read(path.read_bytes()) == maker


def _of_png(content: bytes) -> str | None:
  """Returns the text Software of a PNG; None without one."""
  start = len(_PNG_START)
  while content.startswith(_PNG_START) and start + 8 <= len(content):
    size, kind = struct.unpack_from('>I4s', content, start)
    keyword, _, text = content[start + 8 : start + 8 + size].partition(b'\0')
    if (kind, keyword) == (b'tEXt', b'Software'):
      return text.decode('latin-1')
    start += 12 + size  # With length, kind and checksum, 4 bytes each.
  return None


def _of_pdf(content: bytes) -> str | None:
  """Returns /Creator of a PDF's information, which its last trailer names."""
  trailer = content[content.rfind(b'trailer') :]
  number = re.search(rb'/Info (\d+) 0 R', trailer)
  if not content.startswith(b'%PDF') or number is None:
    return None
  begin = content.rfind(b'\n' + number[1] + b' 0 obj')
  entry = content[begin : content.find(b'endobj', begin)]
  found = re.search(rb'/Creator \(([^()\\]*)\)', entry)
  return found[1].decode('latin-1') if begin >= 0 and found else None


def _of_svg(content: bytes) -> str | None:
  """Returns dc:creator of an SVG; None without one."""
  try:
    root = ElementTree.fromstring(content)
  except (ElementTree.ParseError, ValueError, LookupError):
    return None
  return root.findtext(_SVG_MAKER, namespaces=_NAMES)
