"""Lists the allowed words of options, once for configs and for Python."""

from collections.abc import Sequence

from fedavg_jax.core.errors import InputError

DATASETS = (
  *('digits', 'mnist', 'fashion_mnist', 'cifar10'),
  *('mnist_writers', 'leaf', 'shakespeare', 'words', 'stored', 'parquet'),
)
# Data sets of other libraries: these, followed by their names there.
LIBRARIES = ('hf:', 'tfds:')
PARTITIONS = (
  *('iid', 'shards', 'dirichlet', 'inner_dirichlet', 'pathological'),
  *('few_labels', 'natural'),
)
CLASS_ASSIGNMENTS = ('random', 'deterministic', 'first_deterministic')
SIZE_LAWS = (
  *('equal', 'linear', 'square', 'exponential', 'power_law', 'log_normal'),
)

MODELS = ('2nn', 'cnn', 'cnn_torch', 'cifar_cnn', 'char_lstm', 'word_lstm')
PIXELS = ('unit', 'standard', 'image')
AUGMENTATIONS = ('none', 'tutorial')
CONVOLUTIONS = ('auto', 'canonical', 'patches', 'lax')
PRECISIONS = ('float32', 'tf32', 'bfloat16')

LOSSES = ('cross_entropy', 'squared_error', 'binary_cross_entropy')
# Also top_1, top_2, ...
METRICS = ('accuracy', 'macro_f1', 'loss', 'perplexity', 'squared_error')

ALGORITHMS = (
  *('fedavg', 'fedprox', 'scaffold', 'fednova', 'fednova_prox', 'feddyn'),
  *('fedexp', 'qfedavg', 'mimelite'),
)
CONTROLS = ('updates', 'gradient')
SCHEDULES = ('step', 'cosine', 'linear')
ROBUST_RULES = (
  *('none', 'median', 'trimmed_mean', 'krum', 'geometric_median'),
  *('centred_clipping', 'norm_bound'),
)
ATTACKS = (
  *('none', 'label_flip', 'sign_flip', 'scaling', 'gaussian_noise'),
  *('little_is_enough', 'inner_product'),
)
COMPRESSIONS = (
  *('none', 'qsgd', 'top_k', 'random_k', 'sign', 'drive', 'eden'),
)
SERVER_OPTIMIZERS = ('sgd', 'adagrad', 'adam', 'yogi')
PERSONAL_METHODS = (
  *('fedper', 'fedrep', 'lg', 'fedbn', 'adapters', 'ditto', 'apfl', 'ifca'),
)
WEIGHTINGS = ('examples', 'uniform')
SHUFFLES = ('epoch', 'round')
SAMPLINGS = ('uniform', 'examples', 'poisson')
ACCOUNTINGS = ('zero_out', 'replace_one')
PRIVACY_UNITS = ('client', 'example')
ROUNDINGS = ('stochastic', 'nearest')
STRAGGLER_WORK = ('minibatches', 'epochs')
STRAGGLERS = ('keep', 'drop')
STATE_OF = ('everybody', 'client', 'nobody')
ON_NAN = ('stop', 'skip_client')

EXAMPLES_ON = ('device', 'host')
CLIENT_STATES_ON = ('device', 'host', 'disk')
CHOOSE_ON = ('validation', 'test')
LOGGERS = ('csv', 'tensorboard', 'wandb')


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
  """Raises InputError unless the value of an option is one of its words.

  Args:
    option: the name of the option, as the caller knows it.
    value: the value to check.
    choices: the allowed values.
  """
  if value not in choices:
    raise InputError(
      f'{option} = {value!r}: must be one of {", ".join(choices)}'
    )


def is_of_library(dataset: str) -> bool:
  """Returns whether another library reads a data set, by its columns.

  >>> is_of_library('hf:mnist'), is_of_library('mnist')
  (True, False)
  """
  return dataset == 'parquet' or (
    dataset.startswith(LIBRARIES) and dataset not in LIBRARIES
  )
