"""How Sphinx builds these pages.

python -m sphinx -W --keep-going -q docs docs/_build
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = 'sail_jax'
author = 'The sail_jax authors'
copyright = '2026, the sail_jax authors'
extensions = ['myst_parser', 'sphinx.ext.mathjax']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
toc_object_entries_show_parents = 'hide'
exclude_patterns = ['_build', 'reference/generated/meanings.md']  # Part of another page.
html_theme = 'pydata_sphinx_theme'
html_title = 'sail_jax'
html_static_path = ['_static']
html_css_files = ['wide.css']
html_theme_options = {
    'navigation_with_keys': False,
    'header_links_before_dropdown': 9,
    'show_toc_level': 2,
    'secondary_sidebar_items': ['page-toc'],
    'footer_start': ['copyright'],
    'footer_end': [],
}
# Pages that stand alone have no section to navigate.
html_sidebars = {page: [] for page in ('quickstart', 'concepts', 'method', 'when', 'design')}
html_show_sourcelink = False


def setup(app):
    """Pages made out of the code are written before any page is read."""
    generate.write(Path(__file__).parent / 'reference' / 'generated')
