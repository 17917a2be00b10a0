"""Makes files in the shapes of MNIST's, with random pixels."""

import numpy as np

from fedavg_jax.data import images

FILES = {
  'train-images-idx3-ubyte': (60_000, 28, 28),
  'train-labels-idx1-ubyte': (60_000,),
  't10k-images-idx3-ubyte': (10_000, 28, 28),
  't10k-labels-idx1-ubyte': (10_000,),
}


def idx_bytes(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
  return header + array.astype(np.uint8).tobytes()


def make_files(folder, name):
  """Makes a data set's four files: its labels shuffled, random pixels."""
  rng = np.random.default_rng(0)
  for file, shape in FILES.items():
    array = rng.integers(0, 256, shape)
    if len(shape) == 1:
      array = rng.integers(0, 10, shape)
      if shape == (60_000,):
        array = rng.permutation(np.repeat(range(10), images._LABELS[name]))
    (folder / file).write_bytes(idx_bytes(array))
