"""Runs FedAvg with Flower's ServerApp, ClientApp and simulation.

python worker.py WORKLOAD WORKERS
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import flwr  # noqa: E402
from flwr.app import ArrayRecord  # noqa: E402
from flwr.app import Message  # noqa: E402
from flwr.app import MetricRecord  # noqa: E402
from flwr.app import RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_models import MODELS  # noqa: E402
from torch_models import random_clients  # noqa: E402


def make_client(workload, threads: int) -> ClientApp:
  """Returns an app that trains one client per message.

  Each worker process makes the data and the model once.
  """
  app = ClientApp()
  kept = {}

  @app.train()
  def train(message, context):
    torch.set_num_threads(threads)
    if not kept:
      kept['clients'] = random_clients(workload)
      kept['model'] = MODELS[workload['model']]()
    model = kept['model']
    model.load_state_dict(message.content['arrays'].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), workload['learning_rate'])
    x, y = kept['clients'][context.node_config['partition-id']]
    for _ in range(workload['epochs']):
      for batch in torch.randperm(len(y)).split(workload['batch']):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    content = RecordDict(
      {
        'arrays': ArrayRecord(model.state_dict()),
        'metrics': MetricRecord({'num-examples': len(y)}),
      }
    )
    return Message(content=content, reply_to=message)

  return app


def main(workers: int) -> None:
  """Starts the strategy's own loop, which waits for its turns in `evaluate`."""
  import protocol

  workload = protocol.workload()
  turns = protocol.Turns()
  server = ServerApp()

  class Finished(Exception):
    pass

  def evaluate(server_round, arrays):
    if not turns.between_rounds():
      raise Finished
    return MetricRecord({})

  @server.main()
  def run(grid, context):
    strategy = FedAvg(
      # Flower truncates the product: adding 0.5 avoids losing one client.
      fraction_train=(workload['cohort'] + 0.5) / len(workload['sizes']),
      fraction_evaluate=0.0,
      min_train_nodes=1,
      min_available_nodes=len(workload['sizes']),
    )
    model = MODELS[workload['model']]()
    protocol.answer(
      versions={'flwr': flwr.__version__, 'torch': torch.__version__}
    )
    try:
      strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=10**6,
        evaluate_fn=evaluate,
      )
    except Finished:
      pass

  run_simulation(
    server_app=server,
    client_app=make_client(workload, threads=1),
    num_supernodes=len(workload['sizes']),
    backend_config={
      'client_resources': {'num_cpus': 1.0, 'num_gpus': 0.0},
      'init_args': {'num_cpus': workers, 'logging_level': 'error'},
    },
  )


if __name__ == '__main__':
  main(int(sys.argv[2]))
