"""Configures Sphinx: pages in Markdown, the API from docstrings."""

import re

from docutils.parsers.rst.states import Inliner
from sphinx.domains.python import PyObject

project = 'fedavg_jax'
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
  'sphinx_copybutton',
]
html_theme = 'furo'
html_title = 'fedavg_jax'
html_theme_options = {
  'source_repository': 'https://github.com/fedavg-jax/fedavg_jax/',
  'source_branch': 'main',
  'source_directory': 'docs/',
}
# A copied doctest has no prompts, and no output.
copybutton_prompt_text = r'>>> |\.\.\. '
copybutton_prompt_is_regexp = True
html_show_copyright = False
# Docstrings write names as Markdown does, in single backticks.
default_role = 'code'
exclude_patterns = ['_build']
smartquotes_action = 'D'  # Dashes; quotes belong to words such as 'sgd'.
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True  # Not <function cross_entropy at 0x...>.
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_attr_annotations = False
myst_heading_anchors = 3
napoleon_use_ivar = True


def _is_field(app, what, name, obj, skip, options):
  """Skips fields of named tuples, which Attributes sections describe."""
  return True if type(obj).__name__ == '_tuplegetter' else skip


def _named_defaults(app, what, name, obj, options, signature, returns):
  """Replaces default values that are not Python, which Sphinx cannot parse."""
  if signature:
    signature = re.sub(r'\(<function _.*?\)|<factory>', '...', signature)
    return re.sub(r'<function (\w+)>', r'\1', signature), returns


def _read_bar(inliner, match, lineno):
  """Reads a bar as itself: |x| is a norm, not a substitution."""
  text, end = match.string, match.end('start')
  return text[:end], [], text[end:], []


def setup(app):
  """Registers the hooks above, and names Attributes so; Sphinx calls it."""
  Inliner.dispatch['|'] = _read_bar
  for field in PyObject.doc_field_types:
    if field.name == 'variable':
      field.label = 'Attributes'
  app.connect('autodoc-skip-member', _is_field)
  app.connect('autodoc-process-signature', _named_defaults)
