"""Configures Sphinx: pages in Markdown, the API from docstrings."""

project = 'fedavg_jax'
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
html_theme = 'furo'
html_show_copyright = False
# Docstrings write names as Markdown does, in single backticks.
default_role = 'code'
exclude_patterns = ['_build']
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_google_docstring = True
napoleon_attr_annotations = False
myst_heading_anchors = 3
napoleon_use_ivar = True


def _is_field(app, what, name, obj, skip, options):
  """Skips fields of named tuples, which Attributes sections describe."""
  return True if type(obj).__name__ == '_tuplegetter' else skip


def setup(app):
  """Registers the hook above; Sphinx calls it."""
  app.connect('autodoc-skip-member', _is_field)
