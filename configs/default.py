"""Lists every option with its default; other files state changes.

It is generated from `fedavg_jax.runs.run_config`; do not edit it.

python -m fedavg_jax.main --config configs/default.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the settings."""
  config = ml_collections.ConfigDict()

  # Data set, that of a library as hf:NAME or tfds:NAME, or your function as
  # module:function; see docs/data.md. One of digits, mnist, fashion_mnist,
  # cifar10, mnist_writers, leaf, shakespeare, words, stored, parquet.
  config.dataset = 'digits'

  # Folder or file of the data; empty: $FEDAVG_DATA, then a download.
  config.data_dir = ''

  # Scaling of pixels: 'unit' ([0, 1]) | 'standard' (mean 0, std 1 over the
  # training set) | 'image' (mean 0, std 1 of each image).
  config.pixels = 'unit'

  # Augmentation of training images: 'none' | 'tutorial' (random 24 x 24 crop,
  # flip, brightness and contrast, as in TensorFlow's CIFAR-10 tutorial).
  config.augmentation = 'none'

  # Model, or your function as module:function; see docs/api.md. One of 2nn,
  # cnn, cnn_torch, cifar_cnn, char_lstm, word_lstm.
  config.model = '2nn'

  # Computation of convolutions: 'auto' ('canonical' on CPU, 'lax' on TPU,
  # 'patches' on GPU) | 'canonical' (plain NHWC forms) | 'patches' (one batched
  # matrix product) | 'lax' (XLA's convolution).
  config.convolution = 'auto'

  # Precision of matrix products and convolutions: 'float32' | 'tf32' (the
  # default of a GPU's tensor cores) | 'bfloat16' (weights stay float32; a user-
  # defined model keeps its own dtypes).
  config.precision = 'float32'

  # Training loss, or your function as module:function; empty: cross entropy.
  # One of cross_entropy, squared_error, binary_cross_entropy.
  config.loss = ''

  # Comma-separated metrics of the evaluation, such as accuracy, macro_f1, loss,
  # perplexity, squared_error, top_5; the first decides the target, the best
  # checkpoint and sweeps. Empty: accuracy and loss for cross entropy, the mean
  # loss for another loss.
  config.metrics = ''

  # Division of the examples among clients: 'iid' (random) | 'shards' (random
  # shards of the examples sorted by label, as in the paper) | 'dirichlet'
  # (every label divided by Dir(alpha)) | 'inner_dirichlet' (the labels of each
  # client by Dir(alpha), at given sizes) | 'pathological' (a fixed number of
  # labels per client) | 'few_labels' (the same, at given sizes) | 'natural'
  # (the clients of the data set).
  config.partition = 'shards'

  # Shards per client in 'shards'; 2 give about two labels.
  config.shards_per_client = 2

  # Concentration of 'dirichlet' and 'inner_dirichlet'; small is skewed.
  config.alpha = 0.5

  # Fewest examples of a client in partition 'dirichlet', and in 'few_labels'
  # where `sizes` is a law: it divides the remaining examples.
  config.min_size = 10

  # Whether partition 'dirichlet' gives no further label to a client that has
  # n/K examples.
  config.self_balancing = False

  # Labels per client in 'pathological' and 'few_labels'.
  config.classes_per_client = 2

  # Labels of client i in partitions 'pathological' and 'few_labels': 'random' |
  # 'deterministic' (i, i + 1, ...) | 'first_deterministic' (i, the others at
  # random).
  config.class_assignment = 'random'

  # Number of examples of client i = 1 ... K in partitions 'iid',
  # 'inner_dirichlet' and 'few_labels', in proportion to: 'equal' (1) | 'linear'
  # (i) | 'square' (i^2) | 'exponential' (e^i) | 'power_law' (i^-size_skew) |
  # 'log_normal' (exp(size_skew * z), z ~ N(0, 1)); or K numbers, '600,300,...',
  # which may leave examples unassigned in 'few_labels'.
  config.sizes = 'equal'

  # Exponent of 'power_law', sigma of 'log_normal'.
  config.size_skew = 1.0

  # K: number of clients; 0: as many as the data set has.
  config.num_clients = 50

  # Fraction of every client's examples moved to a validation set, which then
  # decides the target, the best checkpoint and sweeps; the test set is used
  # once, at the end. 0: no validation set.
  config.validation_fraction = 0.0

  # Fraction of every client's examples held out, on which client_eval_every
  # tests the model.
  config.holdout_fraction = 0.0

  # C: a cohort has max(int(C * K), 1) clients; 0 is one client.
  config.client_fraction = 0.5

  # Fraction of clients that are unavailable in a round.
  config.unavailable_fraction = 0.0

  # CSV file of availability: client, first and last round; empty: always.
  config.availability_trace = ''

  # Probability of drawing client k: 'uniform' | 'examples' (in proportion to
  # n_k, its number of examples; use weighting 'uniform' with it) | 'poisson'
  # (C, independently of the others, so that cohorts differ in size).
  config.sampling = 'uniform'

  # Mean fraction of a cohort that does partial work.
  config.straggler_fraction = 0.0

  # Work that a straggler completes, drawn uniformly: 'minibatches' (1 to all
  # but one) | 'epochs' (1 to E - 1 full ones).
  config.straggler_work = 'minibatches'

  # Partial work of stragglers: 'keep' (averaged, as in FedProx) | 'drop' (left
  # out, as in FedAvg).
  config.stragglers = 'keep'

  # Weight of client k in the mean: 'examples' (n_k, its number of examples) |
  # 'uniform' (equal for all).
  config.weighting = 'examples'

  # Algorithm, or your function as module:function; see docs/algorithms.md. One
  # of fedavg, fedprox, scaffold, fednova, fednova_prox, feddyn, fedexp,
  # qfedavg, mimelite.
  config.algorithm = 'fedavg'

  config.client = ml_collections.ConfigDict()

  # E: local epochs per round.
  config.client.epochs = 5

  # B: minibatch size; 0 is infinity: the full local data set.
  config.client.batch_size = 10

  # eta: client learning rate.
  config.client.learning_rate = 0.1

  # Momentum of the clients' SGD; it starts at zero in every round.
  config.client.momentum = 0.0

  # Decay of the client learning rate: 'step' (times decay after every
  # decay_rounds rounds) | 'cosine' | 'linear' (down to decay times eta after
  # decay_rounds rounds, then constant).
  config.client.schedule = 'step'

  # Factor by which the client learning rate decays; see schedule.
  config.client.decay = 1.0

  # Number of rounds of a decay; see schedule.
  config.client.decay_rounds = 1

  # Order of a client's examples: 'epoch' (a new one every epoch) | 'round' (one
  # for all epochs of a round).
  config.client.shuffle = 'epoch'

  # mu: weight of the proximal term in algorithms 'fedprox' and 'fednova_prox'.
  config.client.proximal = 0.01

  # alpha: weight of the regularizer in algorithm 'feddyn'.
  config.client.regularization = 0.1

  # New control variate in algorithm 'scaffold': 'updates' (the mean gradient of
  # the local updates, option II) | 'gradient' (the full-batch gradient at the
  # global model, option I).
  config.client.control = 'updates'

  # Largest L2 norm of a client delta; 0: no clipping.
  config.client.clip_norm = 0.0

  config.server = ml_collections.ConfigDict()

  # Server optimizer, applied to the mean delta as pseudo-gradient: 'sgd' |
  # 'adagrad' | 'adam' | 'yogi'.
  config.server.optimizer = 'sgd'

  # Server learning rate; 1 with sgd and momentum 0 is FedAvg.
  config.server.learning_rate = 1.0

  # Momentum of sgd; beta_1 of adagrad, adam and yogi.
  config.server.momentum = 0.0

  # Whether the momentum of sgd is Nesterov's.
  config.server.nesterov = False

  # beta_2 of adam and yogi.
  config.server.second_momentum = 0.99

  # tau: degree of adaptivity of adagrad, adam and yogi.
  config.server.adaptivity = 0.001

  # q: degree of fairness of algorithm 'qfedavg'; 0 is FedAvg.
  config.server.fairness = 1.0

  # Constant that bounds the server's steps in algorithm 'fedexp'.
  config.server.epsilon = 0.001

  config.clock = ml_collections.ConfigDict()

  # Training speed of the median client in examples per second; 0: no simulated
  # clock.
  config.clock.examples_per_second = 0.0

  # Sigma of the log-normal training speeds; 0: all clients are equally fast.
  config.clock.speed_spread = 0.0

  # Median client's download rate in Mbit/s; 0: downloads take no time.
  config.clock.megabits_down = 0.0

  # Median client's upload rate in Mbit/s; 0: uploads take no time.
  config.clock.megabits_up = 0.0

  # Sigma of the log-normal download and upload rates; 0: all clients have equal
  # ones.
  config.clock.bandwidth_spread = 0.0

  # Simulated seconds after which a client is a straggler; 0: no deadline.
  config.clock.deadline = 0.0

  config.asynchronous = ml_collections.ConfigDict()

  # Updates after which the server makes a new model, while a cohort of clients
  # trains at any time; 0: rounds wait for their whole cohort.
  config.asynchronous.buffer = 0

  # Most rounds that a client's initial model may be behind when its update
  # arrives; a staler update is discarded. Devices store as many models.
  config.asynchronous.most_staleness = 20

  # An update of staleness tau is scaled by (1 + tau)^-staleness_exponent.
  config.asynchronous.staleness_exponent = 0.5

  config.robust = ml_collections.ConfigDict()

  # Rule in place of the weighted mean: 'none' | 'median' | 'trimmed_mean' |
  # 'krum' | 'geometric_median' | 'centred_clipping' | 'norm_bound'.
  config.robust.rule = 'none'

  # Fraction of the values that 'trimmed_mean' leaves out on each side.
  config.robust.trimmed_fraction = 0.0

  # f: number of arbitrary messages that 'krum' withstands; it needs 2 f + 3
  # messages.
  config.robust.attackers = 0

  # Number of messages that 'krum' averages; more than 1 is multi-Krum.
  config.robust.selected = 1

  # Iterations of 'geometric_median' and 'centred_clipping'; 0: 8 of the former,
  # 1 of the latter.
  config.robust.iterations = 0

  # Radius of 'centred_clipping'; largest norm of a message with 'norm_bound'.
  config.robust.clip = 0.0

  # s: clients whose mean is one message for the rule; 1: no buckets.
  config.robust.bucket_size = 1

  config.attack = ml_collections.ConfigDict()

  # What attackers do: 'none' | 'label_flip' | 'sign_flip' | 'scaling' |
  # 'gaussian_noise' | 'little_is_enough' | 'inner_product'.
  config.attack.kind = 'none'

  # Fraction of all clients that attack, the same in all rounds, drawn by the
  # seed.
  config.attack.fraction = 0.2

  # Size of the attack: factor of the message, or with 'gaussian_noise' and
  # 'little_is_enough' standard deviations.
  config.attack.scale = 1.0

  config.compression = ml_collections.ConfigDict()

  # Code of the messages: 'none' | 'qsgd' | 'top_k' | 'random_k' | 'sign' |
  # 'drive' | 'eden'.
  config.compression.scheme = 'none'

  # s: number of levels of 'qsgd'.
  config.compression.levels = 16

  # k / d: fraction of the entries that 'top_k' and 'random_k' send.
  config.compression.fraction = 0.01

  # Bits per entry of 'eden'.
  config.compression.bits = 1

  # Whether clients keep what they have not sent and send it later.
  config.compression.error_feedback = False

  # Whether each array of a message is encoded alone, not all as one vector.
  config.compression.per_leaf = False

  config.personal = ml_collections.ConfigDict()

  # Personal models: 'fedper' (each client has its own head) | 'fedrep' (the
  # same, and the head is trained first) | 'lg' (each client has its own body) |
  # 'fedbn' (its own normalisation layers) | 'adapters' (nobody trains the body)
  # | 'ditto' (a model near the global one) | 'apfl' (a model mixed with the
  # global one) | 'ifca' (the best of a few models); empty: none. See
  # docs/personal.md.
  config.personal.method = ''

  # Comma-separated patterns of the leaves that are the head, the normalisation
  # layers or the adapters; empty: the last layer of a built-in model, and
  # *Norm* in 'fedbn'.
  config.personal.leaves = ''

  # Local epochs of 'fedrep' that train the head; the other ones train the body.
  config.personal.head_epochs = 1

  # lambda: weight of the proximal term in 'ditto'; 0 trains locally.
  config.personal.proximal = 0.1

  # Initial weight of a client's own model in 'apfl'; 1 trains locally.
  config.personal.alpha = 0.5

  # Learning rate of each client's alpha in 'apfl'; 0: alpha stays.
  config.personal.alpha_rate = 0.0

  # k: models of 'ifca'; a client chooses in the first of its local epochs and
  # trains in the others.
  config.personal.clusters = 2

  config.privacy = ml_collections.ConfigDict()

  # S: largest L2 norm of a client's message; the first one with quantile > 0;
  # 0: no privacy.
  config.privacy.clip = 0.0

  # sigma: standard deviation of the noise of the sum, over S.
  config.privacy.noise_multiplier = 0.0

  # Epsilon after all rounds, from which the noise multiplier is computed; 0:
  # noise_multiplier is given.
  config.privacy.target_epsilon = 0.0

  # delta at which epsilon holds; at most 1 / K.
  config.privacy.delta = 1e-05

  # Federations between which epsilon protects: 'zero_out' (without the data of
  # one client; needs sampling 'poisson') | 'replace_one' (with other data of
  # one client, which needs twice the noise; for sampling 'uniform').
  config.privacy.accounting = 'zero_out'

  # gamma: fraction of the norms that the clip should not cut, which it follows
  # from round to round; 0: the clip stays.
  config.privacy.quantile = 0.0

  # eta_C: rate of the geometric updates of the clip.
  config.privacy.clip_learning_rate = 0.2

  # sigma_b: standard deviation of the noise of the number of norms below the
  # clip; 0: a twentieth of the expected cohort.
  config.privacy.bit_noise = 0.0

  # Size of a larger cohort whose noise the mean has, to predict its accuracy;
  # its epsilon is 'projected_epsilon'. 0: the noise is that of this cohort.
  config.privacy.noise_cohort_size = 0

  # Number of clients from which cohorts of noise_cohort_size would be drawn.
  config.privacy.population = 0

  # Scores of canaries from which a lower bound on the epsilon of a round is
  # measured after the last one, such as 64000, in seconds; 0: none is.
  config.privacy.canary_scores = 0

  config.local_privacy = ml_collections.ConfigDict()

  # What the noise protects: 'client' (all data of a client, by noise in its
  # message) | 'example' (one example of a client, by noise in each local step,
  # DP-SGD); empty: none. See docs/private_parts.md.
  config.local_privacy.unit = ''

  # S: largest L2 norm of a message, or of an example's gradient.
  config.local_privacy.clip = 1.0

  # sigma: standard deviation of the noise, over S.
  config.local_privacy.noise_multiplier = 0.0

  # delta at which local_epsilon holds.
  config.local_privacy.delta = 1e-05

  config.secure = ml_collections.ConfigDict()

  # r: largest absolute value of a number of a message, which is sent in fixed
  # point and summed modulo 2^bits; 0: messages are not encoded.
  config.secure.max_abs = 0.0

  # v: bits of a number before it is weighted.
  config.secure.value_bits = 16

  # b: bits of a number that is sent.
  config.secure.bits = 32

  # Largest weight n_k of a client; 1: all are equal.
  config.secure.max_weight = 1

  # Rounding to fixed point: 'stochastic' (unbiased) | 'nearest'.
  config.secure.rounding = 'stochastic'

  # Reaction to a client update with NaN or infinity: 'stop' (ends the run) |
  # 'skip_client' (drops the update).
  config.on_nan = 'stop'

  # Number of communication rounds.
  config.rounds = 200

  # Rounds between two evaluations.
  config.eval_every = 1

  # Rounds between two tests on the clients' held-out examples; 0: no tests.
  config.client_eval_every = 0

  # Local epochs before a second test of each client; 0: no fine-tuning.
  config.finetune_epochs = 0

  # Test accuracy at which the run ends; 0: after all rounds.
  config.target_accuracy = 0.0

  # Value of the first metric that ends the run when reached, from above where
  # smaller is better; 0: after all rounds.
  config.target = 0.0

  # Seed of partition, initial weights, cohorts and orders.
  config.seed = 0

  # Clients that train at the same time, on all devices; 0: automatic.
  config.lanes = 0

  # Most examples computed at once; a larger B accumulates; 0: automatic.
  config.micro_batch = 0

  # Most rounds in one compiled call; 0: automatic.
  config.rounds_per_call = 0

  # Number of virtual CPU devices; 0: one per core.
  config.cpu_devices = 0

  # Whether a GPU runs the loops of a round as one CUDA graph; not yet run.
  config.gpu_graphs = False

  # Whether a GPU uses only operations with the same bits in every run.
  config.deterministic = False

  # Location of the examples: 'device' | 'host' (streams each cohort's).
  config.examples_on = 'device'

  # Location of the client states, which SCAFFOLD has: 'device' | 'host' |
  # 'disk' (the last two stream each cohort's to the device).
  config.client_states_on = 'device'

  # Additional loggers, with commas: csv, tensorboard, wandb.
  config.log = ''

  # Whether to draw curves.png, partition.png and clients.png (about 1 s).
  config.pictures = True

  config.checkpoint = ml_collections.ConfigDict()

  # Rounds between two checkpoints; 0: only `minutes` decides.
  config.checkpoint.rounds = 0

  # Minutes between two checkpoints; 0: only `rounds` decides.
  config.checkpoint.minutes = 5.0

  # Number of latest checkpoints to keep, in addition to the best one.
  config.checkpoint.keep = 3

  # Arguments of your functions, such as config.options.model.width = 64; see
  # docs/bring_your_own.md.
  config.options = ml_collections.ConfigDict(
    {'dataset': {}, 'model': {}, 'algorithm': {}, 'loss': {}, 'metrics': {}}
  )
  return config
