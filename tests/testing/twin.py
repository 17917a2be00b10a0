"""Computes Algorithm 1 in plain NumPy: network, gradient and loops.

It shares nothing with the package except the plan of who reads what.

"""

import itertools

import numpy as np


def init(rng, inputs, hidden, classes):
  """Makes a network of one hidden layer, in float64."""
  return {
    'w1': rng.normal(size=(inputs, hidden)) * 0.5,
    'b1': rng.normal(size=hidden) * 0.1,
    'w2': rng.normal(size=(hidden, classes)) * 0.5,
    'b2': rng.normal(size=classes) * 0.1,
  }


def losses_and_gradient(params, x, y):
  """Returns the cross entropy of every example, and their mean's gradient."""
  h = x @ params['w1'] + params['b1']
  a = np.where(h > 0, h, 0.0)
  logits = a @ params['w2'] + params['b2']
  logits = logits - logits.max(axis=1, keepdims=True)
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  rows = np.arange(len(y))
  losses = -np.log(p[rows, y])
  d = p.copy()
  d[rows, y] -= 1.0
  d /= len(y)
  dh = (d @ params['w2'].T) * (h > 0)
  gradient = {
    'w1': x.T @ dh,
    'b1': dh.sum(axis=0),
    'w2': a.T @ d,
    'b2': d.sum(axis=0),
  }
  return losses, gradient


def client_update(params, x, y, batches, learning_rate, adjust=None):
  """Applies w <- w - eta * gradient for every minibatch.

  Args:
    params: the weights w.
    x: inputs [n, ...].
    y: labels [n].
    batches: positions of the examples of each minibatch.
    learning_rate: the rate eta.
    adjust: a function (gradient, w) -> the direction to use instead.

  Returns:
    The weights after the last minibatch, and the losses of all examples.

  """
  params = dict(params)
  read = []
  for batch in batches:
    losses, gradient = losses_and_gradient(params, x[batch], y[batch])
    read.extend(losses)
    if adjust is not None:
      gradient = adjust(gradient, params)
    for name in params:
      params[name] = params[name] - learning_rate * gradient[name]
  return params, read


def batches_of(planner, round_number, client):
  """Returns a client's minibatches in a round, as positions of its examples."""
  size = planner.batch_size or int(planner.num_examples[client])
  return [
    order[start : start + size]
    for order in planner.epoch_orders(round_number, client)
    for start in range(0, len(order), size)
  ]


def deltas(params, x, y, parts, planner, round_number, learning_rate):
  """Returns {client: local - global model} of plain FedAvg's cohort."""
  found = {}
  for k in planner.cohort(round_number):
    local, _ = client_update(
      params,
      x[parts[k]],
      y[parts[k]],
      batches_of(planner, round_number, k),
      learning_rate,
    )
    found[int(k)] = {name: local[name] - params[name] for name in params}
  return found


def mean(trees, weights):
  """Returns the weighted mean of {client: {name: array}}."""
  total = sum(weights[k] for k in trees)
  names = next(iter(trees.values()))
  return {
    name: sum(weights[k] / total * tree[name] for k, tree in trees.items())
    for name in names
  }


def federated_round(params, x, y, parts, cohort, batches_of, learning_rate):
  """Returns the cohort's weighted mean model, and the mean loss."""
  total = sum(len(parts[k]) for k in cohort)
  new = {name: np.zeros_like(value) for name, value in params.items()}
  read = []
  for k in cohort:
    local, losses = client_update(
      params, x[parts[k]], y[parts[k]], batches_of(k), learning_rate
    )
    read.extend(losses)
    for name in new:
      new[name] += len(parts[k]) / total * local[name]
  return new, float(np.mean(read))


def rounds_of_work(planner, params, x, y, parts, *, rounds, learning_rate):
  """Returns the model after rounds whose clients stop where the plan says."""
  for t in range(1, rounds + 1):
    cohort, completed = planner.work(t)
    done = dict(zip(cohort, completed, strict=True))
    reports = [k for k in cohort if done[k]]
    if reports:
      params, _ = federated_round(
        params,
        x,
        y,
        parts,
        reports,
        lambda k, t=t, done=done: batches_of(planner, t, k)[: done[k]],
        learning_rate,
      )
  return params


def linear_rounds(clients, planner, w, gradient, learning_rate):
  """Yields w of a linear model after rounds 0, 1, 2, ... of FedAvg.

  `gradient(w, x, y)` is that of the mean loss of a minibatch.
  """
  for number in itertools.count(1):
    yield w
    cohort, new = planner.cohort(number), np.zeros_like(w)
    total = sum(planner.num_examples[cohort])
    for k in cohort:
      x, y = (
        array[clients.offsets[k] : clients.offsets[k + 1]]
        for array in clients[:2]
      )
      local = w.copy()
      for rows in batches_of(planner, number, k):
        local -= learning_rate * gradient(local, x[rows], y[rows])
      new += len(x) / total * local
    w = new
