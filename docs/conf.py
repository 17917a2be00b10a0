"""How Sphinx makes the site: pages in Markdown, the API from docstrings."""

project = 'fedavg_jax'
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
html_theme = 'furo'
exclude_patterns = ['_build']
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_google_docstring = True
napoleon_attr_annotations = False
myst_heading_anchors = 3
napoleon_use_ivar = True


def _is_field(app, what, name, obj, skip, options):
  """Fields of named tuples stand under Attributes already."""
  return True if type(obj).__name__ == '_tuplegetter' else skip


def setup(app):
  """Called by Sphinx."""
  app.connect('autodoc-skip-member', _is_field)
