"""How Sphinx builds these pages: ``make docs``."""

project = "pytest-ephemeral"
author = "the pytest-ephemeral authors"
project_copyright = "the pytest-ephemeral authors"

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pytest-ephemeral"

# Headings can be linked to as on GitHub, so that the same links work in both places.
myst_heading_anchors = 3
