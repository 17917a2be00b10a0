"""Defines the options of a run that make its task: data, model and clients."""

import dataclasses
import re

from fedavg_jax.core import choices
from fedavg_jax.runs.config_option import ANYTHING
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import empty_or
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import one_of_or_own
from fedavg_jax.runs.config_option import option

_NUMBERS = re.compile(r'\s*\d+(\s*,\s*\d+)*\s*')
_SIZES = Rule(
  lambda value: (
    value in choices.SIZE_LAWS or bool(_NUMBERS.fullmatch(str(value)))
  ),
  f'must be one of {", ".join(choices.SIZE_LAWS)}, or comma-separated integers',
  choices.SIZE_LAWS,
)
_YES_OR_NO = ANYTHING
_BUILT_IN = one_of_or_own(choices.DATASETS)
_DATASET = _BUILT_IN._replace(
  holds=lambda value: _BUILT_IN.holds(value) or choices.is_of_library(value),
  text=_BUILT_IN.text.replace(', or module', ', hf:NAME, tfds:NAME, or module'),
)


@dataclasses.dataclass(frozen=True)
class TaskOptions(Options):
  """Configures data set, model, loss and the division among clients."""

  dataset: str = option(
    'digits',
    _DATASET,
    'Data set, that of a library as hf:NAME or tfds:NAME, or your function as'
    ' module:function; see docs/data.md.',
  )
  data_dir: str = option(
    '',
    ANYTHING,
    'Folder or file of the data; empty: $FEDAVG_DATA, then a download.',
  )
  pixels: str = option(
    'unit',
    one_of(choices.PIXELS),
    "Scaling of pixels: 'unit' ([0, 1]) | 'standard' (mean 0, std 1 over the"
    " training set) | 'image' (mean 0, std 1 of each image).",
  )
  augmentation: str = option(
    'none',
    one_of(choices.AUGMENTATIONS),
    "Augmentation of training images: 'none' | 'tutorial' (random 24 x 24"
    " crop, flip, brightness and contrast, as in TensorFlow's CIFAR-10"
    ' tutorial).',
  )
  model: str = option(
    '2nn',
    one_of_or_own(choices.MODELS),
    'Model, or your function as module:function; see docs/api.md.',
  )
  convolution: str = option(
    'auto',
    one_of(choices.CONVOLUTIONS),
    "Computation of convolutions: 'auto' ('canonical' on CPU, 'lax' on TPU,"
    " 'patches' on GPU) | 'canonical' (plain NHWC forms) | 'patches' (one"
    " batched matrix product) | 'lax' (XLA's convolution).",
  )
  precision: str = option(
    'float32',
    one_of(choices.PRECISIONS),
    "Precision of matrix products and convolutions: 'float32' | 'tf32' (the"
    " default of a GPU's tensor cores) | 'bfloat16' (weights stay float32; a"
    ' user-defined model keeps its own dtypes).',
  )
  loss: str = option(
    '',
    empty_or(one_of_or_own(choices.LOSSES)),
    'Training loss, or your function as module:function; empty: cross entropy.',
  )
  metrics: str = option(
    '',
    ANYTHING,
    'Comma-separated metrics of the evaluation, such as'
    f' {", ".join(choices.METRICS)}, top_5; the first decides the target, the'
    ' best checkpoint and sweeps. Empty: accuracy and loss for cross entropy,'
    ' the mean loss for another loss.',
  )

  partition: str = option(
    'shards',
    one_of(choices.PARTITIONS),
    "Division of the examples among clients: 'iid' (random) | 'shards' (random"
    " shards of the examples sorted by label, as in the paper) | 'dirichlet'"
    " (every label divided by Dir(alpha)) | 'inner_dirichlet' (the labels of"
    " each client by Dir(alpha), at given sizes) | 'pathological' (a fixed"
    " number of labels per client) | 'few_labels' (the same, at given sizes) |"
    " 'natural' (the clients of the data set).",
  )
  shards_per_client: int = option(
    2, at_least(1), "Shards per client in 'shards'; 2 give about two labels."
  )
  alpha: float = option(
    0.5,
    between(1e-30, 1e30),
    "Concentration of 'dirichlet' and 'inner_dirichlet'; small is skewed.",
  )
  min_size: int = option(
    10,
    at_least(0),
    "Fewest examples of a client in partition 'dirichlet', and in 'few_labels'"
    ' where `sizes` is a law: it divides the remaining examples.',
  )
  self_balancing: bool = option(
    False,
    _YES_OR_NO,
    "Whether partition 'dirichlet' gives no further label to a client that has"
    ' n/K examples.',
  )
  classes_per_client: int = option(
    2, at_least(1), "Labels per client in 'pathological' and 'few_labels'."
  )
  class_assignment: str = option(
    'random',
    one_of(choices.CLASS_ASSIGNMENTS),
    "Labels of client i in partitions 'pathological' and 'few_labels': 'random'"
    " | 'deterministic' (i, i + 1, ...) | 'first_deterministic' (i, the others"
    ' at random).',
  )
  sizes: str = option(
    'equal',
    _SIZES,
    "Number of examples of client i = 1 ... K in partitions 'iid',"
    " 'inner_dirichlet' and 'few_labels', in proportion to: 'equal' (1) |"
    " 'linear' (i) | 'square' (i^2) | 'exponential' (e^i) | 'power_law'"
    " (i^-size_skew) | 'log_normal' (exp(size_skew * z), z ~ N(0, 1)); or K"
    " numbers, '600,300,...', which may leave examples unassigned in"
    " 'few_labels'.",
  )
  size_skew: float = option(
    1.0, between(0, 100), "Exponent of 'power_law', sigma of 'log_normal'."
  )
  num_clients: int = option(
    50, at_least(0), 'K: number of clients; 0: as many as the data set has.'
  )
  validation_fraction: float = option(
    0.0,
    BELOW_ONE,
    "Fraction of every client's examples moved to a validation set, which then"
    ' decides the target, the best checkpoint and sweeps; the test set is used'
    ' once, at the end. 0: no validation set.',
  )
  holdout_fraction: float = option(
    0.0,
    BELOW_ONE,
    "Fraction of every client's examples held out, on which client_eval_every"
    ' tests the model.',
  )
