"""Every option with its default; other files state what differs.

It is generated from `fedavg_jax.runs.run_config`, do not edit it.

python -m fedavg_jax.main --config configs/default.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the settings."""
  config = ml_collections.ConfigDict()

  # Data set; see docs/data.md. One of digits, mnist, fashion_mnist, cifar10,
  # mnist_writers, leaf, shakespeare, words, stored.
  config.dataset = 'digits'

  # Folder or file of the data; empty searches, then downloads.
  config.data_dir = ''

  # 'unit' scales to [0, 1]; 'standard' to mean 0, std 1 over the training set;
  # 'image' to mean 0, std 1 of each image. One of unit, standard, image.
  config.pixels = 'unit'

  # 'tutorial' crops to 24 x 24 and changes colours at random. One of none,
  # tutorial.
  config.augmentation = 'none'

  # Model; see docs/api.md. One of 2nn, cnn, cnn_torch, cifar_cnn, char_lstm,
  # word_lstm.
  config.model = '2nn'

  # How convolutions are computed; 'auto' takes the fastest known. One of auto,
  # canonical, patches, lax.
  config.convolution = 'auto'

  # 'bfloat16' computes products in bfloat16; weights stay float32. One of
  # float32, bfloat16.
  config.precision = 'float32'

  # What is learned by; empty is cross entropy. One of cross_entropy,
  # squared_error, binary_cross_entropy.
  config.loss = ''

  # Of tests, with commas between them, such as accuracy, macro_f1, loss,
  # perplexity, squared_error, top_5; target, best and sweeps go by the first
  # one. Empty: accuracy and loss, or the mean of another loss.
  config.metrics = ''

  # How the data are divided; 'natural' takes the clients of the data. One of
  # iid, shards, dirichlet, inner_dirichlet, pathological, few_labels, natural.
  config.partition = 'shards'

  # Of 'shards': 2 gives a client about two labels.
  config.shards_per_client = 2

  # Concentration of 'dirichlet' and 'inner_dirichlet'; small is skewed.
  config.alpha = 0.5

  # Fewest examples of a client in 'dirichlet'; and in 'few_labels', where sizes
  # is a law of the others.
  config.min_size = 10

  # Of 'dirichlet': a client with n / K examples gets no more.
  config.self_balancing = False

  # Of 'pathological' and 'few_labels': labels of each client.
  config.classes_per_client = 2

  # Of 'pathological' and 'few_labels': which client has which labels. One of
  # random, deterministic, first_deterministic.
  config.class_assignment = 'random'

  # Clients' sizes in 'iid', 'inner_dirichlet' and 'few_labels': a law, or
  # '600,300,...', which in 'few_labels' may leave some examples to nobody. One
  # of equal, linear, square, exponential, power_law, log_normal.
  config.sizes = 'equal'

  # Exponent of power_law, sigma of log_normal.
  config.size_skew = 1.0

  # K: number of clients; 0 with partition 'natural'.
  config.num_clients = 50

  # Share of every client's examples taken out for a validation set: target,
  # best and sweeps go by it, and the test set is used once, at the end.
  config.validation_fraction = 0.0

  # Share of every client's examples that is kept for its own tests.
  config.holdout_fraction = 0.0

  # C: a cohort has max(int(C * K), 1) clients; 0 is one client.
  config.client_fraction = 0.5

  # Share of the clients out of reach in a round.
  config.unavailable_fraction = 0.0

  # CSV file of when clients are in reach: client, first and last round.
  config.availability_trace = ''

  # 'examples' draws clients in proportion to n_k; then weigh uniformly. One of
  # uniform, examples.
  config.sampling = 'uniform'

  # Share of a cohort that does only a part of its work.
  config.straggler_fraction = 0.0

  # What a straggler does a part of: 'epochs' are whole ones, 1 to E - 1. One of
  # minibatches, epochs.
  config.straggler_work = 'minibatches'

  # 'keep' uses their partial work, as FedProx does; 'drop' loses it. One of
  # keep, drop.
  config.stragglers = 'keep'

  # Weights of the mean: 'examples' is n_k, 'uniform' the same for all. One of
  # examples, uniform.
  config.weighting = 'examples'

  # Algorithm; see docs/algorithms.md. One of fedavg, fedprox, scaffold.
  config.algorithm = 'fedavg'

  config.client = ml_collections.ConfigDict()

  # E: epochs over the local data a round.
  config.client.epochs = 5

  # B: minibatch size; 0 is infinity, all local data at once.
  config.client.batch_size = 10

  # eta: learning rate.
  config.client.learning_rate = 0.1

  # Factor of the learning rate, applied every decay_rounds rounds.
  config.client.decay = 1.0

  # Rounds between two decays.
  config.client.decay_rounds = 1

  # 'epoch' reshuffles every epoch, 'round' keeps one order for all epochs. One
  # of epoch, round.
  config.client.shuffle = 'epoch'

  # mu of 'fedprox': weight of the proximal term.
  config.client.proximal = 0.01

  # Largest norm of a delta; 0 does not clip.
  config.client.clip_norm = 0.0

  config.server = ml_collections.ConfigDict()

  # Optimizer on the mean delta: sgd, adagrad, adam or yogi. One of sgd,
  # adagrad, adam, yogi.
  config.server.optimizer = 'sgd'

  # Server learning rate; 1 with sgd and momentum 0 is FedAvg.
  config.server.learning_rate = 1.0

  # Momentum of sgd; beta_1 of adagrad, adam and yogi.
  config.server.momentum = 0.0

  # beta_2 of adam and yogi.
  config.server.second_momentum = 0.99

  # tau of adagrad, adam and yogi.
  config.server.adaptivity = 0.001

  config.clock = ml_collections.ConfigDict()

  # Training speed of the median client; 0 simulates no clock.
  config.clock.examples_per_second = 0.0

  # Sigma of the log-normal speeds; 0 makes all alike.
  config.clock.speed_spread = 0.0

  # Median client's download rate in Mbit/s; 0 takes no time.
  config.clock.megabits_down = 0.0

  # Median client's upload rate in Mbit/s; 0 takes no time.
  config.clock.megabits_up = 0.0

  # Sigma of the log-normal bandwidths.
  config.clock.bandwidth_spread = 0.0

  # Seconds after which a client is a straggler; 0 sets no deadline.
  config.clock.deadline = 0.0

  # Where a client's numbers are not finite: 'stop', or 'skip_client'. One of
  # stop, skip_client.
  config.on_nan = 'stop'

  # Number of communication rounds.
  config.rounds = 200

  # Rounds between two evaluations.
  config.eval_every = 1

  # Rounds between two tests on the clients' held-out examples; 0: none.
  config.client_eval_every = 0

  # Local epochs before each client is tested a second time; 0: none.
  config.finetune_epochs = 0

  # Test accuracy at which the run ends; 0 runs all rounds.
  config.target_accuracy = 0.0

  # Value of the first metric at which the run ends, at most that where smaller
  # is better; 0 runs all rounds.
  config.target = 0.0

  # Seed of partition, initial weights, cohorts and orders.
  config.seed = 0

  # Clients that train side by side, over all devices; 0 chooses.
  config.lanes = 0

  # Largest number of examples in a step; larger B accumulates; 0 chooses.
  config.micro_batch = 0

  # Most rounds in one compiled call; 0 chooses.
  config.rounds_per_call = 0

  # Virtual devices on CPU; 0 is one per core.
  config.cpu_devices = 0

  # 'host' streams each cohort's examples to the device. One of device, host.
  config.examples_on = 'device'

  # 'host' or 'disk' streams what clients keep, as SCAFFOLD's do. One of device,
  # host, disk.
  config.client_states_on = 'device'

  # Loggers beside metrics.jsonl: csv, tensorboard, wandb.
  config.log = ''

  # Draws curves.png, partition.png and clients.png, a second or so a run.
  config.pictures = True

  config.checkpoint = ml_collections.ConfigDict()

  # Rounds between two checkpoints; 0 saves by time alone.
  config.checkpoint.rounds = 0

  # Minutes between two checkpoints; 0 saves by rounds alone.
  config.checkpoint.minutes = 5.0

  # How many of the last checkpoints stay, with the best.
  config.checkpoint.keep = 3

  # What your own functions take by name: config.options.model.width = 64; see
  # docs/bring_your_own.md.
  config.options = ml_collections.ConfigDict(
    {'dataset': {}, 'model': {}, 'algorithm': {}, 'loss': {}, 'metrics': {}}
  )
  return config
