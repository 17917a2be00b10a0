"""Runs FedAvg with pfl-research's own backend, model and algorithm.

By default its mean over clients is not weighted by their examples.

python worker.py WORKLOAD THREADS
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from importlib import metadata  # noqa: E402

import numpy as np  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm import FederatedAveraging  # noqa: E402
from pfl.algorithm import NNAlgorithmParams  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams  # noqa: E402
from pfl.hyperparam import NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics  # noqa: E402
from pfl.metrics import Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
import protocol  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_models import MODELS  # noqa: E402
from torch_models import random_clients  # noqa: E402


def main(threads: int) -> None:
  """Starts the algorithm's own loop, which waits for turns in a callback."""
  torch.set_num_threads(threads)
  workload = protocol.workload()
  turns = protocol.Turns()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  # All data are on the device, as are the engine's.
  clients = [
    tuple(own.to(device) for own in client)
    for client in random_clients(workload)
  ]
  rng = np.random.default_rng(0)
  net = MODELS[workload['model']]()

  class Net(torch.nn.Module):
    """Adds the loss and the metrics that pfl-research needs to a model."""

    def __init__(self):
      super().__init__()
      self.net = net

    def loss(self, x, y, eval=False):  # pfl-research names the argument so.
      self.train(not eval)
      return F.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x, y, eval=True):
      return {'loss': Weighted(self.loss(x, y, eval).item() * len(y), len(y))}

  class WaitForTurn(TrainingProcessCallback):
    """Waits for the next turn between two rounds."""

    def on_train_begin(self, *, model):
      turns.between_rounds()
      return Metrics()

    def after_central_iteration(
      self, aggregate_metrics, model, *, central_iteration
    ):
      if device == 'cuda':
        torch.cuda.synchronize()
      return not turns.between_rounds(), Metrics()

  data = FederatedDataset(
    lambda user: Dataset(raw_data=clients[user]),
    lambda: int(rng.integers(len(clients))),
  )
  model = PyTorchModel(
    model=Net(),
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
  )
  protocol.answer(
    versions={'pfl': metadata.version('pfl'), 'torch': torch.__version__},
    device=torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
  )
  FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
      central_num_iterations=10**6,
      evaluation_frequency=10**6,
      train_cohort_size=workload['cohort'],
      val_cohort_size=0,
    ),
    backend=SimulatedBackend(training_data=data, val_data=data),
    model=model,
    model_train_params=NNTrainHyperParams(
      local_num_epochs=workload['epochs'],
      local_learning_rate=workload['learning_rate'],
      local_batch_size=workload['batch'],
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=1000),
    callbacks=[WaitForTurn()],
    send_metrics_to_platform=False,
  )


if __name__ == '__main__':
  main(int(sys.argv[2]))
