"""How Sphinx builds these pages: ``make docs``."""

from importlib.metadata import version as installed_version

project = "pytest-ephemeral"
author = "the pytest-ephemeral authors"
project_copyright = "the pytest-ephemeral authors"

version = release = installed_version("pytest-ephemeral")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
autodoc_typehints = "description"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pytest-ephemeral {release}"

# Headings can be linked to as on GitHub, so that the same links work in both places.
myst_heading_anchors = 3
