"""What a computation costs, counted from its program, not from a clock."""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax.extend import core


class Cost(NamedTuple):
  """Counted over a program, each loop body as often as its length says.

  Attributes:
    flops: floating-point operations of matrix products and convolutions, a
      multiplication and an addition counted as two; padding counts as data.
    bytes: of all intermediate results together. An upper bound of the memory
      they need, since none is counted as reused.
  """

  flops: int
  bytes: int


def count(fn: Callable, *args) -> Cost:
  """The cost of `fn(*args)`; arguments may be shapes (`ShapeDtypeStruct`).

  Results that nobody uses, such as the gradient of the data, do not count. The
  body of a loop without a fixed length counts once.
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> Cost:
  flops = size = 0
  used = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  for eqn in reversed(jaxpr.eqns):
    if not eqn.effects and not any(v in used for v in eqn.outvars):
      continue
    if eqn.primitive.name == 'optimization_barrier':
      # Only an order of its operands, each of which is used for itself.
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
  """The programs inside an operation: of a call, a loop, a condition."""
  for name, value in eqn.params.items():
    if name.startswith(('jvp', 'fwd', 'bwd')):
      continue  # Rules that are not run here.
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
