"""Rewrites a model's traced program into what XLA:CPU computes fast.

A model that is written with `flax.linen.Conv` or `jax.lax.conv` does not know
that every client has its own weights, for which its convolutions are the
slowest form on a CPU. Here the program of the model is traced, and equations
that `equations.faster` knows are replaced by the forms of the package's own
layers, also inside calls, loops, conditions and rematerialized parts.

A program without a convolution that can be replaced stays as it is, bit for
bit, its pools and products too, and so does every program on other devices.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import functools
from typing import Any

from absl import logging
import jax
from jax.extend import core
from jax.extend.core import primitives

from fedavg_jax.contracts.model import Model
from fedavg_jax.models import equations
from fedavg_jax.models import layers

# Equations that run the programs among their parameters. Those with a rule of
# their own for derivatives or for `vmap` are left as their author wrote them.
_RUN_PROGRAMS = (
  primitives.jit_p,
  primitives.closed_call_p,
  primitives.remat_p,
  primitives.scan_p,
  primitives.while_p,
  primitives.cond_p,
)


def fast_model(model: Model) -> Model:
  """Returns a model that computes the same, its convolutions fast on CPU.

  Args:
    model: any; one that is `as_written` is returned itself.
  """
  if model.as_written:
    return model
  train = model.train and fast_function(model.train)
  return model._replace(apply=fast_function(model.apply), train=train)


def fast_function(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that computes the same, its convolutions fast on CPU.

  Values and gradients are equal up to rounding. The devices are those that
  `layers.for_platform` names while the function is traced.

  Args:
    function: of trees of arrays, written for one client; returns such a tree.
  """

  @functools.wraps(function)
  def fast(*args):
    if layers.traced_platform() != 'cpu':
      return function(*args)
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    for line in dict.fromkeys(_left_as_written(program.jaxpr)):
      log_once(line)
    if not _has_fast_convolution(program.jaxpr):
      return function(*args)
    program = program.replace(jaxpr=_rewrite(program.jaxpr))
    results = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return fast


def _rewrite(jaxpr: core.Jaxpr) -> core.Jaxpr:
  """Replaces the equations of a program that have a faster form."""
  return jaxpr.replace(eqns=[_rewrite_equation(eqn) for eqn in jaxpr.eqns])


def _rewrite_equation(eqn: core.JaxprEqn) -> core.JaxprEqn:
  """Replaces one equation, or those of the programs that it runs."""
  form = equations.faster(eqn)
  if form is not None:
    return _call(form, eqn)
  if eqn.primitive not in _RUN_PROGRAMS:
    return eqn
  return eqn.replace(
    params={name: _rewrite_value(value) for name, value in eqn.params.items()}
  )


def _rewrite_value(value: Any) -> Any:
  """Rewrites the programs of a parameter; returns any other one itself."""
  match value:
    case core.ClosedJaxpr():
      return value.replace(jaxpr=_rewrite(value.jaxpr))
    case core.Jaxpr():
      return _rewrite(value)
    case tuple() if any(_programs(value)):  # The branches of a condition.
      return tuple(map(_rewrite_value, value))
  return value


def _call(form: Callable[..., jax.Array], eqn: core.JaxprEqn) -> core.JaxprEqn:
  """Returns the call of a form, between the variables of an equation."""

  def fast(*operands):
    return form(*operands)

  fast.__name__ = f'fast_{eqn.primitive.name}'  # What profiles show.
  (call,) = jax.make_jaxpr(jax.jit(fast))(*(v.aval for v in eqn.invars)).eqns
  return call.replace(
    invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info
  )


def _programs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
  """Yields the programs among the parameters of an equation."""
  for value in values:
    match value:
      case core.ClosedJaxpr():
        yield value.jaxpr
      case core.Jaxpr():
        yield value
      case tuple():
        yield from _programs(value)


def _has_fast_convolution(jaxpr: core.Jaxpr) -> bool:
  """Whether there is a convolution to replace, however deep."""
  return any(
    (_is_convolution(eqn) and not equations.why_as_written(eqn))
    or (
      eqn.primitive in _RUN_PROGRAMS
      and any(map(_has_fast_convolution, _programs(eqn.params.values())))
    )
    for eqn in jaxpr.eqns
  )


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
  """Whether there is any convolution, however deep."""
  return any(
    _is_convolution(eqn)
    or any(map(_has_convolution, _programs(eqn.params.values())))
    for eqn in jaxpr.eqns
  )


def _is_convolution(eqn: core.JaxprEqn) -> bool:
  return eqn.primitive is primitives.conv_general_dilated_p


def _left_as_written(jaxpr: core.Jaxpr) -> Iterator[str]:
  """Yields a line for every convolution that stays slow."""
  for eqn in jaxpr.eqns:
    programs = list(_programs(eqn.params.values()))
    shapes = ' x '.join(v.aval.str_short() for v in eqn.invars)
    if _is_convolution(eqn):
      if reason := equations.why_as_written(eqn):
        yield f'convolution {shapes} ({reason})'
    elif eqn.primitive in _RUN_PROGRAMS:
      for program in programs:
        yield from _left_as_written(program)
    elif eqn.primitive is not primitives.custom_vjp_call_p and any(
      map(_has_convolution, programs)
    ):
      yield f'convolutions in {eqn.primitive.name} {shapes}'


@functools.cache  # A model is traced many times.
def log_once(line: str) -> None:
  """Logs what stays slow, once in a process."""
  logging.info('model: runs as it is written, slowly on CPU: %s', line)
