"""The maker of a picture is a field of its metadata, not a text in it."""

import pytest

from fedavg_jax.runs import picture_metadata
from fedavg_jax.runs import plots

WORDS = plots.COMPARE


def draw(path, text='', about=None):
  figure = plots.new_figure(2, 2)
  figure.text(0.1, 0.1, text)
  figure.savefig(path, metadata=about)


@pytest.mark.parametrize('suffix', plots.SUFFIXES)
def test_only_the_whole_field_names_the_maker(tmp_path, suffix):
  def is_own():
    return picture_metadata.is_made_by(path, WORDS)

  path = tmp_path / f'a{suffix}'
  assert not is_own()
  draw(path, about=picture_metadata.metadata(path, WORDS))
  assert is_own() and plots.is_own(path)
  assert not picture_metadata.is_made_by(path, plots.SWEEP)
  content = path.read_bytes()
  for maker in (plots.SWEEP, f'{WORDS} and I', 'matplotlib'):
    draw(path, about=picture_metadata.metadata(path, maker))
    assert not is_own()
  # The words are in the picture, in its title, or after its end.
  for about in ({}, {'Title': WORDS}):
    draw(path, text=WORDS, about=about)
    assert not is_own()
  path.write_bytes(path.read_bytes() + WORDS.encode())
  assert not is_own()
  for start in (0, 4, 9, len(content) // 2):  # A torn file is not replaced.
    path.write_bytes(content[:start])
    assert picture_metadata.is_made_by(path, WORDS) == (
      suffix == '.png' and start > 100
    )


def test_a_drawing_with_the_words_is_not_a_picture_of_compare(tmp_path):
  path = tmp_path / 'mine.svg'
  path.write_text(
    '<svg xmlns="http://www.w3.org/2000/svg"><!-- fedavg_jax compare -->'
    '<text>fedavg_jax compare</text></svg>'
  )
  assert not plots.is_own(path)
