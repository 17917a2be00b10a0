"""Defines the exceptions of the package; each message is one line."""


def describe(error: OSError) -> str:
  """Returns the reason of a system error, after the file's name if known."""
  what = f'{error.filename}: ' if error.filename else ''
  return f'{what}{error.strerror or error}'


def first_lines(error: Exception) -> str:
  """Returns the first two lines of a message, at most 200 characters."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return ' '.join(lines[:2])[:200] or type(error).__name__


class InputError(ValueError):
  """Reports invalid input that the user can fix: a config, a file, data.

  The message is one line that names the key, its value and the broken rule.

  >>> import fedavg_jax as fa
  >>> try:
  ...   fa.proximal(mu=-1.0)
  ... except fa.InputError as error:
  ...   print(error)
  mu = -1.0: must be in [0, 1e+30]
  """


class DistributedInputError(InputError):
  """Reports an error of one process on every process of a run.

  Attributes:
    machine: whether the cause is a machine, such as its disk, not the input.
  """

  def __init__(self, message: str, *, machine: bool = False):
    super().__init__(message)
    self.machine = machine


class DivergedError(FloatingPointError):
  """Reports that training diverged, to NaN or infinity.

  The message names the round and what to change.

  >>> import fedavg_jax as fa
  >>> issubclass(fa.DivergedError, FloatingPointError)
  True
  """


class PeerLostError(Exception):
  """Reports that another process of the run has ended or does not answer."""


class InterruptedRunError(Exception):
  """Reports that a signal stopped the run; the message names what was saved.

  Attributes:
    signum: the number of the signal.
  """

  def __init__(self, message: str, *, signum: int):
    super().__init__(message)
    self.signum = signum
