"""What the clients of a config hold, in numbers and as a picture.

python -m fedavg_jax.partition --config configs/quickstart.py
python -m fedavg_jax.partition --config configs/quickstart.py
  --config.partition=dirichlet --config.alpha=0.1 --config.min_size=1
  --picture dirichlet.png

Nothing is trained.
"""

from absl import flags

from fedavg_jax import command
from fedavg_jax import config as config_lib
from fedavg_jax import datasets
from fedavg_jax import plots
from fedavg_jax import population
from fedavg_jax.progress import say
from fedavg_jax.workdir import whole

command.define_config()
flags.declare_key_flag('config')  # So that --help shows it.
flags.DEFINE_string('picture', None, 'PNG to draw, default partition.png.')


def main() -> None:
  """Prints the statistics and draws the labels of every client."""
  config, name = command.read_config()
  path = command.new_file('picture', 'partition.png')
  cfg = config_lib.read(config)
  dataset = datasets.load_dataset(cfg['dataset'], cfg['data_dir'])
  clients = population.clients(cfg, dataset)[0]
  counts = population.label_counts(clients, dataset.num_classes)
  lines = population.describe(counts)
  say('\n'.join(lines))
  title = f'{name}: {population.name(cfg)}'
  with whole(path) as part:
    plots.draw_partition(
      part, title=title, counts=counts, num_clients=len(counts)
    )
  say(f'{path} is drawn')


if __name__ == '__main__':
  command.start(main)
