"""Counts the operations of a program without running it."""

from collections.abc import Callable
from collections.abc import Iterator
import math
from typing import Any

import jax
from jax.extend import core


def flops(fn: Callable, *args: Any) -> int:
  """Counts the floating-point operations of `fn(*args)`.

  Those of matrix products and convolutions count, a multiplication and an
  addition as two; padding counts as data. Unused results, such as the gradient
  of the data, do not count; a scan's body counts once per iteration, that of a
  loop without a fixed length once.

  Args:
    fn: the function, from arrays to a tree of arrays.
    *args: its arguments, which may be `ShapeDtypeStruct`s.
  """
  return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
  total = 0
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
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    total += times * sum(map(_flops, programs_inside(eqn))) + _flops_of(eqn)
  return total


def programs_inside(eqn: Any) -> Iterator[Any]:
  """Yields the programs inside of an operation: a call, a loop, a condition."""
  for name, value in eqn.params.items():
    if name.startswith(('jvp', 'fwd', 'bwd')):
      continue  # Differentiation rules, which do not run here.
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def _flops_of(eqn: Any) -> int:
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
