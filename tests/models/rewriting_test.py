"""Rewritten functions have the same values and gradients."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import pytest

import fedavg_jax as fa
from fedavg_jax.models import layers
from fedavg_jax.models import rewriting
from tests.testing import convolutions
from tests.testing import rewritten

conv, normal = rewritten.conv, rewritten.normal


@pytest.fixture
def log(caplog):
  """Returns the log at the level INFO; every line counts as new."""
  rewriting.log_once.cache_clear()
  caplog.set_level('INFO', logger='absl')
  return caplog


@jax.custom_jvp
def twice(x, kernel):
  return 2 * conv(x, kernel)


@twice.defjvp
def _twice_jvp(primals, tangents):
  # A derivative that differs on purpose.
  return twice(*primals), 3 * conv(tangents[0], primals[1])


def in_scan(x, kernel):
  return lax.scan(
    lambda x, bias: (jnp.tanh(conv(x, kernel) + bias), jnp.sum(x)),
    x,
    jnp.arange(3.0),
  )


def in_while(x, kernel):
  """Computes a convolution after a loop of unknown length, without gradient."""
  return conv(x, kernel) * lax.stop_gradient(
    lax.while_loop(
      lambda x: jnp.sum(x**2) < 50.0,
      lambda x: conv(x, 2 * jnp.ones_like(kernel)) + 1,
      lax.stop_gradient(x),
    )
  )


def in_cond(x, kernel):
  return lax.cond(
    jnp.sum(x) > 0,
    lambda x: conv(x, kernel),
    lambda x: conv(x, -kernel),
    x,
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
    # A constant kernel.
    lambda x, kernel: conv(x) + jnp.sum(kernel),
    lambda x, kernel: conv(x, jax.grad(lambda k: jnp.sum(conv(x, k)))(kernel)),
  ],
  ids=range(9),
)
def test_inside(function):
  rewritten.check_the_same(
    function, normal(0, 1, 4, 5, 2), normal(2, 3, 3, 2, 2)
  )


def test_a_custom_derivative_is_kept(log):
  """A derivative that differs on purpose is not replaced."""
  x, kernel = normal(0, 1, 4, 5, 2), normal(2, 3, 3, 2, 2)
  rewritten.check_the_same(twice, x, kernel, rewritten=False)
  line = 'convolutions in custom_jvp_call float32[1,4,5,2] x float32[3,3,2,2]'
  assert line in log.text


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
def test_a_convolution_that_is_not_replaced(log, options, reason):
  """The program is the same, and one line says why."""
  groups = options.get('feature_group_count', 1)
  x, kernel = (
    normal(0, 2, 8, 7, 4),
    normal(1, 3, 3, 4 // groups, 4),
  )
  if 'preferred_element_type' in options:
    x, kernel = x.astype('bfloat16'), kernel.astype('bfloat16')

  def function(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      ((1, 1),) * 2,
      dimension_numbers=rewritten.NHWC,
      **options,
    )

  fast = rewriting.fast_function(function)
  assert rewritten.lowered(fast, x, kernel) == rewritten.lowered(
    function, x, kernel
  )
  fast(x, kernel)
  (record,) = log.records
  shapes = f'{x.dtype}[2,8,7,4] x {x.dtype}[3,3,{4 // groups},4]'
  assert record.getMessage() == (
    'model: runs as it is written, slowly on CPU: convolution'
    f' {shapes} ({reason})'
  )


def test_three_dimensions_are_not_replaced(log):
  x, kernel = (
    normal(0, 1, 4, 4, 4, 1),
    normal(1, 2, 2, 2, 1, 1),
  )

  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1,) * 3, 'SAME', None, None, ('NDHWC', 'DHWIO', 'NDHWC')
    )

  rewritten.check_the_same(function, x, kernel, rewritten=False)
  assert '(3 spatial dimensions)' in log.text


def test_a_model_is_rewritten_in_part(log):
  model = convolutions.model(groups=2)
  params = model.init(jax.random.key(0))
  rewritten.check_the_same(
    lambda params, x: model.apply(params, x),
    params,
    normal(0, 2, 8, 8, 1),
  )
  assert len(log.records) == 1 and '(groups)' in log.text


@pytest.mark.parametrize(
  'function',
  [
    lambda x, kernel: layers.max_pool2(
      layers.conv2d(x, kernel, padding=1) @ jnp.ones((2, 3))
    ),
    lambda x, kernel: nn.max_pool(x, (2, 2)) + jnp.sum(kernel),
    lambda x, kernel: x.reshape(2, 32) @ jnp.tile(kernel.reshape(4, 9), (8, 1)),
  ],
)
def test_a_program_without_convolutions_to_replace_is_unchanged(function):
  """Our layers are included: their convolutions are canonical already."""
  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  fast = rewriting.fast_function(function)
  assert rewritten.lowered(fast, x, kernel) == rewritten.lowered(
    function, x, kernel
  )


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_accelerators_get_the_program_unchanged(platform):
  x, kernel = normal(0, 2, 4, 4, 2), normal(1, 3, 3, 2, 2)
  with layers.for_platform(platform):
    fast = rewriting.fast_function(conv)
    assert rewritten.lowered(fast, x, kernel) == rewritten.lowered(
      conv, x, kernel
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
  assert rewritten.lowered(once, x, kernel) == rewritten.lowered(
    twice, x, kernel
  )
