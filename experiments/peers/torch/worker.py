"""FedAvg as a PyTorch user writes it: a loop over clients and batches.

A worker of `experiments.benchmark`: a line on standard input asks for a round,
a line on standard output tells its seconds. Clients are divided among
processes, the fastest way on a CPU; each process sends back the weighted sum of
its clients' models.

python worker.py WORKLOAD PROCESSES THREADS
"""

import json
import sys
import time

import torch
from torch import multiprocessing
from torch import nn
import torch.nn.functional as F

NUM_CLIENTS, COHORT, EXAMPLES, BATCH = 100, 10, 600, 10


class ConvNet(nn.Module):
  """The paper's CNN: 1,663,370 parameters."""

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
    self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
    self.dense1 = nn.Linear(3136, 512)
    self.dense2 = nn.Linear(512, 10)

  def forward(self, x):
    x = F.max_pool2d(F.relu(self.conv1(x)), 2)
    x = F.max_pool2d(F.relu(self.conv2(x)), 2)
    return self.dense2(F.relu(self.dense1(x.flatten(1))))


def two_hidden_layers() -> nn.Module:
  """The paper's 2NN: 199,210 parameters."""
  return nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 200),
    nn.ReLU(),
    nn.Linear(200, 200),
    nn.ReLU(),
    nn.Linear(200, 10),
  )


MODELS = {'cnn': ConvNet, '2nn': two_hidden_layers}


def serve(workload: str, threads: int, tasks, results) -> None:
  """Trains the clients that come through `tasks` in one resident model."""
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  x = torch.rand(NUM_CLIENTS * EXAMPLES, 1, 28, 28)
  y = torch.randint(0, 10, (NUM_CLIENTS * EXAMPLES,))
  model = MODELS[workload]()
  while (task := tasks.get()) is not None:
    weights, clients = task
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for k in clients:
      model.load_state_dict(weights)
      optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
      rows = k * EXAMPLES + torch.randperm(EXAMPLES)
      for batch in rows.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
      for name, w in model.state_dict().items():
        total[name] += w / COHORT
    results.put(total)


def main(workload: str, processes: int, threads: int) -> None:
  """Answers every line of standard input with the seconds of a round."""
  context = multiprocessing.get_context('spawn')
  results = context.Queue()
  queues = [context.Queue() for _ in range(processes)]
  workers = [
    context.Process(target=serve, args=(workload, threads, queue, results))
    for queue in queues
  ]
  for worker in workers:
    worker.start()
  weights = MODELS[workload]().state_dict()
  for _ in sys.stdin:
    start = time.perf_counter()
    cohort = torch.randperm(NUM_CLIENTS)[:COHORT].tolist()
    for i, queue in enumerate(queues):
      queue.put((weights, cohort[i::processes]))
    parts = [results.get() for _ in queues]
    weights = {name: sum(part[name] for part in parts) for name in weights}
    seconds = time.perf_counter() - start
    print(json.dumps({'seconds': seconds}), flush=True)
  for queue in queues:
    queue.put(None)
  for worker in workers:
    worker.join()


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
