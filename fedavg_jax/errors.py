"""What a person can mend, told in one line."""


class InputError(ValueError):
  """A bad config, file or data set: the message names what, where, the rule."""


class DivergedError(FloatingPointError):
  """Training left the finite numbers; the message names the round and cause."""
