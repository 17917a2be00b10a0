"""Writes a federation to disk, for populations that fit in no memory.

fedavg-jax convert --source leaf --path data/femnist --out FOLDER
fedavg-jax convert --source words --path posts.jsonl --out FOLDER
fedavg-jax convert --source images --path photos --out FOLDER
fedavg-jax convert --source arrays --path clients.npz --out FOLDER
fedavg-jax convert --source generator --path module:function ...
fedavg-jax convert --verify FOLDER

Sources are, beside the data sets with natural clients (leaf, shakespeare,
words, mnist_writers) as `dataset` and `data_dir` of a config name them (of
which all but leaf are read into memory first):

* images: train/CLIENT/LABEL/ANY.png (or .jpg, ...), all of one size and mode,
  and test/LABEL/ANY.png; of 1 or 8 bits, or 16 bits of grey.
* arrays: an .npz, or a folder of .npy files, with x, y, client (whose each row
  is, whole numbers), x_test and y_test.
* generator: a function of yours, first -> (x [n, ...], y [n]) of client number
  `first`, then of the one after it, and so on; the same ones whenever it is
  called. Client -1 is the test set: function(-1) gives it first.

The same command resumes where an earlier one was ended, once the source has
proved to be the one of what was written. The folder says which number each
class (federation.json) and each client (clients-*-names.json) has.

A config then reads it with `dataset = 'stored'`, `data_dir = FOLDER`,
`partition = 'natural'` and, to keep it out of memory, `examples_on = 'host'`.
"""

from collections.abc import Sequence
import os
import pathlib
import sys
import time

from absl import flags
from tqdm import tqdm

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer
from fedavg_jax.data.sources import SOURCES
from fedavg_jax.data.sources import open_source
from fedavg_jax.runs.progress import say

_SECONDS_BETWEEN_LINES = 30.0  # Where a bar cannot be drawn.


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_enum('source', None, SOURCES, 'Kind of what is read.')
  flags.DEFINE_string('path', None, 'What is read.')
  flags.DEFINE_string('out', '', 'New folder, or that of a command that ended.')
  flags.DEFINE_string(
    'verify', None, 'Folder to read again and compare with its checksums.'
  )
  flags.DEFINE_integer(
    'shard_mib',
    stored_writer.SHARD_BYTES >> 20,
    'Size of a shard.',
    lower_bound=1,
  )


def main(argv: Sequence[str]) -> int:
  """Converts, or verifies. Returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  if flags.FLAGS.verify == '':
    raise InputError('--verify is empty: name the folder of a federation')
  if flags.FLAGS.verify is not None:
    number = stored.verify(command.read_path('verify', ''))
    say(f'{flags.FLAGS.verify}: all {number} files are what was written')
    return
  for flag in ('source', 'path', 'out'):
    if not flags.FLAGS[flag].value:
      raise InputError(f'--{flag} is missing: see --help')
  out = command.read_path('out', '')
  kind, path = str(flags.FLAGS.source), str(flags.FLAGS.path)
  source = open_source(kind, path)
  if kind != 'generator':
    path = str(pathlib.Path(os.path.expanduser(path)).resolve())
  said_at = time.monotonic()
  with tqdm(
    total=source.num_clients or None,
    unit=' clients',
    file=sys.stdout,
    disable=not sys.stdout.isatty(),
  ) as bar:

    def wrote(clients: int, size: int) -> None:
      nonlocal said_at
      bar.set_postfix_str(f'{size / 2**30:.2f} GiB', refresh=False)
      bar.update(clients - bar.n)
      if bar.disable and time.monotonic() - said_at > _SECONDS_BETWEEN_LINES:
        said_at = time.monotonic()
        say(f'{clients:,} clients, {size / 2**30:.2f} GiB')

    stored_writer.write(
      out,
      source.clients,
      source.test,
      num_classes=source.num_classes,
      max_value=source.max_value,
      padding=source.padding,
      classes=source.classes,
      source={'kind': kind, 'path': path},
      shard_bytes=flags.FLAGS.shard_mib << 20,
      wrote=wrote,
    )
  own = stored.read(out)
  size = own.clients.x.nbytes + own.clients.y.nbytes
  say(
    f'{out}: {own.clients.num_clients:,} clients, {len(own.clients.y):,}'
    f' examples, {size / 2**30:.2f} GiB'
  )
