"""The section `personal` of a config is read as its words say."""

import json

import jax
import jax.numpy as jnp
import pytest

import fedavg_jax as fa
from fedavg_jax.runs import builders
from fedavg_jax.runs import personal_builder
from fedavg_jax.runs.run_config import RunConfig
from tests.testing import normalised
from tests.testing import rest_slow

HEAD = {'Dense_2/bias', 'Dense_2/kernel'}
BODY = {f'Dense_{i}/{name}' for i in (0, 1) for name in ('bias', 'kernel')}
NORM = {'norm/bias', 'norm/scale'}


def config(**changes):
  nested = {name.replace('__', '.'): value for name, value in changes.items()}
  return RunConfig().replace(nested)


def names(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  }


def own_and_sent(cfg, params):
  """Returns the names of a client's own leaves, and of those it receives."""
  algorithm = builders.build_algorithm(cfg)
  state = jax.eval_shape(algorithm.client_init, params, jnp.int32(0))
  return names(state.own), names(jax.eval_shape(algorithm.received, params))


def test_methods_name_the_leaves_of_their_papers():
  data = fa.load_dataset('digits')
  params = jax.eval_shape(fa.build_model('2nn', data).init, jax.random.key(0))
  for method, own, sent in (
    ('fedper', HEAD, BODY),
    ('fedrep', HEAD, BODY),
    ('lg', BODY, HEAD),
  ):
    cfg = config(personal__method=method)
    assert own_and_sent(cfg, params) == (own, sent)
  cfg = config(personal__method='adapters', personal__leaves='Dense_1, *_0')
  assert own_and_sent(cfg, params) == (set(), BODY)
  variables = normalised.init(jax.random.key(0))
  cfg = config(personal__method='fedbn', personal__leaves='norm')
  assert own_and_sent(cfg, variables.params) == (NORM, {'dense', 'out'})


def test_every_built_in_model_has_its_last_layer_as_head():
  """Its bias has an element per class."""
  data = fa.load_dataset('digits')
  for model in ('2nn', 'cnn', 'cnn_torch', 'cifar_cnn'):
    params = jax.eval_shape(fa.build_model(model, data).init, jax.random.key(0))
    cfg = config(model=model, personal__method='fedper')
    algorithm = personal_builder.build_algorithm(
      cfg, builders.build_algorithm(config()), None
    )
    state = jax.eval_shape(algorithm.client_init, params, jnp.int32(0))
    shapes = {leaf.shape[-1:] for leaf in jax.tree.leaves(state)}
    assert shapes == {(10,)} and len(jax.tree.leaves(state)) == 2


def test_no_method_is_the_algorithm_itself():
  assert builders.build_algorithm(config()).own_model is None


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'method': 'fedpre'}, 'did you mean fedrep'),
    ({'leaves': 'Dense_0'}, "leaves = 'Dense_0': must be empty with"),
    ({'method': 'ditto', 'leaves': 'x'}, "= 'ditto', which names no leaves"),
    ({'method': 'adapters'}, "leaves = '': must name leaves of the model"),
    (
      {'method': 'fedrep', 'head_epochs': 5},
      'personal.head_epochs = 5: must be below client.epochs = 5',
    ),
    ({'alpha': 1.5}, 'personal.alpha = 1.5: must be in'),
    ({'proximal': -1.0}, 'personal.proximal = -1.0: must be in'),
  ],
)
def test_refusals(changes, said):
  with pytest.raises(fa.InputError, match=said):
    config(**{f'personal__{name}': value for name, value in changes.items()})


def test_refusals_with_other_options():
  with pytest.raises(fa.InputError, match='finetune_epochs = 1: must be 0'):
    config(
      personal__method='fedper',
      finetune_epochs=1,
      client_eval_every=1,
      holdout_fraction=0.1,
    )
  with pytest.raises(fa.InputError, match="leaves = '': must name leaves"):
    config(personal__method='lg', model='mine:model')


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'client__epochs': 1}, 'client.epochs = 1: must be at least 2'),
    ({'algorithm': 'fedexp'}, "algorithm = 'fedexp': must be 'fedavg' with"),
    ({'server__learning_rate': 0.5}, 'rate = 0.5: must be 1.0 with'),
    ({'robust__rule': 'median'}, "robust.rule = 'median': must be 'none'"),
    ({'personal__leaves': 'x'}, "'ifca', which names no leaves"),
    ({'personal__clusters': 0}, 'personal.clusters = 0: must be'),
  ],
)
def test_refusals_of_clusters(changes, said):
  with pytest.raises(fa.InputError, match=said):
    config(personal__method='ifca', **changes)


def run(folder, **changes):
  """Trains on two digits per client; returns the lines of metrics.jsonl."""
  cfg = config(
    num_clients=12,
    client__epochs=2,
    holdout_fraction=0.3,
    client_eval_every=4,
    eval_every=4,
    pictures=False,
    **changes,
  )
  fa.train(cfg, folder)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.parametrize('method', rest_slow(1, ['fedper', 'apfl']))
def test_a_run_has_both_accuracies(tmp_path, method):
  """With two digits per client its own model is the better one."""
  *_, line = run(
    tmp_path / 'run',
    rounds=4,
    personal__method=method,
    personal__alpha_rate=0.01,
  )
  assert line['personal_accuracy_mean'] > line['client_accuracy_mean']
  assert line['personal_tested'] == line['client_tested'] == 12
  model = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)
  sent = model - 4 * 2010 if method == 'fedper' else model
  assert line['bytes_up'] == line['bytes_down'] == sent * line['clients']


@pytest.mark.slow
def test_clients_of_clusters_receive_all_models_and_send_one(tmp_path):
  *_, line = run(
    tmp_path / 'run',
    rounds=4,
    personal__method='ifca',
    personal__clusters=3,
  )
  assert line['personal_accuracy_mean'] > line['client_accuracy_mean']
  model = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)
  assert line['bytes_up'] == (model + 4) * line['clients']
  assert line['bytes_down'] == 3 * model * line['clients']


@pytest.mark.slow
@pytest.mark.parametrize('place', ['device', 'host', 'disk'])
def test_client_states_survive_a_resume(tmp_path, place):
  """A run of four rounds, and two of two, end with the same bits."""
  own = {'personal__method': 'ditto', 'client_states_on': place}
  whole = run(tmp_path / 'whole', rounds=4, **own)
  parts = tmp_path / 'parts'
  run(parts, rounds=2, **own)
  cfg = json.loads((parts / 'config.json').read_text())['config']
  cfg['rounds'] = 4
  fa.train(RunConfig().replace(dict(_flat(cfg))), parts, extend=True)
  *_, last = (parts / 'metrics.jsonl').read_text().splitlines()
  for name in ('test_loss', 'personal_loss_weighted', 'client_loss_weighted'):
    assert json.loads(last)[name] == whole[-1][name]


def _flat(content, prefix=''):
  for key, value in content.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
