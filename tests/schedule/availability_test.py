"""Availability traces are read exactly, or refused with the line's number."""

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.availability import read_trace


def test_trace_file(tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text('client,first,last\n0,1,10\n 4 ,3,3\n')
  trace = read_trace(path, 5)
  assert trace.client.tolist() == [0, 4]
  assert trace.available(3, 5).tolist() == [True, False, False, False, True]
  assert trace.available(13, 5).tolist() == trace.available(3, 5).tolist()


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('0,1,2\n', 'line 1 must be client,first,last'),
    ('', 'line 1 must be client,first,last'),
    ('client,first,last\n', 'has no periods'),
    ('client,first,last\n5,1,2\n', 'line 2: client = 5: must be in [0, 4]'),
    ('client,first,last\n0,1,2\n-1,1,2\n', 'line 3: client = -1: must be in'),
    ('client,first,last\n0,1\n', 'line 2: expected three whole numbers'),
    ('client,first,last\n0,1,x\n', 'line 2: expected three whole numbers'),
    ('client,first,last\n0,0,2\n', 'line 2: rounds 0 to 2: must have'),
    ('client,first,last\n0,3,2\n', 'line 2: rounds 3 to 2: must have'),
    ('client,first,last\n0,1,2\0\xff', 'line 2'),
    ('client,first,last\n0,1,2,3\n', 'line 2: expected three whole numbers'),
    ('client,first,last\n0,1,2,\n', 'line 2: expected three whole numbers'),
    ('client,first,last\n0,1_0,20\n', "whole numbers, got '0,1_0,20'"),
    ('client,first,last\n0,1.0,2\n', "whole numbers, got '0,1.0,2'"),
    (
      'client,first,last\n0,1,' + '9' * 5000,
      'line 2: expected three whole numbers',
    ),
    ('client,first,last\n"0,1,2\n0,1,2\n', 'expected three whole numbers'),
    ('client;first;last\n0;1;2\n', 'line 1 must be client,first,last'),
    ('client,first,last,more\n0,1,2,3\n', 'line 1 must be client,first,last'),
  ],
)
def test_traces_that_are_refused(tmp_path, content, words):
  path = tmp_path / 'trace.csv'
  path.write_bytes(content.encode('latin-1'))
  with pytest.raises(InputError, match='trace.csv') as caught:
    read_trace(path, 5)
  assert words in str(caught.value) or 'cannot be read' in str(caught.value)
  with pytest.raises(InputError, match='cannot be read .No such file'):
    read_trace(tmp_path / 'nowhere.csv', 5)


@pytest.mark.parametrize(
  'content',
  [
    b'client,first,last\r0,1,2\r4,1,3\r',
    b'\xef\xbb\xbfclient,first,last\r\n0,1,2\r\n\r\n4,1,3',
    ' client , first,last\n 0 , 1,\t2 \n,,\n4,1,3\n'.encode('utf-16'),
    b'"client","first","last"\n"0", "1","2" \n+4,1,3\n',
  ],
)
def test_traces_as_spreadsheets_write_them(tmp_path, content):
  (tmp_path / 'trace.csv').write_bytes(content)
  trace = read_trace(tmp_path / 'trace.csv', 5)
  assert trace.client.tolist() == [0, 4]
  assert trace.first.tolist() == [1, 1] and trace.last.tolist() == [2, 3]


def test_digits_of_other_scripts_are_refused(tmp_path):
  path = tmp_path / 'trace.csv'
  path.write_text('client,first,last\n\u0663,1,2\n', encoding='utf-8')
  with pytest.raises(InputError, match='line 2: expected three whole numbers'):
    read_trace(path, 5)


def test_a_trace_in_the_home_of_an_unknown_user():
  with pytest.raises(InputError, match='~nobody-at-all/t.csv: cannot be read'):
    read_trace('~nobody-at-all/t.csv', 5)
