"""Values of any dtype are kept exactly, or refused in one line."""

import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from fedavg_jax.core import exact
from fedavg_jax.core.errors import InputError

DTYPES = ('b1', 'i1', 'u1', '<i2', '>i2', 'u4', '>i4', 'i8', 'u8', 'f2', 'f8')


@pytest.mark.parametrize('dtype', DTYPES)
def test_class_numbers_of_every_dtype(dtype):
  y = np.array([0, 1, 1, 0], dtype)
  found = exact.class_numbers(y, 'y', num_classes=2)
  assert found.dtype == np.int32 and found.tolist() == [0, 1, 1, 0]


def test_int32_is_not_copied():
  y = np.arange(5, dtype=np.int32)
  assert exact.class_numbers(y, 'y') is y


@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(), (3,)))
@settings(max_examples=200, deadline=None)
def test_what_is_returned_equals_what_was_given(values):
  """The values are equal as Python's numbers, or refused."""
  try:
    found = exact.class_numbers(values, 'y')
  except InputError as error:
    assert '\n' not in str(error)
    wrong = [v for v in values.tolist() if not (v == v and 0 <= v < 2**31)]
    assert wrong or any(v != int(v) for v in values.tolist())
  else:
    assert found.tolist() == values.tolist()


@given(
  hnp.arrays(
    hnp.integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.unsigned_integer_dtypes(),
    st.sampled_from([(2,), (2, 3), (0, 2)]),
  )
)
@settings(max_examples=200, deadline=None)
def test_inputs_keep_their_values(x):
  try:
    found = exact.inputs(x, 'x')
  except InputError as error:
    assert '\n' not in str(error)
    return
  assert found.dtype.itemsize <= 4 and found.dtype.isnative
  if x.dtype.kind == 'f':
    np.testing.assert_array_equal(
      found.astype('f8'), x.astype('f4').astype('f8')
    )
  else:
    assert found.tolist() == x.tolist()


@pytest.mark.parametrize(
  ('y', 'words'),
  [
    ([[1], [0]], 'y: has the shape [2, 1], must have [n]'),
    (np.eye(3, dtype=int), 'not one-hot rows or a column'),
    (5, 'y: has the shape []'),
    ([0.5], 'y: holds 0.5 at row 0, must be whole numbers'),
    ([1.0, np.nan], 'y: holds nan at row 1'),
    ([np.inf], 'y: holds inf'),
    ([2**31], 'y: holds 2147483648 to 2147483648, must be in [0, 2147483647]'),
    (np.array([2**64 - 1], 'u8'), '18446744073709551615'),
    ([-1], 'must be in [0, '),
    ([10**30], 'y: '),
    ([1e300], 'y: holds 1e+300 to 1e+300, must be in [0, 2147483647]'),
    (['cat'], 'y: is <U3, must be whole numbers'),
    ([None], 'y: is object'),
    ([1 + 2j], 'y: is complex128'),
    (np.array(['2026-01-01'], 'M8[D]'), 'y: is datetime64'),
    ([[1], [1, 2]], 'y: must be an array of numbers'),
  ],
)
def test_labels_that_are_refused(y, words):
  with pytest.raises(InputError, match=re.escape(words)):
    exact.class_numbers(y, 'y')


@pytest.mark.parametrize(
  ('x', 'words'),
  [
    (3.0, 'x: is a single number'),
    ([1e39], 'x: holds 1e+39 at row 0, too large for float32'),
    ([2**31], 'x: holds 2147483648'),
    (np.array([-(2**31) - 1]), 'x: holds -2147483649'),
    ([1j], 'x: is complex128, must be real numbers'),
    (['a'], 'x: is <U1'),
    ([{}], 'x: is object'),
    (np.zeros(2, [('a', 'i1'), ('b', 'i1')]), 'x: is [('),
  ],
)
def test_inputs_that_are_refused(x, words):
  with pytest.raises(InputError, match=re.escape(words)):
    exact.inputs(x, 'x')


@pytest.mark.parametrize('enter', [exact.class_numbers, exact.inputs])
def test_masked_values_are_refused(enter):
  """NumPy would silently return the value behind the mask."""
  values = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
  with pytest.raises(
    InputError, match='v: has 1 masked values, must have none'
  ):
    enter(values, 'v')
  unmasked = np.ma.masked_array([1, 2, 3], mask=False)
  assert enter(unmasked, 'v').tolist() == [1, 2, 3]
