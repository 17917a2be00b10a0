"""Computes robust rules and attacks in NumPy loops, on vectors.

A rule gets the messages and weights of the clients that reported alone.
"""

import numpy as np


def median(messages, weights=None):
  """Computes the median of each coordinate."""
  return np.median(messages, axis=0)


def trimmed_mean(messages, weights=None, *, fraction):
  """Computes the mean of each coordinate without its ends."""
  number = int(round(fraction * len(messages), 9))
  return np.array(
    [
      np.mean(sorted(column)[number : len(column) - number])
      for column in np.transpose(messages)
    ]
  )


def krum(messages, weights=None, *, attackers, selected=1):
  """Averages the messages with the smallest scores."""
  scores = []
  for i, one in enumerate(messages):
    squares = sorted(
      ((one - other) ** 2).sum() for j, other in enumerate(messages) if j != i
    )
    scores.append(sum(squares[: max(len(messages) - attackers - 2, 1)]))
  best = sorted(range(len(messages)), key=lambda i: scores[i])  # Is stable.
  return np.mean([messages[i] for i in best[:selected]], axis=0)


def geometric_median(messages, weights, *, iterations=8, smoothing=1e-6):
  """Iterates weighted means with weights of one over the distance."""
  v = np.average(messages, axis=0, weights=weights)
  for _ in range(iterations):
    near = [
      w / max(np.linalg.norm(v - z), smoothing)
      for z, w in zip(messages, weights, strict=True)
    ]
    v = np.average(messages, axis=0, weights=near)
  return v


def centred_clipping(messages, weights=None, *, centre, max_norm, iterations=1):
  """Adds the mean of clipped distances to a centre."""
  v = np.array(centre, float)
  for _ in range(iterations):
    steps = []
    for z in messages:
      norm = np.linalg.norm(z - v)
      steps.append((z - v) * (min(1.0, max_norm / norm) if norm else 1.0))
    v = v + np.mean(steps, axis=0)
  return v


def bounded_mean(messages, weights, *, max_norm):
  """Computes the weighted mean of clipped messages."""
  clipped = [
    z / max(np.linalg.norm(z) / max_norm, 1.0) for z in map(np.array, messages)
  ]
  return np.average(clipped, axis=0, weights=weights)


def bucket_means(messages, weights, size):
  """Averages the messages of each bucket.

  Args:
    messages: the messages of the cohort, in its order; None for a client that
      did not report.
    weights: the clients' weights.
    size: the number of clients of a bucket.

  Returns:
    The means and the weights of the buckets that have a message.
  """
  means, totals = [], []
  for first in range(0, len(messages), size):
    own = [
      i
      for i in range(first, min(first + size, len(messages)))
      if messages[i] is not None
    ]
    if own:
      means.append(np.mean([messages[i] for i in own], axis=0))
      totals.append(sum(weights[i] for i in own))
  return means, totals


def little_is_enough(honest, scale):
  """Shifts the mean of the honest messages by some deviations."""
  return np.mean(honest, axis=0) - scale * np.std(honest, axis=0)


def inner_product(honest, scale):
  """Turns the mean of the honest messages around."""
  return -scale * np.mean(honest, axis=0)
