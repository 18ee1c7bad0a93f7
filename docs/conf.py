"""How Sphinx builds the site: `make docs`. It has no outside address, and works from a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "ext"))

from numpydoc.xref import DEFAULT_LINKS
from sphinx.application import Sphinx
from sphinx.util import inspect

import znorm

# Of Python's own documentation, which is elsewhere.
DEFAULT_LINKS.clear()

project = "znorm"
author = "The znorm developers"
release = version = znorm.__version__
copyright = author

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "sphinx_copybutton",
    "mathml",
    "outside",
    "public_names",
]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_typehints = "none"
autodoc_member_order = "bysource"
# The frameworks of znorm.integrations need not be installed to be documented.
autodoc_mock_imports = ["jax", "lightning", "optax", "pytorch_lightning", "transformers"]
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
# Every parameter of a public function is described, and nothing that is not one.
numpydoc_validation_checks = {"GL08", "PR01", "PR02", "SS01"}
# What others make is described by what it has.
numpydoc_validation_exclude = {r"\.__init__$", r"\.Attachment$", r"\.LogReceipt$"}
# Types of ours are links where parameters have them.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    **{
        name: f"znorm.{name}"
        for name in ("Affine", "Attachment", "BackwardStepping", "Layers", "Layout", "Moments")
    },
    "transform": "znorm.transforms.Transform",
    "Transform": "znorm.transforms.Transform",
    "Run": "znorm.lab.Run",
    "RunSpec": "znorm.lab.RunSpec",
}
autosummary_generate = False  # an extension of numpydoc's, which is not used here
# Python's and torch's own documentation is elsewhere.
nitpick_ignore_regex = [("py:.*", r"(torch|np|numpy|transformers|lightning|optax)\..*")]

html_theme = "furo"
html_title = "znorm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
# A page that is opened from a folder may not read the others.
html_show_search_summary = False
html_domain_indices = False
pygments_dark_style = "github-dark"
# What stands in single backticks in a docstring is a name, and must be one that there is.
default_role = "py:obj"
# "weights" is what users write.
smartquotes = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _arguments(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, shown: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Show the arguments of a class by its `__init__` where a mocked base hides them."""
    if what != "class" or shown != "(*args, **kwargs)":
        return None
    found = inspect.signature(thing.__init__, bound_method=True)
    return inspect.stringify_signature(found, show_annotation=False), returns


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _arguments)
