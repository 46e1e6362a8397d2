"""How the site is built: `make docs`."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import example_pages
import method_pages

project = "equipoise"
author = "the equipoise authors"
release = metadata.version("equipoise")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "equipoise"
html_copy_source = False
html_show_copyright = False
exclude_patterns = ["_build", "_parts", "package-index.md", "release.md"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

ROOT = Path(__file__).parent.parent


def to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write code in single backticks, which reStructuredText wants doubled, and indent what is code."""
    text = re.sub(r":\n\n(    \S)", r"::\n\n\1", "\n".join(lines))
    text = re.sub(r"(?<!`)`(?!`)([^`]+)`(?!`)", r"``\1``", text)
    lines[:] = re.sub(r"^Source: ", "**Source:** ", text, flags=re.MULTILINE).split("\n")


def link_files(app: Any, docname: str, source: list[str]) -> None:
    """Links to files of the repository that are no page become their names: the site may stand anywhere.

    Examples have pages.
    """
    here = (Path(app.srcdir) / docname).parent
    up = "../" * docname.count("/")

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        place = (here / target.partition("#")[0]).resolve()
        inside = place.is_relative_to(app.srcdir)
        if "://" in target or target.startswith("#") or inside or not place.exists():
            return match.group(0)
        if place.parent == example_pages.EXAMPLES:
            return f"[{text}]({up}examples/{place.stem}.md)"
        return text if "/" in text or "." in text else f"{text} (`{place.relative_to(ROOT)}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", plain, source[0])


def setup(app: Any) -> None:
    """Makes a page a method, and an example, before anything is read."""
    method_pages.write_pages(Path(app.srcdir) / "methods")
    example_pages.write_pages(Path(app.srcdir) / "examples")
    app.connect("autodoc-process-docstring", to_rst)
    app.connect("source-read", link_files)
