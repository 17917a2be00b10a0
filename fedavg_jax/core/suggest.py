"""Suggests the known word that is closest to a misspelt one."""

from collections.abc import Iterable
import difflib


def did_you_mean(word: object, known: Iterable[str]) -> str:
  """Returns a suggestion to append to a message, or '' if none is close.

  >>> did_you_mean('mnits', ['mnist', 'digits'])
  '; did you mean mnist?'
  >>> did_you_mean('x', ['mnist'])
  ''
  """
  close = difflib.get_close_matches(str(word), list(known), 1)
  return f'; did you mean {close[0]}?' if close else ''
