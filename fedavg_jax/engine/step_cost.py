"""Estimates what a step needs on an accelerator, from its traced program.

XLA fuses elementwise operations into the kernel that reads their results. So
only some values are written to memory: results of products, convolutions,
reductions and loops, their operands, and the results of the step. Each of them
is one kernel here, which reads the written values that it depends on. This is
an estimate: a compiler merges some kernels and divides others.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
from jax.extend import core

from fedavg_jax.engine import cost

# These change the shape of their operand alone; products absorb transposes.
_VIEWS = frozenset(
  ('reshape', 'squeeze', 'expand_dims', 'transpose', 'optimization_barrier')
)
# Their results do not merge with what reads them.
_REDUCTIONS = (
  *('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and'),
  *('reduce_or', 'argmax', 'argmin', 'reduce_precision'),
)
# Their operands do not merge either.
_KERNELS = (
  *('dot_general', 'conv_general_dilated', 'sort', 'top_k', 'scatter'),
  *('scatter-add', 'reduce_window_max', 'reduce_window_sum', 'fft', 'cumsum'),
  *('select_and_scatter_add', 'select_and_gather_add', 'custom_call'),
  'pallas_call',
)
_LOOPS = ('scan', 'while', 'cond')


class StepCost(NamedTuple):
  """Holds estimates of one step of one client.

  Attributes:
    kernels: the number of launches, loops counted by their lengths.
    host_reads: the number of loops of unknown length, whose flag the host of a
      GPU reads before every iteration; each counts once.
    bytes: the bytes that the kernels read and write.
    memory: the largest number of bytes alive at a time, without the arguments.
  """

  kernels: int
  host_reads: int
  bytes: int
  memory: int


@dataclasses.dataclass(eq=False)
class _Value:
  """Holds an array of the program, by identity.

  Attributes:
    size: its bytes.
    written: whether it is written to memory.
    given: whether it is an argument or a constant.
  """

  size: int
  written: bool = False
  given: bool = False


class _Op(NamedTuple):
  """Holds an operation, with calls replaced by what they call."""

  name: str
  operands: list[_Value]
  results: list[_Value]
  inner: list[StepCost]
  times: int
  unknown: bool


def estimate(fn: Callable, *args: Any) -> StepCost | None:
  """Estimates the cost of `fn(*args)`, a step of one client.

  Args:
    fn: the function, from arrays to a tree of arrays.
    *args: its arguments, which may be `ShapeDtypeStruct`s.

  Returns:
    The estimate; None, with a warning, for a program that cannot be estimated.

  >>> import jax, jax.numpy as jnp
  >>> square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  >>> found = estimate(lambda a, b: jnp.tanh(a @ b) + 1, square, square)
  >>> found.kernels, found.bytes == 5 * 64, found.memory == 2 * 64
  (2, True, True)
  """
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  try:
    return _estimate(jaxpr)
  except Exception as error:  # An estimate must not end what needs it.
    logging.warning('the cost of a step is unknown (%r)', error)
    return None


def _estimate(jaxpr: Any) -> StepCost:
  ops, results = _flatten(jaxpr)
  ops = _used(ops, results)
  for value in results:
    value.written = True
  for op in ops:
    heavy = op.name in _KERNELS or op.name in _LOOPS
    if heavy or op.name in _REDUCTIONS:
      for value in op.results:
        value.written = True
    if heavy:
      for value in op.operands:
        value.written = True
  return _count(ops, results)


def _count(ops: list[_Op], results: list[_Value]) -> StepCost:
  """Counts kernels, their traffic and their memory in the order of the ops."""
  # The written values that each value depends on through fused operations.
  sources: dict[_Value, set[_Value]] = {}
  reads: list[set[_Value]] = []
  kernels = host_reads = moved = 0
  for op in ops:
    needed: set[_Value] = set()
    for value in op.operands:
      if value.written or value.given:
        needed.add(value)
      else:
        needed |= sources.get(value, set())
    for value in op.results:
      sources[value] = needed
    launches = any(value.written for value in op.results)
    reads.append(needed if launches else set())
    if not launches:
      continue
    if op.inner:
      worst = max(op.inner, key=lambda own: own.bytes)
      kernels += op.times * worst.kernels
      host_reads += op.times * worst.host_reads + op.unknown
      moved += op.times * worst.bytes
    else:
      kernels += 1
      moved += sum(value.size for value in needed)
      moved += sum(value.size for value in op.results)
  return StepCost(kernels, host_reads, moved, _peak(ops, reads, results))


def _peak(
  ops: list[_Op], reads: list[set[_Value]], results: list[_Value]
) -> int:
  """Returns the most bytes of written values that are alive at a time."""
  last = {value: i for i, read in enumerate(reads) for value in read}
  last |= dict.fromkeys(results, len(ops))
  alive = peak = 0
  ends: dict[int, int] = {}
  for i, op in enumerate(ops):
    for value in op.results:
      if value.written:
        alive += value.size
        end = last.get(value, i)
        ends[end] = ends.get(end, 0) + value.size
    inside = max((own.memory for own in op.inner), default=0)
    peak = max(peak, alive + inside)
    alive -= ends.pop(i, 0)
  return peak


def _used(ops: list[_Op], results: list[_Value]) -> list[_Op]:
  """Returns the operations that the results depend on."""
  needed, used = set(results), []
  for op in reversed(ops):
    if needed.intersection(op.results):
      needed.update(op.operands)
      used.append(op)
  return used[::-1]


def _flatten(jaxpr: Any) -> tuple[list[_Op], list[_Value]]:
  """Returns the operations of a program, calls inlined, and its results."""
  values: dict[Any, _Value] = {}
  for var in (*jaxpr.invars, *jaxpr.constvars):
    values[var] = _Value(_bytes(var), given=True)
  ops = list(_inlined(jaxpr, values))
  return ops, [_value(var, values) for var in jaxpr.outvars]


def _inlined(jaxpr: Any, values: dict[Any, _Value]) -> Iterator[_Op]:
  """Yields the operations of a program; `values` has its arguments' values."""
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    operands = [_value(var, values) for var in eqn.invars]
    inner = list(cost.programs_inside(eqn))
    if name in _VIEWS:
      values.update(zip(eqn.outvars, operands, strict=False))
      continue
    if name not in _LOOPS and _is_call(eqn, inner):
      called = inner[0]
      first = len(operands) - len(called.invars)
      own = dict(zip(called.invars, operands[first:], strict=True))
      own |= {var: _Value(_bytes(var), given=True) for var in called.constvars}
      yield from _inlined(called, own)
      values.update(
        zip(eqn.outvars, [_value(v, own) for v in called.outvars], strict=True)
      )
      continue
    results = [_Value(_bytes(var)) for var in eqn.outvars]
    values.update(zip(eqn.outvars, results, strict=True))
    yield _Op(
      name,
      operands,
      results,
      # Other operations, such as kernels of Pallas, apply it to parts.
      [_estimate(own) for own in inner if name in _LOOPS],
      eqn.params.get('length', 1) if name == 'scan' else 1,
      unknown=name == 'while',
    )


def _is_call(eqn: Any, inner: list[Any]) -> bool:
  """Returns whether an operation does what the first program inside does."""
  # The one of a scatter says how two numbers are combined.
  scatters = 'update_jaxpr' in eqn.params
  if not inner or scatters or eqn.primitive.name in _KERNELS:
    return False
  called, given = inner[0], len(eqn.invars) - len(inner[0].invars)
  return given >= 0 and all(
    [(v.aval.shape, v.aval.dtype) for v in ours]
    == [(v.aval.shape, v.aval.dtype) for v in theirs]
    for ours, theirs in (
      (eqn.invars[given:], called.invars),
      (eqn.outvars, called.outvars),
    )
  )


def _value(var: Any, values: dict[Any, _Value]) -> _Value:
  """Returns the value of a variable, or a new one of a literal."""
  if isinstance(var, core.Literal):
    return _Value(0, given=True)
  return values[var]


def _bytes(var: Any) -> int:
  return int(var.aval.size) * var.aval.dtype.itemsize
