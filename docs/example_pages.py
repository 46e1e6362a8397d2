"""A page an example: what it says of itself, and its code."""

from __future__ import annotations

import ast
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def write_pages(folder: Path) -> None:
    """Writes the pages, and an index, as far as they have changed."""
    folder.mkdir(exist_ok=True)
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
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        place = folder / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")


def _title(place: Path) -> str:
    """The first sentence of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(place.read_text(encoding="utf-8"))) or place.stem
    return " ".join(docstring.partition("\n\n")[0].split()).rstrip(".")
