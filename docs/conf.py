"""Sphinx builds the site from the Markdown pages: ``make docs``. Code hosts show the pages too."""

import sys
from pathlib import Path

from bitmaps import __version__

sys.path.insert(0, str(Path(__file__).parent))  # finds the extension configuration_reference

project = "bitmaps"
author = "The bitmaps authors"
project_copyright = "2026, the bitmaps maintainers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "configuration_reference",
]
exclude_patterns = ["results"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False

html_theme = "furo"  # loads nothing from other sites, so pages and search work from a disk
html_title = "bitmaps"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
