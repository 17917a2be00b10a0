"""Every form that replaces an equation has its values and gradients."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.models import rewriting
from tests.testing import convolutions
from tests.testing import rest_slow
from tests.testing import rewritten

NHWC = rewritten.NHWC
conv, normal = rewritten.conv, rewritten.normal
NCHW = ('NCHW', 'OIHW', 'NCHW')


@pytest.mark.parametrize(
  ('x', 'kernel', 'strides', 'padding', 'numbers'),
  rest_slow(
    6,
    [
      ((2, 8, 7, 3), (5, 5, 3, 4), (1, 1), 'SAME', NHWC),
      ((1, 8, 7, 3), (4, 3, 3, 4), (2, 2), 'SAME', NHWC),
      ((2, 3, 8, 7), (4, 3, 2, 4), (1, 2), 'VALID', NCHW),
      ((2, 6, 6, 1), (2, 2, 1, 1), (3, 3), ((1, 0), (2, 3)), NHWC),
      ((6, 2, 3, 5), (3, 2, 4, 3), (2, 1), 'SAME', ('HNCW', 'HWOI', 'WCNH')),
      ((2, 9, 3), (4, 3, 4), (2,), 'SAME', ('NHC', 'HIO', 'NHC')),
      ((1, 8, 7, 3), (5, 5, 3, 4), (1, 1), 'VALID', NHWC),
      ((2, 3, 8, 7), (4, 3, 2, 4), (2, 2), 'SAME', NCHW),
      ((2, 8, 7, 3), (1, 1, 3, 4), (2, 2), 'VALID', NHWC),
      ((2, 8, 7, 3), (3, 3, 3, 4), (1, 1), ((4, 3), (0, 5)), NHWC),
      ((2, 3, 9), (4, 3, 4), (1,), ((3, 0),), ('NCH', 'OIH', 'NCH')),
    ],
    True,
  ),
)
def test_a_convolution(x, kernel, strides, padding, numbers):
  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, strides, padding, dimension_numbers=numbers
    )

  rewritten.check_the_same(function, normal(0, *x), normal(1, *kernel))


@pytest.mark.parametrize('axes', [(0, 1), (1, 0)])
def test_a_convolution_is_that_of_loops(axes):
  """The twin is independent; rows and columns are exchanged, too."""
  x, kernel = normal(0, 2, 6, 7, 3), normal(1, 3, 2, 3, 4)
  strides, padding = (2, 1), ((1, 2), (0, 1))
  # JAX orders strides and padding like the kernel's axes.
  fast = rewriting.fast_function(
    lambda x, kernel: lax.conv_general_dilated(
      x,
      kernel,
      [strides[axis] for axis in axes],
      [padding[axis] for axis in axes],
      dimension_numbers=('NHWC', 'HWIO' if axes == (0, 1) else 'WHIO', 'NHWC'),
    )
  )
  got = fast(x, kernel.transpose(*axes, 2, 3))
  expected = convolutions.conv(x, kernel, padding, strides)
  np.testing.assert_allclose(got, expected, atol=1e-4)


POOLS = [
  ((2, 2), (2, 2), 'VALID'),
  ((3, 3), (2, 2), 'SAME'),
  ((2, 3), (1, 2), ((1, 1), (0, 2))),
  ((5, 4), (5, 4), 'VALID'),
]


@pytest.mark.parametrize(('taps', 'strides', 'padding'), POOLS)
def test_a_maximum_after_a_convolution(taps, strides, padding):
  def function(x, kernel):
    return nn.max_pool(conv(x, kernel), taps, strides, padding)

  args = normal(0, 2, 5, 5, 2), normal(2, 3, 3, 2, 2)
  rewritten.check_the_same(function, *args)
  program = str(jax.make_jaxpr(rewriting.fast_function(function))(*args))
  assert 'reduce_window_max[' not in program


@pytest.mark.parametrize(('taps', 'strides', 'padding'), POOLS)
def test_the_first_of_tied_maxima_has_the_gradient(taps, strides, padding):
  """An identity kernel has integers as outputs, so that ties are frequent."""
  kernel = jnp.eye(2)[None, None]
  x = jnp.float32(np.random.default_rng(3).integers(-2, 2, (2, 6, 5, 2)))

  def function(x):
    return nn.max_pool(conv(x, kernel), taps, strides, padding)

  weights = normal(4, *jax.eval_shape(function, x).shape)

  def both(function):
    value, pull = jax.vjp(function, x)
    return value, pull(weights)[0]

  value, gradient = jax.jit(lambda: both(rewriting.fast_function(function)))()
  expected, expected_gradient = jax.jit(lambda: both(function))()
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_pools_that_are_not_replaced():
  """Those are pools of integers, dilated ones and large ones."""
  x = normal(0, 1, 10, 10, 1)
  kernel = jnp.ones((1, 1, 1, 1))

  def dilated(x):
    return lax.reduce_window(
      conv(x, kernel),
      -jnp.inf,
      lax.max,
      (1, 2, 2, 1),
      (1, 1, 1, 1),
      'VALID',
      window_dilation=(1, 2, 2, 1),
    )

  def integers(x):
    return nn.max_pool(jnp.int32(conv(x, kernel)), (2, 2), (2, 2))

  def large(x):
    return nn.max_pool(conv(x, kernel), (10, 10))

  for function in (dilated, integers, large):
    fast = rewriting.fast_function(function)
    assert 'reduce_window_max[' in str(jax.make_jaxpr(fast)(x))
    np.testing.assert_array_equal(fast(x), function(x))


def test_a_product_after_a_convolution():
  """Only a batch times a kernel is replaced; exact products are not."""
  x, kernel, dense = (
    normal(0, 2, 4, 5, 2),
    normal(2, 3, 3, 2, 2),
    normal(3, 4, 3),
  )

  def function(x, kernel, dense):
    flat = conv(x, kernel).sum(axis=2).reshape(4, 4)
    turned = lax.dot_general(dense, flat, (((0,), (1,)), ((), ())))
    return flat @ dense, turned, jnp.dot(flat, dense, precision='highest')

  rewritten.check_the_same(function, x, kernel, dense)
  fast = rewriting.fast_function(function)
  program = str(jax.make_jaxpr(fast)(x, kernel, dense))
  assert program.count('name=fast_dot_general') == 1
  assert 'precision=(Precision.HIGHEST' in program


def test_precision_is_kept():
  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=NHWC, precision='highest'
    )

  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  text = rewritten.lowered(rewriting.fast_function(function), x, kernel)
  assert text.count('stablehlo.convolution') >= 2
  assert text.count('precision HIGHEST') == 2 * text.count(
    'stablehlo.convolution'
  )
