import numpy as np

from fedavg_jax.core import client_data


def test_back_to_back_and_stacked(uneven_examples):
  x, y, parts = uneven_examples
  population = client_data.build_clients(client_data.Examples(x, y), parts)
  assert population.num_clients == 5
  np.testing.assert_array_equal(population.num_examples, [1, 7, 4, 9, 2])
  assert population.x.dtype == np.uint8 and len(population.y) == 23
  ids = [3, 0, 1]
  stacked_x, stacked_y, mask = client_data.stack(population, ids)
  assert stacked_x.shape == (3, 9, 3, 3, 1) and stacked_x.dtype == np.uint8
  assert stacked_y.shape == mask.shape == (3, 9)
  for row, k in enumerate(ids):
    np.testing.assert_array_equal(stacked_x[row][mask[row]], x[parts[k]])
    np.testing.assert_array_equal(stacked_y[row][mask[row]], y[parts[k]])
    assert not stacked_x[row][~mask[row]].any()
