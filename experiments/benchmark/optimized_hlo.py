"""Reads the program that XLA has optimized: loops, kernels, bytes of a step.

A compiled call has three nested loops: rounds, events, steps. The body of the
innermost is one step of all lanes, and `step_cost` counts its kernels and
bytes.
"""

from collections.abc import Iterator
import dataclasses
import re

_BYTES = {
  **{'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2},
  **{'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8},
}
# Instructions that neither move bytes nor start a kernel.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id'
  ' replica-id opt-barrier optimization-barrier copy-done fusion-done'.split()
)
_LOOPS = 3  # Rounds, events, steps.


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Describes one line of a computation.

  Attributes:
    name: the name, unique in its computation.
    op: the operation, such as 'fusion'.
    shape: the shapes of its results, in XLA's notation.
    operands: the names of the instructions that it reads.
    line: the complete line.
  """

  name: str
  op: str
  shape: str
  operands: tuple[str, ...]
  line: str

  @property
  def num_bytes(self) -> int:
    """Returns the bytes of its result."""
    return shape_bytes(self.shape)

  @property
  def cycles(self) -> int:
    """Returns the cycles that a TPU's cost model estimates, else 0."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', self.line)))

  def called(self, key: str) -> str:
    """Returns the name of a computation that it calls, else ''.

    Args:
      key: the kind of call: 'body', 'condition', 'calls' or 'to_apply'.
    """
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.line)
    return found[1] if found else ''


Program = dict[str, list[Instruction]]


def shape_bytes(shape: str) -> int:
  """Returns the bytes of all arrays in a shape.

  >>> shape_bytes('(f32[10,784]{1,0}, s32[])')
  31364
  """
  total = 0
  for dtype, sizes in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape):
    number = _BYTES.get(dtype, 0)
    for size in filter(None, sizes.split(',')):
      number *= int(size)
    total += number
  return total


def parse(text: str) -> tuple[Program, str]:
  """Parses the text of a compiled program.

  Args:
    text: the result of `jax.stages.Compiled.as_text()`.

  Returns:
    Its computations by name, and the name of the first one that runs.
  """
  program: Program = {}
  entry, inside = '', None
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
      inside = program.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith('}'):
      inside = None
    elif inside is not None and (own := _instruction(line)):
      inside.append(own)
  return program, entry


def _instruction(line: str) -> Instruction | None:
  found = re.match(
    r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$', line
  )
  if not found:
    return None
  name, shape, op, rest = found.groups()
  operands = re.findall(r'%([\w.\-]+)', rest.split('), ')[0])
  return Instruction(name, op, shape, tuple(operands), line)


def step_of(program: Program, entry: str) -> str:
  """Returns the computation that is one step of all lanes.

  Raises:
    ValueError: there are fewer loops than in a compiled call.
  """
  name = entry
  for _ in range(_LOOPS):
    loops = [own for own in program[name] if own.op == 'while']
    if not loops:
      raise ValueError(f'no loop in {name}: not the program of a call')
    name = max(loops, key=lambda own: own.num_bytes).called('body')
  return name


def trip_count(program: Program, loop: Instruction) -> int | None:
  """Returns the iterations of a loop, None if they depend on data."""
  if known := re.search(r'known_trip_count"?:\{"n":"?(\d+)', loop.line):
    return int(known[1])
  condition = program.get(loop.called('condition'), [])
  numbers = {
    own.name: int(value[1])
    for own in condition
    if (value := re.search(r' constant\((\d+)\)', own.line))
  }
  limits = [
    numbers[operand]
    for own in condition
    if own.op in ('compare', 'fusion')
    for operand in own.operands
    if operand in numbers
  ]
  return limits[0] if len(limits) == 1 else None


@dataclasses.dataclass(frozen=True)
class StepCost:
  """Holds the counts of one step of all lanes.

  Attributes:
    kernels: instructions that run; those of loops once per iteration.
    megabytes: 10^6 bytes that the kernels read and write.
    copied_megabytes: 10^6 bytes that copies of at least one MiB write.
    dynamic_loops: loops inside the step whose length depends on data.
    microseconds: the estimate of a TPU's cost model at 1.5 GHz; 0 for GPUs.
  """

  kernels: int
  megabytes: float
  copied_megabytes: float
  dynamic_loops: int
  microseconds: float


def step_cost(text: str) -> StepCost:
  """Counts kernels, bytes and loops of one step of a compiled call.

  Args:
    text: the result of `jax.stages.Compiled.as_text()`.
  """
  program, entry = parse(text)
  body = step_of(program, entry)
  kernels = moved = copied = cycles = 0
  for own, times, shapes in _run(program, body, 1):
    kernels += times
    moved += times * _moved(program, own, shapes)
    cycles += times * own.cycles
    if own.op in ('copy', 'copy-start') and own.num_bytes >= 2**20:
      copied += times * shape_bytes(own.shape.split(', ')[0])
  dynamic = sum(
    trip_count(program, own) is None
    for own in program[body]
    if own.op == 'while'
  )
  return StepCost(
    kernels=kernels,
    megabytes=round(moved / 1e6, 1),
    copied_megabytes=round(copied / 1e6, 1),
    dynamic_loops=dynamic,
    microseconds=round(cycles / 1500, 1),
  )


def _run(
  program: Program, name: str, times: int
) -> Iterator[tuple[Instruction, int, dict[str, int]]]:
  """Yields (instruction, times, bytes by name) of a computation and its loops.

  A loop whose length depends on data counts once.
  """
  shapes = {own.name: own.num_bytes for own in program[name]}
  for own in program[name]:
    if own.op == 'while':
      turns = trip_count(program, own) or 1
      yield from _run(program, own.called('body'), times * turns)
    elif own.op == 'call':
      yield from _run(program, own.called('to_apply'), times)
    elif own.op not in _FREE:
      yield own, times, shapes


def _moved(program: Program, own: Instruction, shapes: dict[str, int]) -> int:
  """Returns the bytes that an instruction reads and writes."""
  wrote = own.num_bytes
  inner = {i.op for i in program.get(own.called('calls'), [])} | {own.op}
  sparse = inner & {'gather', 'dynamic-slice', 'dynamic-update-slice'}
  total = wrote
  for operand in own.operands:
    read = shapes.get(operand, 0)
    # A gather reads about as many bytes of a large array as it writes.
    total += wrote if sparse and read > 4 * wrote else read
  return total
