"""Counts the cost of a computation from its program, without running it."""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax.extend import core


class Cost(NamedTuple):
  """Holds the cost of a program; a scan's body counts once per iteration.

  Attributes:
    flops: the floating-point operations of matrix products and convolutions, a
      multiplication and an addition counted as two; padding counts as data.
    bytes: the size of all intermediate results together. This is an upper bound
      of the memory that they need, since none is counted as reused.
  """

  flops: int
  bytes: int


def count(fn: Callable, *args) -> Cost:
  """Counts the cost of `fn(*args)`; arguments may be `ShapeDtypeStruct`s.

  Unused results, such as the gradient of the data, do not count. The body of a
  loop without a fixed length counts once.
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> Cost:
  flops = size = 0
  used = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  for eqn in reversed(jaxpr.eqns):
    if not eqn.effects and not any(v in used for v in eqn.outvars):
      continue
    if eqn.primitive.name == 'optimization_barrier':
      # It only orders its operands: each is used if its own result is.
      used.update(
        given
        for given, out in zip(eqn.invars, eqn.outvars, strict=True)
        if out in used and isinstance(given, core.Var)
      )
      continue
    used.update(v for v in eqn.invars if isinstance(v, core.Var))
    inner = [_count(sub) for sub in _inner(eqn)]
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    flops += times * sum(cost.flops for cost in inner) + _flops(eqn)
    size += sum(cost.bytes for cost in inner)
    if not inner:
      size += sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars)
  return Cost(flops, size)


def _inner(eqn):
  """Yields the programs inside an operation: a call, a loop, a condition."""
  for name, value in eqn.params.items():
    if name.startswith(('jvp', 'fwd', 'bwd')):
      continue  # Differentiation rules, which do not run here.
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def _flops(eqn) -> int:
  name = eqn.primitive.name
  if name not in ('dot_general', 'conv_general_dilated'):
    return 0
  left, right = (v.aval for v in eqn.invars)
  if name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    terms = math.prod(left.shape[i] for i in contracted)
  else:
    spec = eqn.params['dimension_numbers'].rhs_spec
    terms = right.size // right.shape[spec[0]]  # Inputs and window.
  return 2 * eqn.outvars[0].aval.size * terms
