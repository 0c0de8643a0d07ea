"""How Sphinx builds the site: ``python -m sphinx -W --keep-going -n -c docs . build/site``.

The sources are the Markdown files where they lie, so that they read on a code host as well: those of this folder, the
changelog, the contributing guide and the benchmarks' results. So the source directory is the repository's root.
"""

from __future__ import annotations

import sgc

project = "sgc"
author = "the sgc authors"
project_copyright = "the sgc authors"
version = release = sgc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/RESULTS*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "tests", "sgc", "examples", "output"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

nitpick_ignore_regex = [
    # Other libraries, whose inventories are on the internet: no build needs that.
    ("py:.*", r"(torch|pyro|networkx|nx|nn|fx|collections|typing|pathlib|os)\b.*|Axes|Optimizer|CompiledLoss|Call"),
    # What is not for users has no place on the page of the API, and folders are described in their sources.
    ("py:class", r"sgc\..*\.(Specialization|CompiledELBO|Stepper|SavedGraph|Table|_P)"),
    ("py:mod", r"sgc\..*"),
]

html_theme = "furo"
html_title = f"sgc {release}"
html_static_path = ["site_files"]
html_css_files = ["site.css"]
html_extra_path = ["redirect"]  # index.html of the site's root
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
