"""All tests have strict JAX, two CPU devices and these fixtures."""

import gc
import os
import pathlib
import signal

import jax
import pytest

from tests import testing

jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


# XLA compiles the same operations in a third of the time, to slower code.
_COMPILED_SOONER = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)


def pytest_addoption(parser):
  parser.addoption(
    '--real-programs',
    action='store_true',
    help='compile with all optimizations, as a run does',
  )


def pytest_configure(config):
  """Prepares this process and those that tests start."""
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so; commands would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
  _share_compiled(config)
  flags = os.environ.get('XLA_FLAGS', '')
  if not config.option.real_programs and _COMPILED_SOONER not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {_COMPILED_SOONER}'.strip()


def pytest_collection_finish():
  """Collects garbage less often: traces leave much, modules and tests none.

  With the usual thresholds a quarter of the time of a trace is spent there.

  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


def _share_compiled(config):
  """Lets all tests and their processes share what XLA has compiled."""
  folder = config.rootpath / '.pytest_cache' / 'jax'
  os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': str(folder),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    # XLA warns about features of its own machine when it reads the cache.
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


REPOSITORY = pathlib.Path(__file__).parent.parent
# Processes that tests start run this code, whatever is installed.
os.environ['PYTHONPATH'] = str(REPOSITORY)


@pytest.fixture
def real_programs(request):
  """Skips a test that needs programs as a run compiles them."""
  if not request.config.option.real_programs:
    pytest.skip('needs --real-programs')


@pytest.fixture
def repository() -> pathlib.Path:
  return REPOSITORY


@pytest.fixture
def clone() -> pathlib.Path:
  """Returns the repository with its history; skips without a git clone."""
  if not (REPOSITORY / '.git').exists():
    pytest.skip('this is not a git clone')
  return REPOSITORY


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """Returns the folder of real data; skips without one."""
  folder = pathlib.Path(os.environ.get('FEDAVG_DATA') or '/nonexistent')
  if not folder.is_dir():
    pytest.skip('real data: FEDAVG_DATA names no folder')
  return folder


@pytest.fixture
def mnist_dir(real_data) -> pathlib.Path:
  """Returns the folder of the original MNIST files; skips without one."""
  folder = real_data / 'mnist'
  if not folder.is_dir():
    pytest.skip('real MNIST: FEDAVG_DATA names no folder with mnist/ in it')
  return folder


@pytest.fixture
def uneven_examples():
  return testing.uneven_examples()
