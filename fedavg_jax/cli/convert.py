"""Writes a federation to disk, for populations larger than memory.

fedavg-jax convert --source leaf --path data/femnist --out FOLDER
fedavg-jax convert --source words --path posts.jsonl --out FOLDER
fedavg-jax convert --source images --path photos --out FOLDER
fedavg-jax convert --source arrays --path clients.npz --out FOLDER
fedavg-jax convert --source generator --path module:function ...
fedavg-jax convert --verify FOLDER

Sources are the data sets with natural clients, leaf, shakespeare, words and
mnist_writers, whose paths are those of `data_dir` in a config (all but leaf are
read into memory first), and:

* images: train/CLIENT/LABEL/ANY.png (or .jpg, ...), test/LABEL/ANY.png, all of
  one size and mode, with 1 or 8 bits per channel, or 16 bits of grey.
* arrays: an .npz file, or a folder of .npy files, with x, y, client (an integer
  for each example), x_test and y_test.
* generator: your function, first -> iterator of (x [n, ...], y [n]), which
  yields client number `first`, then the next one, and so on, and the same
  clients at every call. function(-1) yields the test set first, as client -1.

The same command resumes an interrupted conversion, after it has checked that
the source has not changed. The number of each class is in federation.json, that
of each client in clients-*-names.json.

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

_SECONDS_BETWEEN_LINES = 30.0  # Used where there is no progress bar.


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_enum('source', None, SOURCES, 'Kind of the source.')
  flags.DEFINE_string(
    'path', None, 'Path of the source; a generator is MODULE:FUNCTION.'
  )
  flags.DEFINE_string(
    'out',
    '',
    'New folder, or that of an interrupted conversion, which resumes.',
  )
  flags.DEFINE_string(
    'verify', None, 'Folder whose files are compared with their checksums.'
  )
  flags.DEFINE_integer(
    'shard_mib',
    stored_writer.SHARD_BYTES >> 20,
    'Size of a shard in MiB.',
    lower_bound=1,
  )


def main(argv: Sequence[str]) -> int:
  """Converts or verifies a federation; returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  if flags.FLAGS.verify == '':
    raise InputError('--verify is empty: must be the folder of a federation')
  if flags.FLAGS.verify is not None:
    number = stored.verify(command.read_path('verify', ''))
    say(f'{flags.FLAGS.verify}: the checksums of all {number} files match')
    return
  for flag in ('source', 'path', 'out'):
    if not flags.FLAGS[flag].value:
      raise InputError(f'--{flag} is missing: see --help')
  out = command.read_path('out', '')
  kind, path = str(flags.FLAGS.source), str(flags.FLAGS.path)
  source = open_source(kind, path)
  if kind != 'generator':
    path = str(pathlib.Path(os.path.expanduser(path)).resolve())
  printed_at = time.monotonic()
  with tqdm(
    total=source.num_clients or None,
    unit=' clients',
    file=sys.stdout,
    disable=not sys.stdout.isatty(),
  ) as bar:

    def wrote(clients: int, size: int) -> None:
      nonlocal printed_at
      bar.set_postfix_str(f'{size / 2**30:.2f} GiB', refresh=False)
      bar.update(clients - bar.n)
      silent = time.monotonic() - printed_at
      if bar.disable and silent > _SECONDS_BETWEEN_LINES:
        printed_at = time.monotonic()
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
  clients = stored.read(out).clients
  size = clients.x.nbytes + clients.y.nbytes
  say(
    f'{out}: {clients.num_clients:,} clients, {len(clients.y):,}'
    f' examples, {size / 2**30:.2f} GiB'
  )
