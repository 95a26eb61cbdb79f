"""Sphinx configuration of the documentation: `make docs`."""

import os
import sys
from pathlib import Path

import pyro_vae

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from links import inventories

project = "pyro_vae"
author = copyright = "The pyro_vae developers"
version = release = pyro_vae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "commands",
    "links",
    "mathml",
]
root_doc = "index"
exclude_patterns = ["build", "conf.py", "_ext", "pictures"]
default_role = "py:obj"  # `fit` in a docstring links to the reference
suppress_warnings = ["config.cache", "mystnb.unknown_mime_type"]

# Tutorials are scripts in the percent format of jupytext. They are executed once and cached.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = os.environ.get("PYRO_VAE_DOCS_EXECUTION", "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and warnings of the notebook kernel
# The first is the format of the pages that autosummary generates.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".py": "myst-nb"}
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings state types; annotations also hold checks
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False

intersphinx_mapping = inventories(Path(__file__).parent / "build" / "inventories")

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "pyro_vae"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False


def _escape_bars(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape the bars of p(x|z), which are substitutions in reStructuredText."""
    for i, line in enumerate(lines):
        if "|" in line and not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "`".join(parts)


def setup(app: object) -> None:
    """Register the hooks of this project."""
    app.connect("autodoc-process-docstring", _escape_bars)  # type: ignore[attr-defined]
