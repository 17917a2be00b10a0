"""Rewritten functions: the same values and gradients, in other equations."""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.models import layers
from fedavg_jax.models import rewriting
from tests.testing import convolutions
from tests.testing import rest_slow


@pytest.fixture
def log(caplog):
  """What is logged at the level of INFO, each line as if for the first time."""
  rewriting.log_once.cache_clear()
  caplog.set_level('INFO', logger='absl')
  return caplog


def normal(seed, *shape):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def check_the_same(function, *args, rewritten=True):
  """Values and all gradients, for one client and for several under `vmap`."""
  fast = rewriting.fast_function(function)
  assert ('custom_vjp_call' in str(jax.make_jaxpr(fast)(*args))) == rewritten

  def both(function, *args):
    out, pull = jax.vjp(function, *args)
    weights = jax.tree.map(
      lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(
        leaf.shape
      ),
      out,
    )
    return out, pull(weights)

  def compare(transform):
    for a, b in zip(
      jax.tree.leaves(transform(functools.partial(both, fast))),
      jax.tree.leaves(transform(functools.partial(both, function))),
      strict=True,
    ):
      assert a.dtype == b.dtype
      np.testing.assert_allclose(a, b, atol=3e-5 * max(1, np.abs(b).max()))

  compare(lambda one: one(*args))
  clients = jax.tree.map(
    lambda a: jnp.stack([a, a[::-1] if a.ndim else a, 2 * a]), args
  )
  compare(lambda one: jax.jit(jax.vmap(one))(*clients))


NHWC = ('NHWC', 'HWIO', 'NHWC')
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

  check_the_same(function, normal(0, *x), normal(1, *kernel))


@pytest.mark.parametrize('axes', [(0, 1), (1, 0)])
def test_a_convolution_is_that_of_loops(axes):
  """The independent twin; rows and columns also change places."""
  x, kernel = normal(0, 2, 6, 7, 3), normal(1, 3, 2, 3, 4)
  strides, padding = (2, 1), ((1, 2), (0, 1))
  # JAX counts strides and padding in the order of the kernel's axes.
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


KERNEL = normal(1, 3, 3, 2, 2)


def conv(x, kernel=KERNEL):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', None, None, NHWC)


@jax.custom_jvp
def twice(x, kernel):
  return 2 * conv(x, kernel)


@twice.defjvp
def _twice_jvp(primals, tangents):
  return twice(*primals), 3 * conv(tangents[0], primals[1])  # Its author's.


def in_scan(x, kernel):
  return lax.scan(
    lambda x, bias: (jnp.tanh(conv(x, kernel) + bias), jnp.sum(x)),
    x,
    jnp.arange(3.0),
  )


def in_while(x, kernel):
  """Behind a loop of unknown length, which has no gradient."""
  return conv(x, kernel) * lax.stop_gradient(
    lax.while_loop(
      lambda x: jnp.sum(x**2) < 50.0,
      lambda x: conv(x, 2 * jnp.ones_like(kernel)) + 1,
      lax.stop_gradient(x),
    )
  )


def in_cond(x, kernel):
  return lax.cond(
    jnp.sum(x) > 0, lambda x: conv(x, kernel), lambda x: conv(x, -kernel), x
  )


@pytest.mark.parametrize(
  'function',
  [
    jax.jit(conv),
    jax.checkpoint(lambda x, kernel: jnp.sin(conv(jnp.sin(x), kernel))),
    in_scan,
    in_cond,
    in_while,
    lambda x, kernel: jax.jit(in_scan)(conv(x, kernel), kernel),
    lambda x, kernel: {'a': (conv(x, kernel), x), 'b': None},
    lambda x, kernel: conv(x) + jnp.sum(kernel),  # A kernel that is a constant.
    lambda x, kernel: conv(x, jax.grad(lambda k: jnp.sum(conv(x, k)))(kernel)),
  ],
  ids=range(9),
)
def test_inside(function):
  check_the_same(function, normal(0, 1, 4, 5, 2), normal(2, 3, 3, 2, 2))


def test_a_rule_of_its_own_stays(log):
  """A derivative that is another one by intent is not replaced."""
  x, kernel = normal(0, 1, 4, 5, 2), normal(2, 3, 3, 2, 2)
  check_the_same(twice, x, kernel, rewritten=False)
  line = 'convolutions in custom_jvp_call float32[1,4,5,2] x float32[3,3,2,2]'
  assert line in log.text


POOLS = [
  ((2, 2), (2, 2), 'VALID'),
  ((3, 3), (2, 2), 'SAME'),
  ((2, 3), (1, 2), ((1, 1), (0, 2))),
  ((5, 4), (5, 4), 'VALID'),
]


@pytest.mark.parametrize(('taps', 'strides', 'padding'), POOLS)
def test_a_maximum_behind_a_convolution(taps, strides, padding):
  def function(x, kernel):
    return nn.max_pool(conv(x, kernel), taps, strides, padding)

  args = normal(0, 2, 5, 5, 2), normal(2, 3, 3, 2, 2)
  check_the_same(function, *args)
  program = str(jax.make_jaxpr(rewriting.fast_function(function))(*args))
  assert 'reduce_window_max[' not in program


@pytest.mark.parametrize(('taps', 'strides', 'padding'), POOLS)
def test_the_first_of_tied_maxima_has_the_gradient(taps, strides, padding):
  """Whole numbers from a kernel that changes nothing: ties are frequent."""
  kernel = jnp.eye(2)[None, None]
  x = jnp.float32(np.random.default_rng(3).integers(-2, 2, (2, 6, 5, 2)))

  def function(x):
    return nn.max_pool(conv(x, kernel), taps, strides, padding)

  value, pull = jax.vjp(rewriting.fast_function(function), x)
  weights = normal(4, *value.shape)
  expected, expected_pull = jax.vjp(function, x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_allclose(
    pull(weights)[0], expected_pull(weights)[0], atol=1e-6
  )


def test_pools_that_stay():
  """Dilated, of integers, large, and without any convolution."""
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
    assert 'reduce_window_max' in str(jax.make_jaxpr(fast)(x))
    np.testing.assert_array_equal(fast(x), function(x))


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'rhs_dilation': (2, 1)}, 'dilation'),
    ({'lhs_dilation': (1, 2)}, 'dilation'),
    ({'feature_group_count': 2}, 'groups'),
    ({'batch_group_count': 2}, 'groups'),
    ({'preferred_element_type': jnp.float32}, 'the type of its result'),
  ],
)
def test_a_convolution_that_stays(log, options, reason):
  """The same program, and one line that says why."""
  groups = options.get('feature_group_count', 1)
  x, kernel = normal(0, 2, 8, 7, 4), normal(1, 3, 3, 4 // groups, 4)
  if 'preferred_element_type' in options:
    x, kernel = x.astype('bfloat16'), kernel.astype('bfloat16')

  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1),) * 2, dimension_numbers=NHWC, **options
    )

  fast = rewriting.fast_function(function)
  assert lowered(fast, x, kernel) == lowered(function, x, kernel)
  fast(x, kernel)
  (record,) = log.records
  shapes = f'{x.dtype}[2,8,7,4] x {x.dtype}[3,3,{4 // groups},4]'
  assert record.getMessage() == (
    'model: runs as it is written, slowly on CPU: convolution'
    f' {shapes} ({reason})'
  )


def lowered(function, *args):
  """What XLA gets of values and gradients of several clients."""

  def one(*args):
    return jax.value_and_grad(lambda *a: jnp.sum(function(*a)))(*args)

  clients = jax.tree.map(lambda a: jnp.stack([a, a]), args)
  return jax.jit(jax.vmap(one)).lower(*clients).as_text()


def test_three_dimensions_stay(log):
  x, kernel = normal(0, 1, 4, 4, 4, 1), normal(1, 2, 2, 2, 1, 1)

  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1,) * 3, 'SAME', None, None, ('NDHWC', 'DHWIO', 'NDHWC')
    )

  check_the_same(function, x, kernel, rewritten=False)
  assert '(3 spatial dimensions)' in log.text


def test_what_can_be_replaced_is_beside_what_cannot(log):
  model = convolutions.model(groups=2)
  params = model.init(jax.random.key(0))
  check_the_same(
    lambda params, x: model.apply(params, x), params, normal(0, 2, 8, 8, 1)
  )
  assert len(log.records) == 1 and '(groups)' in log.text


@pytest.mark.parametrize(
  'function',
  [
    lambda x, kernel: layers.max_pool2(
      layers.conv2d(x, kernel, padding=1) @ jnp.ones((2, 3))
    ),
    lambda x, kernel: nn.max_pool(x, (2, 2)) + jnp.sum(kernel),
  ],
)
def test_a_program_without_convolutions_to_replace_is_the_same(function):
  """Also that of our layers, whose convolutions are what others become."""
  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  fast = rewriting.fast_function(function)
  assert lowered(fast, x, kernel) == lowered(function, x, kernel)


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_accelerators_get_the_program_as_it_is(platform):
  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  with layers.for_platform(platform):
    fast = rewriting.fast_function(conv)
    assert lowered(fast, x, kernel) == lowered(conv, x, kernel)


def test_precision_stays():
  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=NHWC, precision='highest'
    )

  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  text = lowered(rewriting.fast_function(function), x, kernel)
  assert text.count('stablehlo.convolution') >= 2
  assert text.count('precision HIGHEST') == 2 * text.count(
    'stablehlo.convolution'
  )


def test_a_model_is_rewritten_unless_it_is_as_written():
  model = convolutions.model()
  assert rewriting.fast_model(model).apply is not model.apply
  own = model._replace(as_written=True)
  assert rewriting.fast_model(own) is own
  data = fa.load_dataset('digits')
  zoo = fa.build_model('2nn', data)
  assert rewriting.fast_model(zoo) is zoo


def test_rewriting_twice_is_rewriting_once():
  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  once = rewriting.fast_function(conv)
  twice = rewriting.fast_function(once)
  assert lowered(once, x, kernel) == lowered(twice, x, kernel)
