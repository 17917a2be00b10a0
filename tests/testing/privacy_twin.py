"""Computes private rounds and their sampler in NumPy loops."""

import itertools

import numpy as np


def clip(message, most):
  """Clips a vector; one that is not finite counts as zero."""
  if not np.isfinite(message).all():
    return np.zeros_like(message), 0.0
  norm = np.sqrt((message.astype(np.float64) ** 2).sum())
  return message * min(1.0, most / norm if norm else 1.0), (
    0.5 if norm <= most else -0.5
  )


def private_round(messages, most, denominator, *, quantile, rate):
  """Returns the aggregate without noise, and the next clip.

  Args:
    messages: the messages of the clients that were drawn.
    most: the clip S.
    denominator: the expected number of clients.
    quantile: the quantile gamma; None keeps the clip.
    rate: the rate eta_C of the clip.

  """
  total, bits = 0.0, 0.0
  for message in messages:
    short, bit = clip(message, most)
    total, bits = total + short, bits + bit
  if quantile is not None:
    share = 0.5 + bits / denominator
    most = most * np.exp(-rate * (share - quantile))
  return total / denominator, most


def truncated_law(number, rate, most):
  """Enumerates who is drawn and who keeps its place, for the client 0.

  Returns:
    {(number of others that train, whether client 0 trains): probability}.

  """
  law = {}
  for drawn in itertools.product([False, True], repeat=number):
    chance = np.prod([rate if d else 1 - rate for d in drawn])
    who = [k for k in range(number) if drawn[k]]
    subsets = list(itertools.combinations(who, min(len(who), most)))
    for kept in subsets:
      key = len(set(kept) - {0}), 0 in kept
      law[key] = law.get(key, 0.0) + chance / len(subsets)
  return law


def renyi(law, noise, alpha):
  """Integrates the Renyi divergence of who knows how many others train.

  Args:
    law: the result of `truncated_law`.
    noise: the standard deviation of the noise of a sum of sensitivity 1.
    alpha: the order.

  Returns:
    The larger of the divergences in both directions.

  """
  x = np.linspace(-60, 61, 400_001) * noise
  zero = np.exp(-(x**2) / (2 * noise**2))
  one = np.exp(-((x - 1) ** 2) / (2 * noise**2))
  width = (x[1] - x[0]) / np.sqrt(2 * np.pi) / noise
  sums = np.zeros(2)
  for others in {key[0] for key in law}:
    inside, outside = law.get((others, True), 0), law.get((others, False), 0)
    chance = inside + outside
    if not chance:
      continue
    mixed = (outside * zero + inside * one) / chance
    for i, (p, q) in enumerate(((mixed, zero), (zero, mixed))):
      real = (p > 0) & (q > 0)
      power = alpha * np.log(p[real]) + (1 - alpha) * np.log(q[real])
      sums[i] += chance * np.exp(power).sum() * width
  return np.log(sums.max()) / (alpha - 1)


def delta_of(law, noise, epsilon):
  """Integrates delta of one round at an epsilon, in the worse direction."""
  x = np.linspace(-40, 41, 400_001) * noise
  zero = np.exp(-(x**2) / (2 * noise**2))
  one = np.exp(-((x - 1) ** 2) / (2 * noise**2))
  width = (x[1] - x[0]) / np.sqrt(2 * np.pi) / noise
  sums = np.zeros(2)
  for others in {key[0] for key in law}:
    inside, outside = law.get((others, True), 0), law.get((others, False), 0)
    mixed, plain = outside * zero + inside * one, (inside + outside) * zero
    for i, (p, q) in enumerate(((mixed, plain), (plain, mixed))):
      sums[i] += np.maximum(p - np.exp(epsilon) * q, 0).sum() * width
  return sums.max()
