"""Describes plans."""

import numpy as np


def shapes(plan):
  """Returns the name, shape and dtype of each array of a plan."""
  return [
    (name, np.shape(array), array.dtype)
    for name, array in plan._asdict().items()
    if array is not None
  ]
