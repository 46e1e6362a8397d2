"""Writes what is made from the registry and the README: the catalogue, the table of methods, the index's page.

python docs/tables.py            # writes them
python docs/tables.py --check    # ends with 1 if one is not what would be written
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from equipoise.bench.cli._catalogue import FILE
from equipoise.bench.problems import PROBLEMS
from equipoise.registry import METHODS

README = Path(__file__).parent.parent / "README.md"
INDEX = Path(__file__).parent / "package-index.md"
MARKS = "<!-- methods: made by docs/tables.py -->", "<!-- methods end -->"


def catalogue() -> str:
    """The catalogue's text."""
    methods = [
        {
            "name": name,
            "family": spec.family,
            "description": spec.description,
            "passes": spec.passes,
            "hyperparameters": list(spec.hyperparameters),
            "source": spec.source,
        }
        for name, spec in METHODS.items()
    ]
    content = {"methods": methods, "problems": [{"name": name} for name in PROBLEMS]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def readme() -> str:
    """The README's text, with the table between its marks made anew."""
    rows = ["| method | family | what it does | passes | source |", "|---|---|---|---:|---|"]
    rows += [
        f"| `{name}` | {spec.family} | {spec.description} | {spec.passes} | {spec.source} |"
        for name, spec in METHODS.items()
    ]
    table = "\n".join(rows)
    text = README.read_text(encoding="utf-8")
    begin, end = MARKS
    made = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)
    return re.sub(r"which of \d+\npublished ways", f"which of {len(METHODS)}\npublished ways", made)


def package_index() -> str:
    """The README as it stands on an index of packages: without pictures, and links that lead nowhere there are text."""
    lines = [line for line in readme().split("\n") if not line.startswith(("![", "<!--"))]
    text = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]+\)", r"\1", "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text)


def main() -> int:
    """Writes, or checks, each file."""
    made = {FILE: catalogue(), README: readme(), INDEX: package_index()}
    stale = [place for place, text in made.items() if _old(place) != text]
    if "--check" in sys.argv:
        for place in stale:
            print(f"{place.name} is not what the registry says: python docs/tables.py", file=sys.stderr)
        return 1 if stale else 0
    for place, text in made.items():
        place.write_text(text, encoding="utf-8")
    return 0


def _old(place: Path) -> str:
    return place.read_text(encoding="utf-8") if place.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
