"""Rewrites a model's traced program into forms that are fast on XLA:CPU.

With weights per client, the convolutions of `flax.linen.Conv` or `jax.lax.conv`
have the slowest form on a CPU. This module traces a model and replaces the
equations that `equations.faster` supports by the forms of the package's layers,
including those inside calls, loops, conditionals and rematerialized parts.

A program without a convolution that can be replaced stays bit for bit the same,
its pooling and products too, and so does every program on other devices.
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

# Primitives that run the programs among their parameters. Programs with custom
# rules for derivatives or `vmap` are not among them and stay as written.
_RUN_PROGRAMS = (
  primitives.jit_p,
  primitives.closed_call_p,
  primitives.remat_p,
  primitives.scan_p,
  primitives.while_p,
  primitives.cond_p,
)


def fast_model(model: Model) -> Model:
  """Returns an equivalent model with convolutions that are fast on CPU.

  Args:
    model: the model to rewrite; with `as_written` it is returned unchanged.
  """
  if model.as_written:
    return model
  train = model.train and fast_function(model.train)
  return model._replace(apply=fast_function(model.apply), train=train)


def fast_function(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns an equivalent function with convolutions that are fast on CPU.

  Values and gradients are equal up to rounding. `layers.for_platform` sets the
  kind of device while the function is traced.

  Args:
    function: a function of pytrees of arrays that returns such a pytree, for
      one client.
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
  """Rewrites the programs of a parameter; returns any other value unchanged."""
  match value:
    case core.ClosedJaxpr():
      return value.replace(jaxpr=_rewrite(value.jaxpr))
    case core.Jaxpr():
      return _rewrite(value)
    case tuple() if any(_programs(value)):  # The branches of a conditional.
      return tuple(map(_rewrite_value, value))
  return value


def _call(form: Callable[..., jax.Array], eqn: core.JaxprEqn) -> core.JaxprEqn:
  """Returns an equation that calls a form with the variables of another."""

  def fast(*operands):
    return form(*operands)

  fast.__name__ = f'fast_{eqn.primitive.name}'  # The name in profiles.
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
  """Returns whether a program has a replaceable convolution at any depth."""
  return any(
    (_is_convolution(eqn) and not equations.why_as_written(eqn))
    or (
      eqn.primitive in _RUN_PROGRAMS
      and any(map(_has_fast_convolution, _programs(eqn.params.values())))
    )
    for eqn in jaxpr.eqns
  )


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
  """Returns whether a program has any convolution at any depth."""
  return any(
    _is_convolution(eqn)
    or any(map(_has_convolution, _programs(eqn.params.values())))
    for eqn in jaxpr.eqns
  )


def _is_convolution(eqn: core.JaxprEqn) -> bool:
  return eqn.primitive is primitives.conv_general_dilated_p


def _left_as_written(jaxpr: core.Jaxpr) -> Iterator[str]:
  """Yields a description of every convolution that stays slow."""
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
  """Logs a description of `_left_as_written`, once per process."""
  logging.info('model: runs as it is written, slowly on CPU: %s', line)
