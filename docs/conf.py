"""Sphinx configuration: `make docs` builds the site in docs/_build/html."""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pad_kernels  # noqa: E402

project = "pad_kernels"
author = "The pad_kernels authors"
project_copyright = f"2026, {author}"
release = version = pad_kernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"pad_kernels {release}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# A name in backticks becomes a link where the documentation knows it.
default_role = "py:obj"
highlight_language = "none"
nitpicky = True
# Names in signatures that are documented elsewhere, and backticks that are not names of Python objects.
nitpick_ignore_regex = [
    ("py:class", r"(torch|nn|numpy|collections|transformers|pathlib)\..*"),
    ("py:class", r"Tensor|Sequence|Collection|Iterator|Path|optional"),
    ("py:obj", r".*"),
]


def mark_formulas(app, what, name, obj, options, lines):
    """Make literal blocks of the indented lines after a paragraph: the formulas in docstrings."""
    marked = []
    for line in lines:
        after_blank = len(marked) > 1 and not marked[-1].strip()
        if line.startswith("    ") and after_blank and not marked[-2].startswith(" "):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked


def part_parameters(app, what, name, obj, options, lines):
    """Give each line `parameter: ...` outside of an Args section a paragraph of its own."""
    try:
        parameters = inspect.signature(obj).parameters
    except (TypeError, ValueError):
        return
    parted = []
    for line in lines:
        start = line.partition(":")[0]
        if ":" in line and start in parameters:
            line = f"**{start}**{line[len(start) :]}"
            parted.append("")
        elif line.startswith(("Source: ", "Raises ")):
            parted.append("")
        parted.append(line)
    lines[:] = parted


def setup(app):
    # Before napoleon, which indents what stands in sections.
    app.connect("autodoc-process-docstring", mark_formulas, priority=100)
    app.connect("autodoc-process-docstring", part_parameters, priority=101)
