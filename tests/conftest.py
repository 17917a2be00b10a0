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


def pytest_configure(config):
  """Prepares this process and those that tests start."""
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so; commands would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
  _share_compiled(config)
  if config.option.markexpr == 'slow':
    _compile_sooner()


def pytest_collection_finish():
  """Collects garbage less often: traces leave much, modules and tests none.

  With the usual thresholds a quarter of the time of a trace is spent there.

  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


def _compile_sooner():
  """Skips LLVM's costly passes, here and in processes that tests start.

  Slow tests start processes, commands and pages, which compile much and compute
  little; the laws are tested by the other tests, in the real program.

  """
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} {_FEWER_PASSES}'.strip()


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


@pytest.fixture(scope='module', autouse=True)
def _compiled_sooner(request):
  """Compiles short runs and recipes in a third of the time, unoptimized.

  The laws of the engine and of what it trains are tested in the real program.

  """
  if request.path.parent.name not in ('docs', 'runs'):
    yield
    return
  from fedavg_jax.engine import program

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program, '_CPU', program._CPU | _UNOPTIMIZED)
    yield


_FEWER_PASSES = '--xla_llvm_disable_expensive_passes=true'
_UNOPTIMIZED = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}
REPOSITORY = pathlib.Path(__file__).parent.parent
# Processes that tests start run this code, whatever is installed.
os.environ['PYTHONPATH'] = str(REPOSITORY)


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
