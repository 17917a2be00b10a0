"""How many lanes, on which devices, and why."""

from collections.abc import Sequence
import dataclasses

from absl import logging
import jax
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import processes
from fedavg_jax.engine.devices import free_bytes
from fedavg_jax.schedule import packing
from fedavg_jax.schedule import planning

# Weights that an accelerator can move about in the time its kernels take to
# start; with fewer in all lanes together, more lanes cost nothing. An estimate,
# not measured: 0.1 ms of kernel launches at 2 TB/s, a weight moved five times.
_WEIGHTS_PER_LAUNCH = 10_000_000
# Cohorts that are packed on trial, and the gain below which fewer lanes win.
_TRIALS, _WORTH = 8, 1.02
# Useful share below which devices continue with fewer lanes as lanes run dry;
# each number of lanes is compiled for itself, so there are few.
_GOOD_SHARE, _MOST_WIDTHS = 0.97, 4
# Part of the free memory that lanes may take.
_MEMORY_SHARE = 0.8


def choose_lanes(
  wished: int,
  planner: planning.Planner,
  devices: Sequence[jax.Device],
  *,
  num_weights: int,
  lane_bytes: int,
  other_bytes: int,
) -> tuple[planning.Planner, str]:
  """Lays a federation out for the devices.

  Chosen are the fewest lanes that come within 2 % of the most useful steps per
  second. Useful steps are counted by packing some of the run's own cohorts. A
  step of l lanes on a device is taken to cost l on a CPU, where whole clients
  per core are fastest, and max(1, l / l_0) on an accelerator, where l_0 lanes
  hide the start of its kernels. Where few clients are much longer than the
  others, a device continues with a half, a quarter, an eighth of its lanes.

  Args:
    wished: lanes of all devices together; 0 chooses.
    planner: of the federation, its lanes not yet decided.
    devices: to share the lanes.
    num_weights: of the model.
    lane_bytes: memory that a lane needs.
    other_bytes: memory that a device needs beside its lanes.

  Returns:
    The planner with its lanes and devices, and one line that says why.

  Raises:
    InputError: lanes below 0, no multiple of the devices, or more than fit.
  """
  if wished < 0:
    raise InputError(f'lanes = {wished}: must be at least 0')
  fit = processes.least(
    processes.together(
      lambda: _lanes_that_fit(
        wished, devices, num_weights, lane_bytes, other_bytes
      )
    )
  )
  # Of several processes each must have its part of what is done.
  useful_devices = len(devices)
  if not processes.several():
    useful_devices = min(useful_devices, planner.cohort_size)
  needs = f'a lane needs about {lane_bytes / 2**20:.3g} MiB'
  if wished:
    lanes = min(wished, max(planner.cohort_size, useful_devices))
    num_devices = min(useful_devices, lanes)
    most = fit * num_devices
    if num_devices < useful_devices and processes.several():
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
    why = 'as asked'
    if wished > lanes:
      why = f'the cohort of {planner.cohort_size} fills no more'
    return lay_out(planner, lanes, num_devices), why
  num_devices = useful_devices
  fill = -(-planner.cohort_size // num_devices)
  enough = 1.0
  if devices[0].platform != 'cpu':
    enough = max(1.0, _WEIGHTS_PER_LAUNCH / max(num_weights, 1))
  cohorts = _trial_cohorts(planner)
  best, best_speed = (1,), 0.0
  for lanes in _candidates(min(fit, fill)):
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
  share = useful_share(cohorts, num_devices, best)
  why = f'{100 * share:.0f} % of their steps are useful; {needs}'
  if fit < fill:
    why += f', and memory holds {fit} on a device'
  return _laid_out(planner, num_devices, best), why


def lay_out(
  planner: planning.Planner, lanes: int, num_devices: int
) -> planning.Planner:
  """The planner for so many lanes on so many devices, rounded up to fit."""
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
  """Lanes that one device has memory for, at least one."""
  devices = [d for d in devices if d.process_index == jax.process_index()]
  free = free_bytes(devices[0])
  if free is None:
    return 2**31
  # Virtual CPU devices share one memory.
  shared_by = len(devices) if devices[0].platform == 'cpu' else 1
  free -= other_bytes * shared_by
  least = 3 * 4 * num_weights  # Global and local model, and a gradient.
  if least > free:
    raise InputError(
      f'lanes = {wished or 1}: even one lane of {num_weights:,} weights needs'
      f' {least / 2**20:.3g} MiB, {max(free, 0) / 2**20:.3g} are free beside'
      ' the data and what clients keep'
    )
  return max(1, int(free * _MEMORY_SHARE) // max(lane_bytes * shared_by, 1))


def useful_share(
  cohorts: Sequence[np.ndarray], num_devices: int, widths: Sequence[int]
) -> float:
  """Steps of clients over steps that all lanes execute, idle ones included.

  Args:
    cohorts: for each, the steps of its clients, [M].
    num_devices: D.
    widths: [W], as in `planning.Planner`.
  """
  executed = sum(
    (packing.steps_by_width(steps, num_devices, widths) * widths).sum()
    for steps in cohorts
  )
  return float(sum(steps.sum() for steps in cohorts) / executed)


def _trial_cohorts(planner) -> list[np.ndarray]:
  """Steps of the clients of the first rounds."""
  return [
    steps
    for steps in map(planner.steps_of_round, range(1, _TRIALS + 1))
    if steps.any()
  ] or [np.ones(1, np.int64)]  # Nobody was in reach so far.


def _choose_widths(cohorts, num_devices, lanes) -> tuple[int, ...]:
  """All lanes of a device to the end, or ever fewer where that wastes much."""
  if useful_share(cohorts, num_devices, (lanes,)) >= _GOOD_SHARE:
    return (lanes,)
  halves = {-(-lanes // 2**i) for i in range(_MOST_WIDTHS)}
  return tuple(sorted(halves, reverse=True))


def _candidates(most: int) -> list[int]:
  """1, 2, 3, 4, 6, 8, 12, 16, 24 ... up to and with `most`."""
  steps = [1, 2, 3] + [n << k for k in range(1, 30) for n in (2, 3)]
  return sorted({n for n in steps if n < most} | {most})


def fewer_lanes(lanes: int, planner: planning.Planner, error: Exception) -> int:
  """Halves the lanes where the device had no memory for them; else raises."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  if processes.several():  # The others know nothing of it.
    raise InputError(
      f'lanes = {lanes}: the device has no memory for them; set fewer, the'
      ' same on all processes'
    ) from error
  if lanes == 1:
    raise InputError(
      'lanes = 1: not even one lane of this model fits into memory; it must be'
      ' smaller, or micro_batch'
    ) from error
  devices = min(planner.num_devices, lanes)
  if lanes > devices:
    fewer = max(lanes // devices // 2, 1) * devices
  else:
    fewer = lanes // 2
  logging.warning(
    'out of memory with %d lanes: continues with %d, the same up to rounding',
    lanes,
    fewer,
  )
  return fewer
