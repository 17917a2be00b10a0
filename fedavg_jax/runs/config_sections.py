"""Defines the sections of a config: client, server, clock, and others."""

import dataclasses

from fedavg_jax.core import choices
from fedavg_jax.runs.config_option import ANYTHING
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
  """Configures local training."""

  prefix = 'client.'

  epochs: int = option(5, at_least(1), 'E: local epochs per round.')
  batch_size: int = option(
    10,
    at_least(0),
    'B: minibatch size; 0 is infinity: the full local data set.',
  )
  learning_rate: float = option(0.1, RATE, 'eta: client learning rate.')
  momentum: float = option(
    0.0,
    BELOW_ONE,
    "Momentum of the clients' SGD; it starts at zero in every round.",
  )
  schedule: str = option(
    'step',
    one_of(choices.SCHEDULES),
    "Decay of the client learning rate: 'step' (times decay after every"
    " decay_rounds rounds) | 'cosine' | 'linear' (down to decay times eta after"
    ' decay_rounds rounds, then constant).',
  )
  decay: float = option(
    1.0,
    Rule(lambda value: 0 < value <= 1, 'must be in (0, 1]'),
    'Factor by which the client learning rate decays; see schedule.',
  )
  decay_rounds: int = option(
    1, at_least(1), 'Number of rounds of a decay; see schedule.'
  )
  shuffle: str = option(
    'epoch',
    one_of(choices.SHUFFLES),
    "Order of a client's examples: 'epoch' (a new one every epoch) | 'round'"
    ' (one for all epochs of a round).',
  )
  proximal: float = option(
    0.01,
    between(0, 1e30),
    "mu: weight of the proximal term in algorithms 'fedprox' and"
    " 'fednova_prox'.",
  )
  regularization: float = option(
    0.1,
    Rule(lambda value: 0 < value <= 1e30, 'must be in (0, 1e+30]'),
    "alpha: weight of the regularizer in algorithm 'feddyn'.",
  )
  control: str = option(
    'updates',
    one_of(choices.CONTROLS),
    "New control variate in algorithm 'scaffold': 'updates' (the mean gradient"
    " of the local updates, option II) | 'gradient' (the full-batch gradient at"
    ' the global model, option I).',
  )
  clip_norm: float = option(
    0.0, between(0, 1e30), 'Largest L2 norm of a client delta; 0: no clipping.'
  )


@dataclasses.dataclass(frozen=True)
class ServerConfig(Options):
  """Configures the update of the global model."""

  prefix = 'server.'

  optimizer: str = option(
    'sgd',
    one_of(choices.SERVER_OPTIMIZERS),
    "Server optimizer, applied to the mean delta as pseudo-gradient: 'sgd' |"
    " 'adagrad' | 'adam' | 'yogi'.",
  )
  learning_rate: float = option(
    1.0, RATE, 'Server learning rate; 1 with sgd and momentum 0 is FedAvg.'
  )
  momentum: float = option(
    0.0, BELOW_ONE, 'Momentum of sgd; beta_1 of adagrad, adam and yogi.'
  )
  nesterov: bool = option(
    False, ANYTHING, "Whether the momentum of sgd is Nesterov's."
  )
  second_momentum: float = option(0.99, BELOW_ONE, 'beta_2 of adam and yogi.')
  adaptivity: float = option(
    0.001,
    between(1e-15, 1e15),
    'tau: degree of adaptivity of adagrad, adam and yogi.',
  )
  fairness: float = option(
    1.0,
    between(0, 1e3),
    "q: degree of fairness of algorithm 'qfedavg'; 0 is FedAvg.",
  )
  epsilon: float = option(
    1e-3,
    Rule(lambda value: 0 < value <= 1e30, 'must be in (0, 1e+30]'),
    "Constant that bounds the server's steps in algorithm 'fedexp'.",
  )


@dataclasses.dataclass(frozen=True)
class ClockConfig(Options):
  """Configures the simulated clock, which examples_per_second > 0 enables."""

  prefix = 'clock.'

  examples_per_second: float = option(
    0.0,
    zero_or_between(*clock.EXAMPLES_PER_SECOND),
    'Training speed of the median client in examples per second; 0: no'
    ' simulated clock.',
  )
  speed_spread: float = option(
    0.0,
    between(*clock.SPREAD),
    'Sigma of the log-normal training speeds; 0: all clients are equally fast.',
  )
  megabits_down: float = option(
    0.0,
    zero_or_between(*clock.MEGABITS),
    "Median client's download rate in Mbit/s; 0: downloads take no time.",
  )
  megabits_up: float = option(
    0.0,
    zero_or_between(*clock.MEGABITS),
    "Median client's upload rate in Mbit/s; 0: uploads take no time.",
  )
  bandwidth_spread: float = option(
    0.0,
    between(*clock.SPREAD),
    'Sigma of the log-normal download and upload rates; 0: all clients have'
    ' equal ones.',
  )
  deadline: float = option(
    0.0,
    between(*clock.DEADLINE),
    'Simulated seconds after which a client is a straggler; 0: no deadline.',
  )


@dataclasses.dataclass(frozen=True)
class AsynchronousConfig(Options):
  """Configures asynchronous clients, as in FedBuff; they need the clock."""

  prefix = 'asynchronous.'

  buffer: int = option(
    0,
    at_least(0),
    'Updates after which the server makes a new model, while a cohort of'
    ' clients trains at any time; 0: rounds wait for their whole cohort.',
  )
  most_staleness: int = option(
    20,
    between(0, 10_000),
    "Most rounds that a client's initial model may be behind when its update"
    ' arrives; a staler update is discarded. Devices store as many models.',
  )
  staleness_exponent: float = option(
    0.5,
    between(0, 100),
    'An update of staleness tau is scaled by (1 + tau)^-staleness_exponent.',
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Options):
  """Configures when a run is saved."""

  prefix = 'checkpoint.'

  rounds: int = option(
    0, at_least(0), 'Rounds between two checkpoints; 0: only `minutes` decides.'
  )
  minutes: float = option(
    5.0,
    between(0, 1e6),
    'Minutes between two checkpoints; 0: only `rounds` decides.',
  )
  keep: int = option(
    3,
    between(1, 1000),
    'Number of latest checkpoints to keep, in addition to the best one.',
  )
