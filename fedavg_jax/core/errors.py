"""Exceptions for what a user can fix; each message is one line."""


def describe(error: OSError) -> str:
  """What the system says, and of which file where it says that."""
  what = f'{error.filename}: ' if error.filename else ''
  return f'{what}{error.strerror or error}'


def first_lines(error: Exception) -> str:
  """Returns the first lines of what was raised, of which flax writes many."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return ' '.join(lines[:2])[:200] or type(error).__name__


class InputError(ValueError):
  """A bad config, file or data set: the message names what, where, the rule."""


class AgreedError(InputError):
  """What is wrong on one of several processes, reported by each of them.

  Attributes:
    machine: whether a machine could not do what was asked.
  """

  def __init__(self, message: str, *, machine: bool = False):
    super().__init__(message)
    self.machine = machine


class DivergedError(FloatingPointError):
  """Training left the finite numbers; the message names the round and cause."""


class LostError(Exception):
  """Another of several processes has ended, or does not answer."""


class StoppedError(Exception):
  """A signal has asked for an end; the message says what is kept.

  Attributes:
    signum: the signal.
  """

  def __init__(self, message: str, *, signum: int):
    super().__init__(message)
    self.signum = signum
