"""Runs FedAvg in plain PyTorch: a loop over clients and batches.

Clients are divided among processes, which is the fastest way on a CPU; each
process returns the weighted sum of its clients' models.

python worker.py WORKLOAD PROCESSES THREADS
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch  # noqa: E402
from torch import multiprocessing  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_models import MODELS  # noqa: E402
from torch_models import random_clients  # noqa: E402


def train(workload, threads: int, tasks, results) -> None:
  """Trains the clients of the queue `tasks` in one model that is reused.

  Args:
    workload: the content of `workloads.Workload.as_dict`.
    threads: the number of threads.
    tasks: a queue of (global weights, [(client, weight)]); None ends it.
    results: a queue for the weighted sums of models.
  """
  torch.set_num_threads(threads)
  clients = random_clients(workload)
  model = MODELS[workload['model']]()
  while (task := tasks.get()) is not None:
    weights, cohort = task
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for k, share in cohort:
      model.load_state_dict(weights)
      optimizer = torch.optim.SGD(model.parameters(), workload['learning_rate'])
      x, y = clients[k]
      for _ in range(workload['epochs']):
        for batch in torch.randperm(len(y)).split(workload['batch']):
          optimizer.zero_grad()
          F.cross_entropy(model(x[batch]), y[batch]).backward()
          optimizer.step()
      for name, w in model.state_dict().items():
        total[name] += share * w
    results.put(total)


def main(processes: int, threads: int) -> None:
  """Divides every cohort among the processes, clients with most work first."""
  import protocol

  workload = protocol.workload()
  sizes = torch.tensor(workload['sizes'])
  context = multiprocessing.get_context('spawn')
  results = context.Queue()
  queues = [context.Queue() for _ in range(processes)]
  workers = [
    context.Process(target=train, args=(workload, threads, queue, results))
    for queue in queues
  ]
  for worker in workers:
    worker.start()
  weights = MODELS[workload['model']]().state_dict()

  def run_rounds(rounds: int) -> None:
    nonlocal weights
    for _ in range(rounds):
      cohort = torch.randperm(len(sizes))[: workload['cohort']]
      cohort = cohort[sizes[cohort].argsort(descending=True)]
      shares = torch.full((len(cohort),), 1 / len(cohort))
      if workload['weighting'] == 'examples':
        shares = sizes[cohort] / sizes[cohort].sum()
      tasks = list(zip(cohort.tolist(), shares.tolist(), strict=True))
      for i, queue in enumerate(queues):
        queue.put((weights, tasks[i::processes]))
      parts = [results.get() for _ in queues]
      weights = {name: sum(part[name] for part in parts) for name in weights}

  protocol.serve(run_rounds, versions={'torch': torch.__version__})
  for queue in queues:
    queue.put(None)
  for worker in workers:
    worker.join()


if __name__ == '__main__':
  main(int(sys.argv[2]), int(sys.argv[3]))
