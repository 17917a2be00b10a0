"""How much local work drawn clients do: the contract, and stragglers.

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
  """What the clients of a round could do; a completion rule may know it.

  Attributes:
    round_number: from 1.
    clients: [m] int64, who was drawn, in the order of the draw.
    num_examples: [m] int64, their n_k.
    epochs: E, the most that a client does.
    updates_per_epoch: [m] int64, minibatches of an epoch; 0 without examples.
    in_time: [m] int64, minibatches that a clock's deadline allows, all of them
      without one. No rule can exceed it.
  """

  round_number: int
  clients: np.ndarray
  num_examples: np.ndarray
  epochs: int
  updates_per_epoch: np.ndarray
  in_time: np.ndarray

  @property
  def updates(self) -> np.ndarray:
    """Minibatches of all E epochs, [m]."""
    return self.epochs * self.updates_per_epoch


class Completion(Protocol):
  """Says how many minibatches of its work each client completes.

  It must be pure, as a `Draw` must: all randomness comes from `rng`, which
  begins anew in every round from the seed and the round alone.

  >>> def one_to_all_epochs(rng, work):
  ...   epochs = rng.integers(1, work.epochs + 1, len(work.clients))
  ...   return epochs * work.updates_per_epoch
  """

  def __call__(
    self, rng: np.random.Generator, work: WorkContext, /
  ) -> np.ndarray:
    """Returns [m] whole numbers in 0 .. `work.updates`.

    A client stops after so many minibatches and sends what it has then; with 0
    it sends nothing, and has no weight in the mean.
    """
    ...


def stragglers(fraction: float, *, work: str = 'minibatches') -> Completion:
  """Makes the rule by which some of a cohort, drawn anew, stop early.

  Args:
    fraction: of the cohort, on average, that stops early.
    work: 'minibatches' draws after how many of them, from 1 to all but one,
      uniformly; who has a single one has done none. 'epochs' draws after how
      many whole epochs, from 1 to E - 1, as the code of FedProx (Li et al.
      2020) and Flower's version of it do; their paper says 1 to E.

  Returns:
    A rule, for the clients that are left all minibatches.
  """

  def complete(rng: np.random.Generator, context: WorkContext) -> np.ndarray:
    done = context.updates
    # A whole number that is right on average, also of a cohort of one.
    wanted = round(fraction * len(done), 6)
    number = int(wanted + rng.random())
    late = rng.permutation(len(done))[:number]
    # Units of work, and the minibatches of each of them.
    unit, units = np.ones_like(done[late]), done[late]
    if work == 'epochs':
      unit = context.updates_per_epoch[late]
      units = np.full_like(unit, context.epochs)
    share = rng.random(number)
    most = np.maximum(units - 1, 0)  # Of a single one, none.
    some = np.minimum(1 + (share * most).astype(np.int64), most)
    done[late] = some * unit
    return done

  return complete


def check_completed(completed: object, work: WorkContext) -> np.ndarray:
  """Returns what a completion rule has given as minibatches [m] int64.

  Raises:
    InputError: it is of another shape or type, below 0, or more than a client's
      epochs have.
  """
  where = f'participation.completion, round {work.round_number}'
  number = len(work.clients)
  done = exact.array(completed, where)
  if done.shape != (number,) or (number and done.dtype.kind not in 'iu'):
    raise InputError(
      f'{where}: must return minibatches [{number}], a whole number for each'
      f' client drawn; returns {done.dtype} of shape {list(done.shape)}'
    )
  wrong = (done < 0) | (done > work.updates)
  if wrong.any():
    i = int(wrong.argmax())
    raise InputError(
      f'{where}: client {work.clients[i]} completes {done[i]} minibatches; must'
      f' be in [0, {work.updates[i]}], those of its epochs = {work.epochs}'
    )
  return done.astype(np.int64)
