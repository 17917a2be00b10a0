"""Defines cases of invalid inputs of a run: name -> Case.

Each has to end with one line on stderr that contains the words, an exit code
that is not zero, and an unchanged file system. `run` is the folder of an
interrupted run, `data` one with four files in the shapes of MNIST's.

"""

from collections.abc import Callable
import gzip
import json
import os
import pathlib
import pickle
import shutil
from typing import NamedTuple

import numpy as np

IDX = 'train-images-idx3-ubyte'
TEST_BATCH = 'test_batch.bin'
LABELS = 't10k-labels-idx1-ubyte'


class Case(NamedTuple):
  """Holds a command and what its error must say.

  Attributes:
    args: the flags of `python -m fedavg_jax.main`; `--config` and `--workdir`
      are valid ones unless given here.
    words: parts of the error's line.
    prepare: a function that changes the command's folder before it runs.
    code: the exit code.

  """

  args: list[str]
  words: list[str]
  prepare: Callable[[pathlib.Path], None] = lambda folder: None
  code: int = 2


def key(name: str, value: str, *words: str) -> Case:
  """Makes a case of a value that breaks the rule of its key."""
  return Case([f'--config.{name}={value}'], [name, *words])


def config_file(content: str | bytes, *words: str) -> Case:
  """Makes a case of a user's config file."""

  def prepare(folder):
    data = content.encode() if isinstance(content, str) else content
    (folder / 'mine.py').write_bytes(data)

  return Case(['--config=mine.py'], list(words), prepare)


def data_file(name: str, change: Callable[[bytes], bytes], *words: str) -> Case:
  """Makes a case of a damaged file of MNIST."""

  def prepare(folder):
    path = folder / 'data' / name
    content = change(path.read_bytes())
    path.unlink()  # It may be a link to a shared file.
    path.write_bytes(content)

  return Case(
    ['--config.dataset=mnist', '--config.data_dir=data'],
    [name, *words],
    prepare,
  )


def cifar(content: bytes, *words: str) -> Case:
  """Makes a case of invalid files of CIFAR-10."""
  return Case(
    ['--config.dataset=cifar10', '--config.data_dir=data'],
    ['data_batch_1.bin', *words],
    lambda folder: [
      (folder / 'data' / name).write_bytes(content)
      for name in [*(f'data_batch_{i}.bin' for i in range(1, 6)), TEST_BATCH]
    ],
  )


def texts(dataset: str, content: str, *words: str) -> Case:
  """Makes a case of an invalid text."""
  return Case(
    [
      f'--config.dataset={dataset}',
      '--config.data_dir=text',
      '--config.partition=natural',
      '--config.num_clients=0',
      '--config.model=char_lstm',
    ],
    ['text', *words],
    lambda folder: (folder / 'text').write_text(content),
  )


def leaf(change: Callable[[dict], object], *words: str) -> Case:
  """Makes a case of LEAF's folder with a changed training file."""

  def prepare(folder):
    own = {'x': [[0.0] * 4] * 2, 'y': [0, 1]}
    tree = {'users': ['a'], 'num_samples': [2], 'user_data': {'a': own}}
    for split in ('test', 'train'):
      (folder / 'leaf' / split).mkdir(parents=True)
      if split == 'train':
        change(tree)
      (folder / 'leaf' / split / 'all.json').write_text(json.dumps(tree))

  return Case(
    ['--config.dataset=leaf', '--config.data_dir=leaf'], list(words), prepare
  )


def idx(array: np.ndarray) -> bytes:
  """Returns the bytes of an IDX file."""
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
  return header + array.astype(np.uint8).tobytes()


def run_folder(
  change: Callable[[pathlib.Path], object],
  *words: str,
  args: tuple[str, ...] = (),
  code: int = 2,
) -> Case:
  """Makes a case of an interrupted run whose folder was changed."""

  def prepare(folder):
    change(folder / 'run')

  return Case(['--workdir=run', *args], list(words), prepare, code)


def _damage_checkpoints(run: pathlib.Path) -> None:
  for path in (run / 'checkpoints').rglob('*'):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)


def _pickle_checkpoints(run: pathlib.Path) -> None:
  for path in (run / 'checkpoints').rglob('*'):
    if path.is_file():
      path.write_bytes(pickle.dumps(np.arange(9)))


def _checkpoints_of(value):
  """Replaces the checkpoints by valid ones of another model."""

  def change(run):
    from fedavg_jax.runs import checkpoint

    seal = json.loads(
      next((run / 'checkpoints').glob('*/told/metadata')).read_text()
    )
    shutil.rmtree(run / 'checkpoints')
    checkpoints = checkpoint.Checkpoints(run, keep=3)
    metadata = {name: seal[name] for name in ('round', 'lanes', 'metrics')}
    checkpoints.save(seal['round'], {'params': value}, metadata, None)
    checkpoints.close()

  return change


def _edit_json(name, change):
  def edit(run):
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))

  return edit


def _write(name, content):
  def write(run):
    (run / name).write_bytes(content)

  return write


def _edit_metrics(run: pathlib.Path) -> None:
  path = run / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"round": 1,', '"round": 9,'))


_GOOD = """
import importlib.util
def get_config():
  spec = importlib.util.spec_from_file_location('good', {path!r})
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  with config.unlocked():
    {change}
  return config
"""


def changed_config(change: str, *words: str) -> Case:
  """Makes a case of the quickstart, changed by a line of Python."""
  path = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
  return config_file(_GOOD.format(path=str(path), change=change), *words)


FLAGS = {
  'misspelt key': Case(
    ['--config.client.epoch=3'],
    ['unknown key: \'epoch\'. Did you mean "epochs"'],
  ),
  'unknown key': Case(['--config.optimizer=adam'], ['optimizer']),
  'key of a value': Case(['--config.rounds.every=3'], ['rounds']),
  'a whole branch': Case(['--config.client=3'], ['client']),
  'unknown flag': Case(['--wordir=x'], ['wordir']),
  'stray word': Case(['fast'], ['fast']),
  'config missing': Case(['--config='], ['--config']),
  'no such config': Case(['--config=nowhere.py'], ['nowhere.py']),
  'config is a folder': Case(
    ['--config=mine'], ['mine'], lambda folder: (folder / 'mine').mkdir()
  ),
  'workdir empty': Case(['--workdir='], ['workdir']),
  'resume': Case(['--resume=maybe'], ['resume', 'maybe', 'extend']),
  'extend nothing': Case(['--resume=extend'], ['workdir', 'contains no run']),
}

KEYS = {
  'huge E': Case(
    ['--config.client.epochs=100000000'], ['epochs = 100000000', '2**31']
  ),
  'E 0': key('client.epochs', '0', '[1,'),
  'E -1': key('client.epochs', '-1', '[1,'),
  'E half': key('client.epochs', '0.5', '0.5'),
  'B': key('client.batch_size', '-1', '-1'),
  'B inf': key('client.batch_size', 'inf', 'inf'),
  'lr huge': key('client.learning_rate', '1e300', '1e+300'),
  'lr negative': key('client.learning_rate', '-1', '-1.0'),
  'lr 0': key('client.learning_rate', '0', '0.0'),
  'lr nan': key('client.learning_rate', 'nan', 'nan', 'finite'),
  'lr inf': key('client.learning_rate', 'inf', 'inf', 'finite'),
  'lr word': key('client.learning_rate', 'small', 'small'),
  'shuffle': key('client.shuffle', 'never', 'never', 'epoch'),
  'proximal': key('client.proximal', '-0.1', '-0.1'),
  'clip': key('client.clip_norm', '-2', '-2.0'),
  'server': key('server.optimizer', 'sgdm', 'sgdm', 'yogi'),
  'server lr': key('server.learning_rate', '0', '0.0'),
  'momentum': key('server.momentum', '1', '1.0', '[0, 1)'),
  'second momentum': key('server.second_momentum', '-1', '-1.0'),
  'adaptivity': key('server.adaptivity', '0', '0.0'),
  'data set': key('dataset', 'mnits', 'mnits', 'digits'),
  'data set empty': key('dataset', '', "''", 'digits'),
  'model': key('model', '3nn', '3nn', '2nn'),
  'precision': key('precision', 'float16', 'float16', 'bfloat16'),
  'tf32 on a CPU': key('precision', 'tf32', "'tf32'", 'on a CPU'),
  'convolution': key('convolution', 'fft', 'fft', 'patches'),
  'pixels': key('pixels', 'raw', 'raw', 'standard'),
  'partition': key('partition', 'x', 'x', 'shards'),
  'K 0': key('num_clients', '0', '0'),
  'K word': key('num_clients', 'ten', 'ten'),
  'K': key('num_clients', '1501', '1501', '1500'),
  'K for shards': key('num_clients', '1000', '1000', 'shards_per_client'),
  'shards': key('shards_per_client', '0', '0'),
  'alpha': key('alpha', '-1', 'alpha = -1.0'),
  'alpha 0': key('alpha', '0', 'alpha = 0.0'),
  'min_size': key('min_size', '-1', '-1'),
  'min_size of dirichlet': Case(
    ['--config.partition=dirichlet', '--config.min_size=31'],
    ['min_size = 31', '1500'],
  ),
  'alpha too small': Case(
    ['--config.partition=dirichlet', '--config.alpha=0.001'],
    ['alpha = 0.001', 'must be larger', 'min_size = 10'],
  ),
  'self_balancing': key('self_balancing', 'maybe', 'maybe'),
  'classes': key('classes_per_client', '0', '0'),
  'more classes than there are': Case(
    ['--config.partition=pathological', '--config.classes_per_client=11'],
    ['classes_per_client = 11', '[1, 10]'],
  ),
  'too few classes': Case(
    [
      *('--config.partition=pathological', '--config.classes_per_client=1'),
      *('--config.num_clients=9', '--config.client_fraction=0'),
    ],
    ['classes_per_client = 1', 'without a client'],
  ),
  'class_assignment': key('class_assignment', 'x', 'x', 'first_deterministic'),
  'sizes': key('sizes', 'cubic', 'cubic', 'linear'),
  'sizes of others': Case(
    ['--config.partition=iid', '--config.sizes=700,800'],
    ['sizes: has 2 numbers', 'num_clients = 50'],
  ),
  'sizes that do not add up': Case(
    [
      *('--config.partition=iid', '--config.sizes=700,700'),
      '--config.num_clients=2',
    ],
    ['add up to 1400', '1500'],
  ),
  'size 0': Case(
    [
      *('--config.partition=iid', '--config.sizes=1500,0'),
      '--config.num_clients=2',
    ],
    ['sizes: has 0; must be at least 1'],
  ),
  'size_skew': key('size_skew', '-1', '-1.0'),
  'holdout': key('holdout_fraction', '1', '1.0', '[0, 1)'),
  'C': key('client_fraction', '1.5', '1.5'),
  'C negative': key('client_fraction', '-0.1', '-0.1'),
  'unavailable': key('unavailable_fraction', '0.9', '0.9', 'cohort of 25'),
  'unavailable -': key('unavailable_fraction', '-0.5', '-0.5'),
  'sampling': key('sampling', 'weights', 'weights', 'examples'),
  'straggler_fraction': key('straggler_fraction', '1.5', '1.5', '[0, 1]'),
  'straggler_work': key('straggler_work', 'steps', 'steps', 'epochs'),
  'stragglers by the epoch of one': Case(
    [
      *('--config.straggler_work=epochs', '--config.straggler_fraction=0.5'),
      '--config.client.epochs=1',
    ],
    ["straggler_work = 'epochs'", 'client.epochs = 1'],
  ),
  'labels of few': Case(
    [
      *('--config.partition=few_labels', '--config.sizes=exponential'),
      '--config.class_assignment=deterministic',
    ],
    ['sizes: need ', 'examples of labels', 'must be smaller'],
  ),
  'stragglers': key('stragglers', 'wait', 'wait', 'keep, drop'),
  'no trace': key('availability_trace', 'no.csv', 'no.csv', 'cannot be read'),
  'trace of others': Case(
    ['--config.availability_trace=trace.csv'],
    ['trace.csv', 'line 2', 'client = 50', '[0, 49]'],
    lambda folder: (folder / 'trace.csv').write_text(
      'client,first,last\n50,1,9\n'
    ),
  ),
  'clock': key('clock.examples_per_second', '-1', '-1.0'),
  'clock spread': key('clock.speed_spread', 'nan', 'nan'),
  'megabits': key('clock.megabits_up', '-8', '-8.0'),
  'deadline without a clock': key(
    'clock.deadline', '3', 'clock.deadline = 3.0', 'examples_per_second = 0'
  ),
  'buffer without a clock': key(
    'asynchronous.buffer', '2', 'buffer = 2', 'examples_per_second = 0'
  ),
  'buffer above the cohort': Case(
    [
      '--config.asynchronous.buffer=26',
      '--config.clock.examples_per_second=9.0',
    ],
    ['asynchronous.buffer = 26', 'at most 25', 'client_fraction = 0.5'],
  ),
  'asynchronous stragglers': Case(
    [
      '--config.asynchronous.buffer=2',
      '--config.clock.examples_per_second=9.0',
      '--config.straggler_fraction=0.5',
    ],
    ['straggler_fraction = 0.5', 'must be 0', 'asynchronous.buffer = 2'],
  ),
  'asynchronous scaffold': Case(
    [
      '--config.asynchronous.buffer=2',
      '--config.clock.examples_per_second=9.0',
      '--config.algorithm=scaffold',
    ],
    ['asynchronous.buffer = 2', 'must be 0', "'scaffold'"],
  ),
  'weighting': key('weighting', 'sizes', 'sizes', 'uniform'),
  'algorithm': key('algorithm', 'fedsgd', 'fedsgd', 'scaffold'),
  'on_nan': key('on_nan', 'skip', 'skip', 'stop, skip_client'),
  'rounds 0': key('rounds', '0', '0'),
  'rounds word': key('rounds', 'many', 'many'),
  'rounds fraction': key('rounds', '2.5', '2.5'),
  'rounds huge': key('rounds', '99999999999', '99999999999'),
  'eval_every': key('eval_every', '0', '0'),
  'client_eval_every': key(
    'client_eval_every', '5', 'client_eval_every = 5', 'holdout_fraction'
  ),
  'finetune_epochs': key(
    'finetune_epochs', '1', 'finetune_epochs = 1', 'client_eval_every = 0'
  ),
  'nothing held out': Case(
    ['--config.client_eval_every=5', '--config.holdout_fraction=0.01'],
    ['holdout_fraction', 'no client'],
  ),
  'target': key('target_accuracy', '97', '97.0', '[0, 1]'),
  'target nan': key('target_accuracy', 'nan', 'nan'),
  'loss': key('loss', 'squared_eror', 'did you mean squared_error'),
  'metrics': key('metrics', 'loss,acuracy', 'did you mean accuracy'),
  'seed': key('seed', '-1', '-1'),
  'seed huge': key('seed', '2147483648', '2147483648'),
  'lanes': key('lanes', '-1', '-1'),
  'lanes of devices': Case(
    ['--config.lanes=3', '--config.cpu_devices=2'], ['lanes = 3', 'multiple']
  ),
  'micro_batch': key('micro_batch', '-1', '-1'),
  'rounds_per_call': key('rounds_per_call', '5000', '5000'),
  'cpu_devices': key('cpu_devices', '-2', '-2'),
  'gpu_graphs': key('gpu_graphs', 'maybe', 'maybe'),
  'deterministic': key('deterministic', 'maybe', 'maybe'),
  'log': key('log', 'tensorboard,excel', 'tensorboard,excel', 'csv'),
  'checkpoint rounds': key('checkpoint.rounds', '-1', '-1'),
  'checkpoint minutes': key('checkpoint.minutes', 'nan', 'nan'),
  'checkpoint minutes -': key('checkpoint.minutes', '-5', '-5.0'),
  'checkpoint keep': key('checkpoint.keep', '0', '0'),
  'scaffold and yogi': Case(
    ['--config.algorithm=scaffold', '--config.server.optimizer=yogi'],
    ["server.optimizer = 'yogi'", 'scaffold'],
  ),
  'scaffold and clip': Case(
    ['--config.algorithm=scaffold', '--config.client.clip_norm=1'],
    ['client.clip_norm = 1.0', 'scaffold'],
  ),
}

CONFIGS = {
  'syntax': config_file('def get_config(:', 'SyntaxError'),
  'import': config_file('import nothing_of_this_name', 'nothing_of_this_name'),
  'no get_config': config_file('x = 1', 'get_config'),
  'returns a number': config_file('def get_config(): return 3', 'ConfigDict'),
  'returns nothing': config_file('def get_config(): pass', 'ConfigDict'),
  'needs an argument': config_file(
    'def get_config(which): return which', 'get_config'
  ),
  'raises': config_file(
    'def get_config(): raise ValueError("no\\nway")', 'ValueError', 'no way'
  ),
  'divides': config_file('def get_config(): return 1 / 0', 'ZeroDivision'),
  'never ends': config_file(
    'def get_config(): return get_config()', 'RecursionError'
  ),
  'exits': config_file('import sys; sys.exit("enough")', 'mine.py', 'enough'),
  'empty file': config_file('', 'get_config'),
  'not text': config_file(b'\xff\xfe\x00\x01', 'mine.py'),
  'null bytes': config_file(b'x = 1\x00\n', 'mine.py', 'null'),
  'argument': Case(
    ['--config={configs}/mnist_cnn.py:odd'], [':odd', ':noniid']
  ),
  'key too many': changed_config('config.lr = 1', 'lr: unknown key'),
  'key mistyped': changed_config(
    'config.round = 1', 'round: unknown key; did you mean rounds?'
  ),
  'none': changed_config('config.rounds = None', 'rounds = None'),
  'bool': changed_config('config.rounds = True', 'rounds = True'),
  'list': changed_config('config.dataset = ("digits",)', "'dataset'"),
  'text for number': changed_config('config["seed"] = "0"', 'seed'),
  'contains itself': changed_config(
    'config.client.more = config', 'config: contains itself'
  ),
  'number for branch': changed_config('config["server"] = 1', 'server'),
}

DATA = {
  'no folder': Case(
    ['--config.dataset=mnist', '--config.data_dir=/nowhere'],
    ['data_dir', '/nowhere', 'train-images'],
  ),
  'a file for a folder': Case(
    ['--config.dataset=mnist', f'--config.data_dir=data/{IDX}'],
    ['data_dir', IDX],
  ),
  'a file is missing': Case(
    ['--config.dataset=mnist', '--config.data_dir=data'],
    ['data_dir', LABELS, 'is missing'],
    lambda folder: (folder / 'data' / LABELS).unlink(),
  ),
  'of another data set': Case(
    ['--config.dataset=fashion_mnist', '--config.data_dir=data'],
    ['does not have the labels of fashion_mnist'],
  ),
  'empty': data_file(IDX, lambda c: b'', 'not an IDX file'),
  'header cut': data_file(IDX, lambda c: c[:6], 'not an IDX file'),
  'cut': data_file(IDX, lambda c: c[:-1], 'fewer than'),
  'too long': data_file(IDX, lambda c: c + b'x', 'more than'),
  'text': data_file(IDX, lambda c: b'<html>404</html>' * 9, 'not an IDX'),
  'a pickle': data_file(
    IDX, lambda c: pickle.dumps(np.zeros(9)), 'not an IDX file'
  ),
  'type': data_file(IDX, lambda c: b'\0\0\x0d' + c[3:], 'not an IDX file'),
  'rank': data_file(IDX, lambda c: c[:3] + b'\x02' + c[4:], 'not an IDX file'),
  'promises too much': data_file(
    IDX, lambda c: c[:4] + b'\xff' * 12 + c[16:], 'got (4294967295'
  ),
  'gzip cut': data_file(
    IDX, lambda c: gzip.compress(c[:9999], 1)[:-9], 'cannot be read'
  ),
  'gzip spoilt': data_file(
    IDX,
    lambda c: gzip.compress(c[:9999], 1)[:50] + b'\0' * 99,
    'cannot be read',
  ),
  'shape': data_file(
    IDX, lambda c: idx(np.zeros((7, 28, 28))), 'got (7, 28, 28)'
  ),
  'label': data_file(LABELS, lambda c: c[:-1] + b'\x0a', 'label 10'),
  'cifar10 in a folder without it': Case(
    ['--config.dataset=cifar10', '--config.data_dir=data'],
    ['data_dir', 'data_batch_1.bin', 'six files'],
  ),
  'cifar10 of another size': cifar(b'\0' * 3072, '3,072 bytes', '3,073'),
  'cifar10 empty': cifar(b'', '0 bytes'),
  'cifar10 with few images': cifar(b'\0' * 3073, '10,000 images', 'got 1'),
  'cifar10 with a label': cifar(b'\x0b' * 3073, 'label 11 at image 0'),
  'cifar10 as a tar': cifar(
    gzip.compress(b'tar' * 999), 'data_batch_1.bin', '2,997 bytes'
  ),
  'a gzip bomb': data_file(
    IDX, lambda c: gzip.compress(c[:16] + bytes(47_040_000)), '200 times'
  ),
  'labels cut': data_file(LABELS, lambda c: c[:-1], 'fewer than'),
}

RUNS = {
  'a file': Case(
    ['--workdir=mine'],
    ['workdir = mine', 'is not a directory'],
    lambda folder: (folder / 'mine').write_text('mine'),
  ),
  'under a file': Case(
    ['--workdir=mine/run'],
    ['workdir = mine/run', 'Not a directory'],
    lambda folder: (folder / 'mine').write_text('mine'),
  ),
  'under /proc': Case(['--workdir=/proc/run'], ['workdir = /proc/run']),
  'of others': Case(
    ['--workdir=mine'],
    ['workdir = mine', 'exists already', 'not the folder of a run'],
    lambda folder: (
      (folder / 'mine').mkdir(),
      (folder / 'mine' / 'summary.json').write_text('mine'),
    ),
  ),
  'a dangling link': Case(
    ['--workdir=mine'],
    ['workdir = mine', 'is not a directory'],
    lambda folder: (folder / 'mine').symlink_to('nowhere'),
  ),
  'a name too long': Case(
    ['--workdir=' + 'x' * 300], ['workdir = xxx', 'File name too long']
  ),
  'another seed': run_folder(
    lambda run: None, 'seed = 3 (was 0)', args=('--config.seed=3',)
  ),
  'another seed, extended': run_folder(
    lambda run: None,
    'seed = 3 (was 0)',
    args=('--config.seed=3', '--resume=extend'),
  ),
  'more rounds': run_folder(
    lambda run: None,
    'rounds = 9 (was 4)',
    '--resume=extend',
    args=('--config.rounds=9',),
  ),
  'fewer rounds': run_folder(
    lambda run: None,
    'rounds = 3: must be at least the 4',
    args=('--config.rounds=3', '--resume=extend'),
  ),
  'config.json empty': run_folder(_write('config.json', b''), 'config.json'),
  'config.json cut': run_folder(
    _write('config.json', b'{"config": {"da'), 'config.json: cannot be read'
  ),
  'config.json a list': run_folder(
    _write('config.json', b'[]'), 'config.json: must be a JSON object'
  ),
  'config.json not text': run_folder(
    _write('config.json', b'\xff\xfe\x00'), 'config.json: cannot be read'
  ),
  'config.json too deep': run_folder(
    _write('config.json', b'[' * 99_999), 'config.json: cannot be read'
  ),
  'config.json without config': run_folder(
    _write('config.json', b'{"format": 2}'),
    'config.json: must hold the config',
  ),
  'config.json with another config': run_folder(
    _write('config.json', b'{"format": 2, "config": {"rounds": "x"}}'),
    'config: differs',
  ),
  'config.json of the version before': run_folder(
    _edit_json('config.json', lambda c: c.pop('format')),
    'config.json: has format 1, this version reads 2',
  ),
  'config.json of a version to come': run_folder(
    _edit_json('config.json', lambda c: c.update(format=[9])),
    'config.json: has format [9], this version reads 2',
  ),
  'config.json with rounds of text': run_folder(
    _edit_json('config.json', lambda c: c['config'].update(rounds='many')),
    "must be at least the 'many'",
    args=('--resume=extend',),
  ),
  'config.json without digest': run_folder(
    _edit_json('config.json', lambda c: c.pop('data_sha256')),
    'SHA-256 expected None',
  ),
  'config.json of other data': run_folder(
    _edit_json('config.json', lambda c: c.update(data_sha256='0' * 64)),
    'data of its clients',
    'SHA-256 expected 000000000000',
  ),
  'metrics gone': run_folder(
    lambda run: (run / 'metrics.jsonl').unlink(), 'metrics.jsonl: does not'
  ),
  'metrics empty': run_folder(
    _write('metrics.jsonl', b''), 'metrics.jsonl: does not begin'
  ),
  'metrics edited': run_folder(_edit_metrics, 'metrics.jsonl: does not begin'),
  'metrics a folder': run_folder(
    lambda run: (
      (run / 'metrics.jsonl').unlink(),
      (run / 'metrics.jsonl').mkdir(),
    ),
    'metrics.jsonl: Is a directory',
    code=1,
  ),
  'config.json with other machines': run_folder(
    _edit_json('config.json', lambda c: c.update(resumed=5)),
    'config.json: resumed must be a list',
  ),
  'checkpoints gone': run_folder(
    lambda run: shutil.rmtree(run / 'checkpoints'),
    'checkpoints: the checkpoints are missing',
  ),
  'checkpoints cleaned away': run_folder(
    lambda run: [
      shutil.rmtree(path) for path in (run / 'checkpoints').iterdir()
    ],
    'checkpoints: the checkpoints are missing',
  ),
  'an empty folder and no data': Case(
    ['--workdir=mine', '--config.dataset=mnist', '--config.data_dir=/nowhere'],
    ['data_dir'],
    lambda folder: (folder / 'mine').mkdir(),
  ),
  'checkpoints damaged': run_folder(
    _damage_checkpoints, 'checkpoints: the checkpoints', 'are all damaged'
  ),
  'checkpoints pickled': run_folder(
    _pickle_checkpoints, 'checkpoints: the checkpoints', 'are all damaged'
  ),
  'checkpoints a file': run_folder(
    lambda run: (
      shutil.rmtree(run / 'checkpoints'),
      (run / 'checkpoints').write_text('mine'),
    ),
    'checkpoints',
    code=1,
  ),
  'checkpoints of another model': run_folder(
    _checkpoints_of({'w': np.zeros((3, 4), np.float32)}),
    'checkpoints: expected ',
  ),
}

FEDERATIONS = {
  'natural clients of digits': Case(
    ['--config.partition=natural', '--config.num_clients=0'],
    ['num_clients = 0', 'digits has no natural clients'],
  ),
  'number of natural clients': Case(
    ['--config.partition=natural'], ['num_clients = 50', 'must be 0', 'natural']
  ),
  'no clients': key('num_clients', '0', 'no natural clients'),
  'shards of sequences': Case(
    [
      '--config.dataset=shakespeare',
      '--config.data_dir=text',
      '--config.model=char_lstm',
    ],
    ["partition = 'shards'", 'shakespeare'],
    lambda folder: (
      (folder / 'text').mkdir(),
      (folder / 'text' / 'play.txt').write_text(
        'Play\nSCENE\tHere\n\n' + 'A\tone line\n\ttwo lines\n' * 30
      ),
    ),
  ),
  'no play': texts('shakespeare', 'roses', 'no contents', 'eBook 100'),
  'no roles': texts(
    'shakespeare', 'Contents\n\nA\n\nA\nrose', 'no role speaks'
  ),
  'no words': texts(
    'words', '{"author": "ann", "text": "1 2"}', "'ann' has no words"
  ),
  'no json lines': texts('words', 'ann says', 'line 1', 'author', 'text'),
  'no text': Case(
    ['--config.dataset=words', '--config.data_dir=nowhere'],
    ['nowhere', 'does not exist'],
  ),
  'leaf lengths': leaf(
    lambda tree: tree['user_data']['a']['y'].append(1),
    'all.json',
    "user 'a'",
    '2 x and 3 y',
  ),
  'leaf users': leaf(
    lambda tree: tree['users'].append('b'),
    'all.json',
    '2 users',
    '1 num_samples',
  ),
  'no leaf': Case(
    ['--config.dataset=leaf', '--config.data_dir=.'], ['train/ has no json']
  ),
  'model of sequences': key('model', 'char_lstm', '2nn', 'images of digits'),
  'crop of small images': key('augmentation', 'tutorial', '24 x 24', 'digits'),
  'augmentation': key('augmentation', 'mixup', 'none', 'tutorial'),
  'decay 0': key('client.decay', '0', '(0, 1]'),
  'decay 2': key('client.decay', '2', '(0, 1]'),
  'decay rounds': key('client.decay_rounds', '0', '[1,'),
  'decay with scaffold': Case(
    ['--config.algorithm=scaffold', '--config.client.decay=0.9'],
    ['client.decay', 'scaffold'],
  ),
}

CASES = {
  f'{kind}: {name}': case
  for kind, cases in {
    'flag': FLAGS,
    'key': KEYS,
    'config': CONFIGS,
    'data': DATA,
    'federation': FEDERATIONS,
    'run': RUNS,
  }.items()
  for name, case in cases.items()
}
