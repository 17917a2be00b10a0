"""Defines how much local work drawn clients complete, such as stragglers.

A completion rule is one pure function, `(rng, work) -> minibatches`, which
`Participation.completion` takes. NumPy only.

Shape letters: E epochs, m clients drawn.
"""

from typing import NamedTuple
from typing import Protocol

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core.errors import InputError


class WorkContext(NamedTuple):
  """Describes the local work of a round's clients, for a completion rule.

  >>> import fedavg_jax as fa
  >>> work = fa.schedule.WorkContext(
  ...   round_number=1, clients=np.array([7, 3]),
  ...   num_examples=np.array([20, 5]), epochs=2,
  ...   updates_per_epoch=np.array([2, 1]), in_time=np.array([4, 2]))
  >>> work.updates.tolist()
  [4, 2]

  Attributes:
    round_number: the round, counted from 1.
    clients: [m] int64, the drawn clients, in the order of the draw.
    num_examples: [m] int64, n_k of each of them.
    epochs: E, the local epochs of a client that completes its work.
    updates_per_epoch: [m] int64, minibatches of one epoch; 0 for a client
      without examples.
    in_time: [m] int64, minibatches that a client can finish before the clock's
      deadline; all of them without a deadline. It limits every rule's result.
  """

  round_number: int
  clients: np.ndarray
  num_examples: np.ndarray
  epochs: int
  updates_per_epoch: np.ndarray
  in_time: np.ndarray

  @property
  def updates(self) -> np.ndarray:
    """Returns the minibatches of all E epochs, [m] int64."""
    return self.epochs * self.updates_per_epoch


class Completion(Protocol):
  """Decides how many minibatches each client completes; a function does.

  It must be pure, as a `Draw` must: all randomness comes from `rng`, which is
  seeded anew in every round from the seed and the round alone.

  >>> def one_to_all_epochs(rng, work):
  ...   epochs = rng.integers(1, work.epochs + 1, len(work.clients))
  ...   return epochs * work.updates_per_epoch
  """

  def __call__(
    self, rng: np.random.Generator, work: WorkContext, /
  ) -> np.ndarray:
    """Returns [m] whole numbers in 0 .. `work.updates`.

    A client stops after that many minibatches and sends its update; with 0 it
    sends nothing and has no weight in the mean.
    """
    ...


def stragglers(fraction: float, *, work: str = 'minibatches') -> Completion:
  """Builds the rule by which random clients of each cohort stop early.

  Args:
    fraction: the mean fraction of a cohort that stops early, in [0, 1].
    work: the unit of a straggler's work. 'minibatches' draws uniformly from 1
      to all but one of its minibatches; a client with a single one completes
      none. 'epochs' draws from 1 to E - 1 complete epochs, as the code of
      FedProx (Li et al. 2020) and Flower's version of it do; the paper says 1
      to E.

  Returns:
    A rule; clients that are no stragglers complete all their minibatches.
  """

  def complete(rng: np.random.Generator, context: WorkContext) -> np.ndarray:
    done = context.updates
    # Random rounding has the right mean, even for a cohort of one.
    expected = round(fraction * len(done), 6)
    number = int(expected + rng.random())
    late = rng.permutation(len(done))[:number]
    # The minibatches of one unit of work, and the number of units.
    unit, units = np.ones_like(done[late]), done[late]
    if work == 'epochs':
      unit = context.updates_per_epoch[late]
      units = np.full_like(unit, context.epochs)
    share = rng.random(number)
    most = np.maximum(units - 1, 0)  # A client with one unit completes none.
    some = np.minimum(1 + (share * most).astype(np.int64), most)
    done[late] = some * unit
    return done

  return complete


def check_completed(completed: object, work: WorkContext) -> np.ndarray:
  """Returns the result of a completion rule as [m] int64.

  Raises:
    InputError: its shape or type is wrong, or a number is below 0 or above the
      minibatches of a client's epochs.
  """
  where = f'participation.completion, round {work.round_number}'
  number = len(work.clients)
  done = exact.array(completed, where)
  if done.shape != (number,) or (number and done.dtype.kind not in 'iu'):
    raise InputError(
      f'{where}: must return minibatches [{number}], a whole number for each'
      f' client drawn; got {done.dtype} of shape {list(done.shape)}'
    )
  wrong = (done < 0) | (done > work.updates)
  if wrong.any():
    i = int(wrong.argmax())
    raise InputError(
      f'{where}: client {work.clients[i]} completes {done[i]} minibatches; must'
      f' be in [0, {work.updates[i]}] with epochs = {work.epochs}'
    )
  return done.astype(np.int64)
