"""Chooses the number of lanes and their devices."""

from collections.abc import Sequence
import dataclasses

from absl import logging
import jax
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import processes
from fedavg_jax.engine.devices import free_bytes
from fedavg_jax.engine.step_cost import StepCost
from fedavg_jax.schedule import packing
from fedavg_jax.schedule import planning

# The number of weights that an accelerator can move while its kernels launch;
# as long as all lanes together have fewer, more lanes cost nothing. This is an
# estimate, not measured: 0.1 ms of kernel launches at 2 TB/s, each weight moved
# five times.
_WEIGHTS_PER_LAUNCH = 10_000_000
# What a kernel and a read by the host cost in microseconds, and the bytes that
# move in one: estimates as well, by which lanes are counted but not yet chosen.
_KERNEL_US, _HOST_READ_US, _BYTES_PER_US = 2.0, 15.0, 2e6
# The number of cohorts packed on trial, and the speedup that justifies more
# lanes.
_TRIALS, _WORTH = 8, 1.02
# The share of useful steps below which devices continue with fewer lanes once
# others are idle. Each number of lanes is compiled separately, so there are
# few.
_GOOD_SHARE, _MOST_WIDTHS = 0.97, 4
# The share of the free memory that lanes may take.
_MEMORY_SHARE = 0.8


def choose_lanes(
  wished: int,
  planner: planning.Planner,
  devices: Sequence[jax.Device],
  *,
  num_weights: int,
  lane_bytes: int,
  other_bytes: int,
  step: StepCost | None = None,
) -> tuple[planning.Planner, str]:
  """Chooses the lanes and devices of a federation.

  The choice is the smallest number of lanes within 2 % of the most useful steps
  per second. Useful steps are counted by packing some of the run's cohorts. A
  step of l lanes on a device is assumed to cost l on a CPU, where one client
  per core is fastest, and max(1, l / l_0) on an accelerator, where l_0 lanes
  hide the launch of its kernels. If few clients are much longer than the
  others, a device continues with a half, a quarter, an eighth of its lanes.

  l_0 comes from the model's weights. With `step` the reason also says how many
  lanes would be chosen if it came from kernels, host reads and bytes.

  Args:
    wished: the requested number of lanes of all devices together; 0 chooses.
    planner: the federation's planner, whose lanes are not yet decided.
    devices: the devices that share the lanes.
    num_weights: the number of the model's weights.
    lane_bytes: the memory of a lane in bytes.
    other_bytes: the memory in bytes that a device needs in addition to lanes.
    step: the estimated cost of a step of one lane, None if unknown.

  Returns:
    The planner with its lanes and devices, and the reason in one line.

  Raises:
    InputError: the requested lanes are negative, not a multiple of the devices,
      or more than fit into memory.
  """
  if wished < 0:
    raise InputError(f'lanes = {wished}: must be at least 0')
  fit = processes.smallest(
    processes.on_every_process(
      lambda: _lanes_that_fit(
        wished, devices, num_weights, lane_bytes, other_bytes
      )
    )
  )
  # With several processes, each must have lanes, so all devices are used.
  useful_devices = len(devices)
  if not processes.is_distributed():
    useful_devices = min(useful_devices, planner.cohort_size)
  needs = f'a lane needs about {lane_bytes / 2**20:.3g} MiB'
  if wished:
    lanes = min(wished, max(planner.cohort_size, useful_devices))
    num_devices = min(useful_devices, lanes)
    most = fit * num_devices
    if num_devices < useful_devices and processes.is_distributed():
      raise InputError(
        f'lanes = {wished}: must be at least the {useful_devices} devices of'
        ' all processes'
      )
    if wished % num_devices:
      raise InputError(
        f'lanes = {wished}: must be a multiple of the {num_devices} devices'
      )
    if lanes > most:
      raise InputError(f'lanes = {wished}: {needs}, so at most {most} fit')
    why = 'as requested'
    if wished > lanes:
      why = f'capped at the cohort size {planner.cohort_size}'
    return lay_out(planner, lanes, num_devices), why
  num_devices = useful_devices
  fill = -(-planner.cohort_size // num_devices)
  enough = 1.0
  if devices[0].platform != 'cpu':
    enough = max(1.0, _WEIGHTS_PER_LAUNCH / max(num_weights, 1))
  cohorts = _trial_cohorts(planner)
  best = _fastest(cohorts, num_devices, min(fit, fill), enough)
  share = useful_share(cohorts, num_devices, best)
  why = f'{100 * share:.0f} % of their steps are useful; {needs}'
  if fit < fill:
    why += f'; limited by device memory to {fit} per device'
  if step is not None and devices[0].platform != 'cpu':
    other = _fastest(
      cohorts, num_devices, min(fit, fill), lanes_that_hide(step)
    )
    why += (
      f'; {step.kernels} kernels, {step.host_reads} host reads and'
      f' {step.bytes / 1e6:.3g} MB of a step would give'
      f' {num_devices * other[0]} lanes (estimated, not used)'
    )
  return _laid_out(planner, num_devices, best), why


def _fastest(cohorts, num_devices, most, enough) -> tuple[int, ...]:
  """Returns the widths with the most useful steps per second.

  Args:
    cohorts: arrays [M] with the steps of each client of a cohort.
    num_devices: D.
    most: the largest number of lanes of a device.
    enough: l_0, the lanes of a device that cost as much as one.
  """
  best, best_speed = (1,), 0.0
  for lanes in _candidates(most):
    widths = _choose_widths(cohorts, num_devices, lanes)
    costs = np.maximum(1.0, np.array(widths) / enough)
    seconds = sum(
      (packing.steps_by_width(steps, num_devices, widths) * costs)
      .sum(axis=1)
      .max()
      for steps in cohorts
    )
    speed = sum(steps.sum() for steps in cohorts) / seconds
    if speed > best_speed * _WORTH:
      best, best_speed = widths, speed
  return best


def lanes_that_hide(step: StepCost) -> float:
  """Returns l_0, the lanes that move bytes for as long as kernels launch.

  Args:
    step: the cost of a step of one lane. Launches and host reads do not depend
      on the number of lanes, its bytes do.

  >>> from fedavg_jax.engine.step_cost import StepCost
  >>> lanes_that_hide(StepCost(30, 1, bytes=5_000_000, memory=0))
  30.0
  """
  fixed = _KERNEL_US * step.kernels + _HOST_READ_US * step.host_reads
  return max(1.0, fixed * _BYTES_PER_US / max(step.bytes, 1))


def lane_bytes_compiled(
  call: jax.stages.Compiled, planner: planning.Planner
) -> int | None:
  """Returns the memory of a lane in the compiled call; None if unknown.

  Args:
    call: the compiled call, whose figure is that of one device.
    planner: its planner.
  """
  memory = call.memory_analysis()
  if memory is None:  # Some back ends do not report it.
    return None
  needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
  return (needed - memory.alias_size_in_bytes) // planner.widths[0]


def lanes_that_fit_compiled(
  lane_bytes: int, planner: planning.Planner, devices: Sequence[jax.Device]
) -> int:
  """Returns how many lanes a compiled call may have on all devices together.

  Args:
    lane_bytes: the memory of a lane in the compiled call.
    planner: its planner.
    devices: its devices, which hold the data already.

  Returns:
    The lanes of the planner if they fit, else a smaller number.

  Raises:
    InputError: one lane per device needs more than the free memory.
  """
  own = [d for d in devices if d.process_index == jax.process_index()]
  free = free_bytes(own[0])
  fit = planner.widths[0]
  if free is not None:
    shared_by = len(own) if own[0].platform == 'cpu' else 1
    per_lane = max(lane_bytes * shared_by, 1)
    if per_lane * fit > free:
      fit = min(fit - 1, int(free * _MEMORY_SHARE) // per_lane)
  fit = processes.smallest(fit)
  if fit < 1:
    raise InputError(
      f'lanes = {planner.num_devices}: a lane of the compiled program needs'
      f' {lane_bytes / 2**20:.3g} MiB, more than is free on a device; use a'
      ' smaller model or micro_batch'
    )
  return fit * planner.num_devices


def lay_out(
  planner: planning.Planner, lanes: int, num_devices: int
) -> planning.Planner:
  """Returns a planner with other lanes, rounded up to equal lanes per device.

  Args:
    planner: the planner to change.
    lanes: the number of lanes of all devices together.
    num_devices: the number of devices.
  """
  widths = _choose_widths(
    _trial_cohorts(planner), num_devices, -(-lanes // num_devices)
  )
  return _laid_out(planner, num_devices, widths)


def _laid_out(planner, num_devices, widths):
  return dataclasses.replace(
    planner,
    lanes=num_devices * widths[0],
    num_devices=num_devices,
    widths=widths,
  )


def _lanes_that_fit(
  wished, devices, num_weights, lane_bytes, other_bytes
) -> int:
  """Returns the number of lanes that fit into a device's memory, at least 1."""
  devices = [d for d in devices if d.process_index == jax.process_index()]
  free = free_bytes(devices[0])
  if free is None:
    return 2**31
  # Virtual CPU devices share one memory.
  shared_by = len(devices) if devices[0].platform == 'cpu' else 1
  free -= other_bytes * shared_by
  least = 3 * 4 * num_weights  # The global and local model, and a gradient.
  if least > free:
    raise InputError(
      f'lanes = {wished or 1}: even one lane of {num_weights:,} weights needs'
      f' {least / 2**20:.3g} MiB; {max(free, 0) / 2**20:.3g} MiB are free after'
      ' the data and the client states'
    )
  return max(1, int(free * _MEMORY_SHARE) // max(lane_bytes * shared_by, 1))


def useful_share(
  cohorts: Sequence[np.ndarray], num_devices: int, widths: Sequence[int]
) -> float:
  """Returns the clients' steps over the executed steps, idle ones included.

  Args:
    cohorts: arrays [M] with the steps of each client of a cohort.
    num_devices: D.
    widths: the [W] widths, as in `planning.Planner`.

  Returns:
    The share of useful steps, in (0, 1].
  """
  executed = sum(
    (packing.steps_by_width(steps, num_devices, widths) * widths).sum()
    for steps in cohorts
  )
  return float(sum(steps.sum() for steps in cohorts) / executed)


def _trial_cohorts(planner) -> list[np.ndarray]:
  """Returns the steps of each client in the first rounds that have any."""
  return [
    steps
    for steps in map(planner.steps_of_round, range(1, _TRIALS + 1))
    if steps.any()
  ] or [np.ones(1, np.int64)]  # No client was available in these rounds.


def _choose_widths(cohorts, num_devices, lanes) -> tuple[int, ...]:
  """Returns one width, or several if a single one wastes many steps."""
  if useful_share(cohorts, num_devices, (lanes,)) >= _GOOD_SHARE:
    return (lanes,)
  halves = {-(-lanes // 2**i) for i in range(_MOST_WIDTHS)}
  return tuple(sorted(halves, reverse=True))


def _candidates(most: int) -> list[int]:
  """Returns 1, 2, 3, 4, 6, 8, 12, 16, 24 ... up to and including `most`."""
  steps = [1, 2, 3] + [n << k for k in range(1, 30) for n in (2, 3)]
  return sorted({n for n in steps if n < most} | {most})


def fewer_lanes(lanes: int, planner: planning.Planner, error: Exception) -> int:
  """Halves the lanes after an out-of-memory error.

  Args:
    lanes: the number of lanes that did not fit.
    planner: the planner, which has the devices.
    error: the error of JAX's runtime.

  Returns:
    The new number of lanes; logs a warning.

  Raises:
    Exception: `error` itself, if it has another cause.
    InputError: there are several processes, or only one lane.
  """
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  if processes.is_distributed():  # The others do not know of the error.
    raise InputError(
      f'lanes = {lanes}: do not fit into device memory; set fewer, the same on'
      ' all processes'
    ) from error
  if lanes == 1:
    raise InputError(
      'lanes = 1: does not fit into device memory; use a smaller model or'
      ' micro_batch'
    ) from error
  devices = min(planner.num_devices, lanes)
  if lanes > devices:
    fewer = max(lanes // devices // 2, 1) * devices
  else:
    fewer = lanes // 2
  logging.warning(
    'out of memory with %d lanes: continuing with %d; results are equal up to'
    ' rounding',
    lanes,
    fewer,
  )
  return fewer
