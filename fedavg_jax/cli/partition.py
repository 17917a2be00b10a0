"""Shows the examples per client and label of a config, in text and a picture.

fedavg-jax partition quickstart
fedavg-jax partition quickstart --picture dirichlet.png
  --config.partition=dirichlet --config.alpha=0.1 --config.min_size=1

Nothing is trained.
"""

from collections.abc import Sequence

from absl import flags

from fedavg_jax.cli import command
from fedavg_jax.core.files import atomic_write_new
from fedavg_jax.data import statistics
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import plots
from fedavg_jax.runs import population
from fedavg_jax.runs import run_config
from fedavg_jax.runs import titles
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.progress import show


def define_flags() -> None:
  """Defines the flags of the command."""
  command.define_config()
  flags.DEFINE_string(
    'picture', None, 'PNG, PDF or SVG to write; default partition.png.'
  )


def main(argv: Sequence[str]) -> int:
  """Shows the clients of a config; returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  path = command.output_file('picture', 'partition.png', plots.SUFFIXES)
  cfg = run_config.read(config)
  dataset = own_parts.load_dataset(cfg)
  clients = population.build_population(cfg, dataset).clients
  counts = statistics.label_counts(clients, dataset.num_classes)
  lines = statistics.describe(counts)
  show('\n'.join(lines))
  title = f'{name}: {titles.partition_name(cfg)}'
  with atomic_write_new(path) as part:
    plots.draw_partition(
      part, title=title, counts=counts, num_clients=len(counts)
    )
  say(f'Saved {path}')
