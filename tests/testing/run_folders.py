"""Loads configs with changes, and reads the folders of runs."""

import importlib.util
import json
import signal

import numpy as np

from fedavg_jax.runs import recorder
from fedavg_jax.runs.run_dir import FORMAT


def load(repository, name, *, pictures=False, **changes):
  """Loads a config; without pictures, which would take most of the time."""
  path = repository / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({'pictures': pictures} | changes)
  return config


def lines(workdir):
  return [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


def png_size(path):
  content = path.read_bytes()
  assert content[:8] == b'\x89PNG\r\n\x1a\n'
  return tuple(np.frombuffer(content[16:24], '>u4'))


def signal_after(monkeypatch, number, signum):
  """Sends this process a signal after a round's record."""
  simulate = recorder.simulate

  def interrupted(*args, **kwargs):
    for record in simulate(*args, **kwargs):
      yield record
      if record.round == number:
        signal.raise_signal(signum)

  monkeypatch.setattr(recorder, 'simulate', interrupted)


def write_run(folder, accuracies, *, status='finished', **config):
  """Writes the folder of a run by hand: one tested round per accuracy.

  Every round after the first sends 100 bytes each way, in two simulated
  seconds.
  """
  folder.mkdir(parents=True)
  sent = {'bytes_down': 100, 'bytes_up': 100, 'simulated_seconds': 2.0}
  records = [
    {'round': i, 'seconds': 0.5, 'test_accuracy': value} | (sent if i else {})
    for i, value in enumerate(accuracies)
  ]
  config = {'dataset': 'digits', 'seed': 0} | config
  began = {'format': FORMAT, 'config': config, 'test_sha256': 'a'}
  summary = {'status': status, 'rounds': len(records) - 1}
  summary['final_test_accuracy'] = accuracies[-1]
  (folder / 'config.json').write_text(json.dumps(began))
  (folder / 'summary.json').write_text(json.dumps(summary))
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(record) + '\n' for record in records)
  )
  return folder
