"""Sphinx's settings: the pages of this folder, and those that the build makes (see ``made_pages.py``)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # made_pages, benchmarks
# Docstrings are read with what the losses do on a machine without a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import made_pages  # noqa: E402

import smoothloss  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "smoothloss"
author = "The smoothloss developers"
release = version = smoothloss.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
# `name` in a docstring: a link where the name is known, code where not.
default_role = "py:obj"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args say it, in words
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "smoothloss"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the pages that are made, and send links that lead out of this folder to them."""
    made_pages.make(HERE / "made")
    app.connect("source-read", _follow_links)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _join_short_sections)
    return {"parallel_read_safe": True}


def _follow_links(app: Sphinx, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md":
        source[0] = made_pages.with_links(source[0], page)
    if name == "index":  # it leaves places for pages that may not be there yet
        patterns = re.findall(r"^[\w/]+\*$", source[0], re.MULTILINE)
        for pattern in patterns:
            if not any(HERE.glob(f"{pattern}.md")):
                source[0] = source[0].replace(f"\n{pattern}\n", "\n")


def _skip_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class describes: by themselves they are "field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def _join_short_sections(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Let "Raises: as another function" go on in its next lines, which napoleon would take for something else."""
    short = False
    for number, line in enumerate(lines):
        if re.match(r"(Args|Returns|Raises|Returns, raises): \S", line):
            short = True
        elif not line.startswith(" "):
            short = False
        elif short:
            lines[number] = line.lstrip()
