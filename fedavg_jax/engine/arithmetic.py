"""Sets how a call computes on its devices: its precision, and repeatability.

On a TPU XLA multiplies float32 numbers in one pass of bfloat16 by default, on a
GPU with tensor cores in TF32. A call here says what it wants while its models
are traced, those of users too.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import re
from typing import Any
from typing import NamedTuple

from absl import logging
import jax

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.models import layers

# The words of `jax.default_matmul_precision`. XLA's default is TF32 on a GPU,
# one pass of bfloat16 on a TPU; 'tensorfloat32' would exclude some of its
# kernels for GPUs, which use TF32 only at the default precision.
_LEVELS = {'float32': 'highest', 'tf32': 'default', 'bfloat16': 'default'}
# The first generation of NVIDIA's GPUs with TF32 (Ampere).
_TF32_CAPABILITY = 8.0

_DETERMINISTIC = {'xla_gpu_deterministic_ops': True}
# What a CUDA graph may hold: XLA's own list, and loops.
_GPU_GRAPHS = {
  'xla_gpu_enable_command_buffer': (
    'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,COLLECTIVES,WHILE,'
    'DYNAMIC_SLICE_FUSION'
  )
}
# The setting that needs an option of XLA's.
_NEEDED_BY = {
  **dict.fromkeys(_DETERMINISTIC, 'deterministic'),
  **dict.fromkeys(_GPU_GRAPHS, 'gpu_graphs'),
}


class Arithmetic(NamedTuple):
  """Describes how a call computes on devices of one kind.

  Attributes:
    platform: the kind of the devices, as in `jax.Device.platform`.
    precision: the attribute of `Execution`.
    deterministic: the attribute of `Execution`.
    gpu_graphs: the attribute of `Execution`.
  """

  platform: str
  precision: str = 'float32'
  deterministic: bool = False
  gpu_graphs: bool = False

  @contextlib.contextmanager
  def tracing(self) -> Iterator[None]:
    """Sets the platform and the precision that models are traced for.

    On a CPU products of float32 numbers always are float32, and the precision
    of JAX's own setting stays.
    """
    level: Any = contextlib.nullcontext()
    if self.platform != 'cpu':
      level = jax.default_matmul_precision(_LEVELS[self.precision])
    with layers.for_platform(self.platform), level:
      yield

  def options(self, *, loops: bool = False) -> dict[str, Any]:
    """Returns the compiler options of these settings; {} except on a GPU.

    Args:
      loops: whether the program has the loops of a round, which `gpu_graphs`
        is about.
    """
    if self.platform != 'gpu':
      return {}
    options: dict[str, Any] = {}
    if self.deterministic:
      options |= _DETERMINISTIC
    if self.gpu_graphs and loops:
      options |= _GPU_GRAPHS
    return options


def check(arithmetic: Arithmetic, device: jax.Device | None = None) -> None:
  """Raises InputError for a precision that the devices do not have.

  Warns where the precision replaces one that JAX has been set to.

  Args:
    arithmetic: the settings.
    device: a device, whose generation is checked; None checks the platform.
  """
  choices.check_choice('precision', arithmetic.precision, choices.PRECISIONS)
  config: Any = jax.config
  theirs = config.jax_default_matmul_precision
  if theirs is not None and arithmetic.platform != 'cpu':
    logging.log_first_n(
      logging.WARNING,
      'jax_default_matmul_precision = %r has no effect: precision = %r'
      ' replaces it',
      1,
      theirs,
      arithmetic.precision,
    )
  if arithmetic.precision != 'tf32':
    return
  kind = {'cpu': 'a CPU', 'tpu': 'a TPU'}.get(arithmetic.platform, '')
  # ROCm reports a name here, such as gfx942.
  capability = str(getattr(device, 'compute_capability', ''))
  if re.fullmatch(r'\d+\.\d+', capability):
    if float(capability) < _TF32_CAPABILITY:
      kind = f'a GPU of compute capability {capability}'
  if kind:
    raise InputError(
      f"precision = 'tf32': must be float32 or bfloat16 on {kind}, which has no"
      ' TF32'
    )


def compiled(
  lowered: jax.stages.Lowered, options: Mapping[str, Any]
) -> jax.stages.Compiled:
  """Compiles a program with compiler options.

  Args:
    lowered: the program.
    options: options of XLA by name.

  Raises:
    InputError: the XLA that is installed does not know an option of a setting,
      or one of its values.
  """
  try:
    return lowered.compile(dict(options))
  except jax.errors.JaxRuntimeError as error:
    found = re.search(r'compile option:? \'?(\w+)|option (xla_\w+)', str(error))
    name = found and (found[1] or found[2])
    if name not in _NEEDED_BY:
      raise
    raise InputError(
      f'{_NEEDED_BY[name]} = True: must be False with jax {jax.__version__},'
      f' whose compiler does not support {name} = {options.get(name)}'
    ) from error
