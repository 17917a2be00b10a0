"""Settings that belong together: client, server, clock, checkpoints."""

import dataclasses

from fedavg_jax.core import choices
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import RATE
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import option
from fedavg_jax.runs.config_option import zero_or_between
from fedavg_jax.schedule import clock


@dataclasses.dataclass(frozen=True)
class ClientConfig(Options):
  """How a client trains."""

  prefix = 'client.'

  epochs: int = option(5, at_least(1), 'E: epochs over the local data a round.')
  batch_size: int = option(
    10, at_least(0), 'B: minibatch size; 0 is infinity, all local data at once.'
  )
  learning_rate: float = option(0.1, RATE, 'eta: learning rate.')
  decay: float = option(
    1.0,
    Rule(lambda value: 0 < value <= 1, 'must lie in (0, 1]'),
    'Factor of the learning rate, applied every decay_rounds rounds.',
  )
  decay_rounds: int = option(1, at_least(1), 'Rounds between two decays.')
  shuffle: str = option(
    'epoch',
    one_of(choices.SHUFFLES),
    "'epoch' reshuffles every epoch, 'round' keeps one order for all epochs.",
  )
  proximal: float = option(
    0.01, between(0, 1e30), "mu of 'fedprox': weight of the proximal term."
  )
  clip_norm: float = option(
    0.0, between(0, 1e30), 'Largest norm of a delta; 0 does not clip.'
  )


@dataclasses.dataclass(frozen=True)
class ServerConfig(Options):
  """How the server updates the global model."""

  prefix = 'server.'

  optimizer: str = option(
    'sgd',
    one_of(choices.SERVER_OPTIMIZERS),
    'Optimizer on the mean delta: sgd, adagrad, adam or yogi.',
  )
  learning_rate: float = option(
    1.0, RATE, 'Server learning rate; 1 with sgd and momentum 0 is FedAvg.'
  )
  momentum: float = option(
    0.0, BELOW_ONE, 'Momentum of sgd; beta_1 of adagrad, adam and yogi.'
  )
  second_momentum: float = option(0.99, BELOW_ONE, 'beta_2 of adam and yogi.')
  adaptivity: float = option(
    0.001, between(1e-15, 1e15), 'tau of adagrad, adam and yogi.'
  )


@dataclasses.dataclass(frozen=True)
class ClockConfig(Options):
  """A simulated clock; it runs where examples_per_second is not 0."""

  prefix = 'clock.'

  examples_per_second: float = option(
    0.0,
    zero_or_between(*clock.EXAMPLES_PER_SECOND),
    'Training speed of the median client; 0 simulates no clock.',
  )
  speed_spread: float = option(
    0.0,
    between(*clock.SPREAD),
    'Sigma of the log-normal speeds; 0 makes all alike.',
  )
  megabits_down: float = option(
    0.0,
    zero_or_between(*clock.MEGABITS),
    "Median client's download rate in Mbit/s; 0 takes no time.",
  )
  megabits_up: float = option(
    0.0,
    zero_or_between(*clock.MEGABITS),
    "Median client's upload rate in Mbit/s; 0 takes no time.",
  )
  bandwidth_spread: float = option(
    0.0, between(*clock.SPREAD), 'Sigma of the log-normal bandwidths.'
  )
  deadline: float = option(
    0.0,
    between(*clock.DEADLINE),
    'Seconds after which a client is a straggler; 0 sets no deadline.',
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Options):
  """When a run is saved."""

  prefix = 'checkpoint.'

  rounds: int = option(
    0, at_least(0), 'Rounds between two checkpoints; 0 saves by time alone.'
  )
  minutes: float = option(
    5.0,
    between(0, 1e6),
    'Minutes between two checkpoints; 0 saves by rounds alone.',
  )
  keep: int = option(
    3, between(1, 1000), 'How many of the last checkpoints stay, with the best.'
  )
