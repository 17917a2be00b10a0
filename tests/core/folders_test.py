"""Folders have data in natural order, and a replaced one is noticed."""

import os
import shutil

import pytest

from fedavg_jax.core import folders
from fedavg_jax.core import text
from fedavg_jax.core.errors import InputError


def test_entries_are_data_in_natural_order(tmp_path):
  for name in ('b10', 'b9', 'a', 'b', 'B1', '01', '1', 'é', 'b9c'):
    (tmp_path / name).touch()
  for name in ('.hidden', '._a', 'Thumbs.db', 'DESKTOP.INI', '__MACOSX'):
    (tmp_path / name).touch()
  (tmp_path / '@eaDir').mkdir()
  (tmp_path / 'Icon\r').touch()
  names = [path.name for path in folders.entries(tmp_path)]
  assert names == ['01', '1', 'B1', 'a', 'b', 'b9', 'b9c', 'b10', 'é']
  assert folders.entries(tmp_path / 'none') == []
  assert folders.entries(tmp_path / 'a') == []


def test_duplicate_names_are_refused():
  folders.check_names(['a', 'A', 'b'], 'clients')
  for names in (['a', 'a'], ['\u00e9', 'e\u0301']):
    with pytest.raises(InputError, match='clients: .* are one name'):
      folders.check_names(names, 'clients')


def test_two_spellings_in_unicode_look_different():
  with pytest.raises(InputError, match=r"'\\xe9.txt' and 'e\\u0301.TXT' are"):
    folders.check_names(
      ['\u00e9', 'e\u0301'], 'clients', ['\u00e9.txt', 'e\u0301.TXT']
    )


def test_a_file_is_found_whatever_its_capitals(tmp_path):
  (tmp_path / 'in').mkdir()
  for name in ('A.GZ', 'b.gz', 'B.GZ'):
    (tmp_path / 'in' / name).touch()
  assert folders.find_file(tmp_path, 'in/a.gz').name == 'A.GZ'
  assert folders.find_file(tmp_path, 'in/b.gz').name == 'b.gz'
  assert folders.find_file(tmp_path, 'in/c.gz') is None
  assert folders.find_file(tmp_path, 'in') is None
  assert folders.find_file(tmp_path / 'none', 'c.gz') is None


def test_a_deleted_or_replaced_file_is_noticed(tmp_path):
  path = tmp_path / 'f' / '.lock'
  path.parent.mkdir()
  path.touch()
  locked = folders.HeldFile(path, 'workdir = f')
  locked.check()
  shutil.rmtree(path.parent)
  with pytest.raises(InputError, match='workdir = f: was deleted or replaced'):
    locked.check()
  path.parent.mkdir()
  path.touch()  # The same name, but another file.
  with pytest.raises(InputError, match='was deleted or replaced'):
    locked.check()
  locked.close()
  locked.close()


def test_a_moved_folder_is_noticed(tmp_path):
  path = tmp_path / 'f' / '.lock'
  path.parent.mkdir()
  path.touch()
  locked = folders.HeldFile(path, 'f')
  os.rename(tmp_path / 'f', tmp_path / 'g')
  with pytest.raises(InputError):
    locked.check()
  os.rename(tmp_path / 'g', tmp_path / 'f')
  locked.check()
  locked.close()


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_text_with_a_mark(encoding):
  assert text.decode('naïve 漢'.encode(encoding)) == 'naïve 漢'


@pytest.mark.parametrize('content', [b'\xff', b'\xff\xfea', b'\xc3('])
def test_bytes_that_are_no_text(content):
  with pytest.raises(UnicodeError):
    text.decode(content)


def test_lines_end_in_three_ways_alone():
  assert text.split_lines('a\nb\r\nc\rd') == ['a', 'b', 'c', 'd']
  assert text.split_lines('a\n\n') == ['a', '']
  assert text.split_lines('') == []
  inside = 'a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b'
  assert text.split_lines(inside + '\n') == [inside]
