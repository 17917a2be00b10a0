"""Options are refused where they are made, before anything is laid out."""

import numpy as np
import pytest

import fedavg_jax as fa


def federation(**changed):
  examples = fa.Examples(np.zeros((8, 2), np.float32), np.zeros(8, np.int32))
  parts = fa.partition.iid(8, num_clients=2, seed=0)
  options = {'client_fraction': 0.5, 'epochs': 1, 'batch_size': 2}
  return fa.Federation(
    fa.build_clients(examples, parts), examples, **(options | changed)
  )


@pytest.mark.parametrize(
  ('make', 'name', 'value'),
  [
    (federation, 'client_fraction', 2),
    (federation, 'epochs', 0),
    (federation, 'batch_size', -1),
    (federation, 'weighting', 'x'),
    (federation, 'shuffle', 'x'),
    (federation, 'on_nan', 'x'),
    (federation, 'seed', -1),
    (fa.Execution, 'lanes', 1.5),
    (fa.Execution, 'micro_batch', -1),
    (fa.Execution, 'rounds_per_call', -1),
    (fa.Execution, 'devices', []),
    (fa.Execution, 'precision', 'float16'),
    (fa.Execution, 'gpu_graphs', 1),
    (fa.Execution, 'deterministic', 'yes'),
    (fa.Placement, 'examples_on', 'x'),
    (fa.Placement, 'client_states_on', 'x'),
  ],
)
def test_a_value_that_breaks_its_rule_is_refused(make, name, value):
  with pytest.raises(fa.InputError, match=f'^{name} = '):
    make(**{name: value})
