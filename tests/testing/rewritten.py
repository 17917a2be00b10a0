"""Compares functions of a kernel and images with their rewritten forms."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.models import rewriting

NHWC = ('NHWC', 'HWIO', 'NHWC')


def normal(seed, *shape):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


KERNEL = normal(1, 3, 3, 2, 2)


def conv(x, kernel=KERNEL):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', None, None, NHWC)


def check_the_same(function, *args, rewritten=True):
  """Compares values and all gradients, of one client and under `vmap`."""
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

  compare(lambda one: jax.jit(one)(*args))
  clients = jax.tree.map(
    lambda a: jnp.stack([a, a[::-1] if a.ndim else a, 2 * a]), args
  )
  compare(lambda one: jax.jit(jax.vmap(one))(*clients))


def lowered(function, *args):
  """Returns the program of values and gradients of several clients."""

  def one(*args):
    return jax.value_and_grad(lambda *a: jnp.sum(function(*a)))(*args)

  clients = jax.tree.map(lambda a: jnp.stack([a, a]), args)
  return jax.jit(jax.vmap(one)).lower(*clients).as_text()
