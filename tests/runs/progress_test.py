"""Progress is shown on a terminal and elsewhere."""

import io

import pytest

from fedavg_jax.runs import progress


class Clock:
  """Replaces the clock, which stands still until it is set."""

  now = 0.0

  def monotonic(self):
    return self.now


def watch(
  monkeypatch,
  *,
  terminal,
  rounds=400,
  done=0,
  may_end_sooner=False,
  seconds=3.0,
  until=None,
):
  """Returns what is shown of rounds that take `seconds`, half of it a test."""
  out, clock = io.StringIO(), Clock()
  out.isatty = lambda: terminal
  monkeypatch.setattr('sys.stdout', out)
  monkeypatch.setattr(progress, 'time', clock)
  clock.now = 50.0  # The start took so long.
  shown = progress.Progress(
    rounds, done=done, may_end_sooner=may_end_sooner, began=0.0
  )
  for number in range(done + bool(done), (until or rounds) + 1):
    clock.now += seconds if number else 0.0
    record = {'round': number, 'train_loss': 0.25 if number else None}
    # No two calls take equally long.
    record['seconds'] = (1 + 1e-9 * number) * seconds / 2 if number else 0.0
    if number % 2 == 0:
      record['test_accuracy'] = 0.5 + number / 1000
    shown.update(record)
  shown.close()
  return out.getvalue()


def test_plain_lines(monkeypatch):
  text = watch(monkeypatch, terminal=False)
  assert 'round 0/400  test accuracy 0.5000\n' in text
  assert 'round 400/400  test accuracy 0.9000  train loss 0.2500\n' in text
  assert '\r' not in text and 'rounds/s' not in text


@pytest.mark.parametrize('terminal', [False, True])
def test_the_time_left_counts_all_that_happens_between_rounds(
  monkeypatch, terminal
):
  """Rounds come every 3 s, though their calls take half of it."""
  text = watch(monkeypatch, terminal=terminal, until=80)
  assert '  16 min left' in text  # 320 rounds.
  assert '8 min left' not in text.replace('18 min left', '')


def test_rounds_of_one_call_arrive_together(monkeypatch):
  """The first record of a call does not pay for all of its rounds."""
  out, clock = io.StringIO(), Clock()
  monkeypatch.setattr('sys.stdout', out)
  monkeypatch.setattr(progress, 'time', clock)
  shown = progress.Progress(100_000, done=0, may_end_sooner=False)
  lefts = []
  for number in range(67):
    if number in (1, 2, 3, 65):
      clock.now += 0.008 if number < 3 else 62 * 0.008
    seconds = 0.008 + 1e-6 * (number > 1) + 1e-6 * (number > 2)
    seconds += 1e-6 * (number > 64)
    shown.update({'round': number, 'seconds': seconds if number else 0.0})
    lefts.append(shown._left(number))
  assert lefts[:2] == ['', ''] and set(lefts[2:]) == {'13 min left'}
  assert '0.008 s per round: all 100000 rounds take about 13 min' in (
    out.getvalue()
  )


def test_the_bar_counts_from_the_command(monkeypatch):
  text = watch(monkeypatch, terminal=True, rounds=2)
  assert ' rounds in 00:50' in text


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
  text = watch(monkeypatch, terminal=False, done=100, until=103)
  assert 'round 103/400' in text
  assert '3.0 s per round' not in text and 'all 300 rounds take about' in text


def test_a_long_log_is_bounded(monkeypatch):
  text = watch(monkeypatch, terminal=False, rounds=20_000)
  assert 100 < text.count('\n') < 600
