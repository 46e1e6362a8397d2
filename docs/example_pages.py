"""A page an example: what it says of itself, and its code."""

from __future__ import annotations

import ast
from pathlib import Path

from pages import write_changed

EXAMPLES = Path(__file__).parent.parent / "examples"


def write_pages(folder: Path) -> None:
    """Writes the pages, and an index, as far as they have changed."""
    titles = {place.stem: _title(place) for place in sorted(EXAMPLES.glob("*.py"))}
    lines = ["# Examples", "", "Whole programs, which run on a CPU in seconds; each is run by a test.", ""]
    lines += [f"- [`{name}.py`]({name}.md): {title}." for name, title in titles.items()]
    pages = {"index.md": "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *titles, "```", ""])}
    for name, title in titles.items():
        source = f"../../examples/{name}.py"
        pages[f"{name}.md"] = (
            f"# `{name}.py`\n\n{title}. {{download}}`Download it <{source}>`.\n\n"
            f"```{{literalinclude}} {source}\n:language: python\n```\n"
        )
    write_changed(folder, pages)


def _title(place: Path) -> str:
    """The first sentence of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(place.read_text(encoding="utf-8"))) or place.stem
    return " ".join(docstring.partition("\n\n")[0].split()).rstrip(".")
