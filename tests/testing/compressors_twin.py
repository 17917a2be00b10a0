"""Computes compressors in plain NumPy, given the same random draws."""

import jax
import numpy as np
import scipy.linalg


def qsgd(key, x, levels):
  u = np.float64(jax.random.uniform(key, x.shape))
  norm = np.sqrt((x**2).sum()) or 1.0
  return np.sign(x) * np.floor(np.abs(x) / norm * levels + u) * norm / levels


def top_k(key, x, k):
  del key
  kept = np.zeros_like(x)
  largest = np.argsort(-np.abs(x), kind='stable')[:k]
  kept[largest] = x[largest]
  return kept


def random_k(key, x, k):
  kept = np.zeros_like(x)
  draws = np.int64(jax.random.bits(key, x.shape) >> 1)
  drawn = np.argsort(-draws, kind='stable')[:k]
  kept[drawn] = x[drawn] * len(x) / k
  return kept


def scaled_sign(key, x):
  del key
  return np.abs(x).mean() * np.where(x < 0, -1.0, 1.0)


def rotation(key, d):
  """Returns R [n, d], the columns of an orthogonal matrix, n a power of two."""
  n = 2 ** int(np.ceil(np.log2(d)))
  words = np.asarray(jax.random.bits(key, (max(n // 32, 1), 1)))
  bits = [(int(word) >> i) & 1 for word in words[:, 0] for i in range(32)][:n]
  signs = 1.0 - 2 * np.array(bits)
  return (scipy.linalg.hadamard(n) * signs / np.sqrt(n))[:, :d]


def drive(key, x):
  r = rotation(key, len(x))
  return np.abs(r @ x).mean() * (r.T @ np.where(r @ x < 0, -1.0, 1.0))


def eden(key, x, centroids):
  r = rotation(key, len(x))
  z = np.sqrt(len(r)) * (r @ x) / (np.sqrt((x**2).sum()) or 1.0)
  q = centroids[np.abs(z[:, None] - centroids).argmin(axis=1)]
  return (x @ x) / (r @ x @ q) * (r.T @ q) if x.any() else x


def fixed_point(centroids):
  """Returns the mean of N(0, 1) nearest to each centroid, by integration."""
  cuts = [-np.inf, *(centroids[1:] + centroids[:-1]) / 2, np.inf]
  from scipy.stats import norm as normal  # Half a second to import.

  return np.array(
    [
      normal.expect(lambda z: z, lb=a, ub=b, conditional=True)
      for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
  )
