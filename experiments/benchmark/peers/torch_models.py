"""Defines the benchmark's models in PyTorch, for the peers that use it."""

import torch
from torch import nn
import torch.nn.functional as F


class MnistCNN(nn.Module):
  """Defines the paper's CNN; 1,663,370 parameters."""

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


class SimpleCnn(nn.Module):
  """Defines pfl-research's `simple_cnn` for CIFAR-10, without its dropout.

  It has 1,626,442 parameters.
  """

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 32, 3)
    self.conv2 = nn.Conv2d(32, 64, 3)
    self.dense1 = nn.Linear(12544, 128)
    self.dense2 = nn.Linear(128, 10)

  def forward(self, x):
    x = F.relu(self.conv2(F.relu(self.conv1(x))))
    x = F.max_pool2d(x, 2)
    return self.dense2(F.relu(self.dense1(x.flatten(1))))


def two_hidden_layers() -> nn.Module:
  """Returns the paper's 2NN; 199,210 parameters."""
  return nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 200),
    nn.ReLU(),
    nn.Linear(200, 200),
    nn.ReLU(),
    nn.Linear(200, 10),
  )


def logistic_regression() -> nn.Module:
  """Returns logistic regression, 784 to 10; 7,850 parameters."""
  return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


MODELS = {
  'cnn': MnistCNN,
  '2nn': two_hidden_layers,
  'lr': logistic_regression,
  'simple_cnn': SimpleCnn,
}


def random_clients(workload) -> list[tuple[torch.Tensor, torch.Tensor]]:
  """Draws random images, channels first, and labels for every client.

  Returns:
    Images [n_k, C, H, W] and labels [n_k] of each of the K clients.
  """
  generator = torch.Generator().manual_seed(0)
  height, width, channels = workload['shape']
  return [
    (
      torch.rand(n, channels, height, width, generator=generator),
      torch.randint(0, workload['classes'], (n,), generator=generator),
    )
    for n in workload['sizes']
  ]
