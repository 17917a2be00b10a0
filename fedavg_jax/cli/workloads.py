"""Defines the workloads of `fedavg-jax bench`: federations of random data.

A workload consists of plain numbers, so that other systems can get the same one
(`experiments/benchmark`). Pixels and labels are random: the time of a step does
not depend on them. `bench_rounds.py` draws the data and trains.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """Defines one federation and its rounds; letters are the paper's.

  Attributes:
    about: a one-line definition.
    model: a name of `core.choices.MODELS`, or 'lr'; `experiments/benchmark` has
      more.
    shape: the shape of an image or a sequence.
    classes: the number of labels.
    sizes: n_k, the number of examples of every client, [K].
    cohort: m, the number of clients per round.
    epochs: E, local epochs.
    batch: B, examples per minibatch.
    learning_rate: the clients' learning rate.
    weighting: the weights of the mean, as in `fa.Federation`.
    lanes: the number of lanes; 0 lets the engine choose.
    tested: the number of test examples after every round; 0 for no tests.
  """

  about: str
  model: str
  shape: tuple[int, ...] = (28, 28, 1)
  classes: int = 10
  sizes: tuple[int, ...]
  cohort: int
  epochs: int = 1
  batch: int = 10
  learning_rate: float = 0.1
  weighting: str = 'examples'
  lanes: int = 0
  tested: int = 0

  def as_dict(self) -> dict[str, Any]:
    """Returns the content that workers read, for JSON."""
    return dataclasses.asdict(self)


WORKLOADS = {
  '2nn': Workload(
    about='MNIST 2NN, 100 clients x 600, C = 0.1, E = 1, B = 10',
    model='2nn',
    sizes=(600,) * 100,
    cohort=10,
  ),
  'lr': Workload(
    about="FLUTE's LR on MNIST: 1,000 clients x 60, 10 per round, E = 1,"
    ' B = 10',
    model='lr',
    sizes=(60,) * 1000,
    cohort=10,
    learning_rate=0.03,
  ),
  'cnn': Workload(
    about='MNIST CNN, 100 clients x 600, C = 0.1, E = 1, B = 10',
    model='cnn',
    sizes=(600,) * 100,
    cohort=10,
  ),
}
