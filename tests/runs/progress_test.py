"""Progress is shown on a terminal and elsewhere."""

import io

from fedavg_jax.runs import progress


class Clock:
  """Replaces the clock between lines: every call is three seconds later."""

  def __init__(self):
    self.now = 0.0

  def monotonic(self):
    self.now += 3.0
    return self.now


def watch(monkeypatch, *, terminal, rounds=400, done=0, may_end_sooner=False):
  out = io.StringIO()
  out.isatty = lambda: terminal
  monkeypatch.setattr('sys.stdout', out)
  monkeypatch.setattr(progress, 'time', Clock())
  shown = progress.Progress(rounds, done=done, may_end_sooner=may_end_sooner)
  for number in range(rounds + 1):
    record = {'round': number, 'train_loss': 0.25 if number else None}
    record['seconds'] = 3.0 if number else 0.0
    if number % 2 == 0:
      record['test_accuracy'] = 0.5 + number / 1000
    shown.update(record)
  shown.close()
  return out.getvalue()


def test_plain_lines(monkeypatch):
  text = watch(monkeypatch, terminal=False)
  assert 'round 0/400  test accuracy 0.5000\n' in text
  assert 'round 400/400  test accuracy 0.9000  train loss 0.2500' in text
  assert ' left' in text and '\r' not in text


def test_a_long_run_prints_its_duration_once(monkeypatch):
  for terminal in (False, True):
    text = watch(monkeypatch, terminal=terminal)
    assert text.count('3 s per round: all 400 rounds take about 20 min') == 1
    assert 'sooner' not in text
    text = watch(monkeypatch, terminal=terminal, may_end_sooner=True)
    assert 'reaching the target ends the run sooner' in text


def test_a_short_run_does_not(monkeypatch):
  text = watch(monkeypatch, terminal=False, rounds=4)
  assert 'take about' not in text


def test_bar_on_a_terminal(monkeypatch):
  text = watch(monkeypatch, terminal=True)
  assert 'round 0/400' not in text and '\r' in text
  assert '400/400' in text and 'test accuracy 0.9000' in text


def test_a_resumed_run_counts_its_own_rounds(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr('sys.stdout', out)
  monkeypatch.setattr(progress, 'time', Clock())
  shown = progress.Progress(400, done=100, may_end_sooner=False)
  for number in (101, 102, 103):
    shown.update({'round': number, 'train_loss': 0.25, 'seconds': 3.0})
  shown.close()
  assert 'round 103/400' in out.getvalue()
  assert '0.333 rounds/s' in out.getvalue()  # A round takes 3 s.
  assert 'all 300 rounds take about 15 min' in out.getvalue()


def test_a_long_log_is_bounded(monkeypatch):
  text = watch(monkeypatch, terminal=False, rounds=20_000)
  assert 100 < text.count('\n') < 600
