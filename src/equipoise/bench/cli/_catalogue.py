"""The names of methods and problems, without importing them: `catalogue.json`, which a test holds to the registry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from equipoise.bench.errors import BenchError, did_you_mean

FILE = Path(__file__).with_name("catalogue.json")
GROUP = "equipoise.methods"
"""The entry points by which other packages bring methods."""

WORDS = ("all", "fixed")
"""What `--methods` takes beside methods."""


@dataclass(frozen=True)
class Entry:
    """What the list of methods says of one."""

    name: str
    family: str
    description: str
    passes: str
    hyperparameters: Sequence[str]
    source: str


@cache
def _content() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def methods() -> list[Entry]:
    """Returns this library's methods."""
    return [Entry(**row) for row in _content()["methods"]]


def problems() -> list[str]:
    """Returns the problems' names."""
    return [row["name"] for row in _content()["problems"]]


def plugins() -> list[EntryPoint]:
    """Returns the methods of other packages that are installed, not imported yet."""
    return list(entry_points(group=GROUP))


def check_rows(rows: Iterable[str]) -> None:
    """Refuses a row of the table whose method is not known; what is a file's or a library's is left to be seen.

    Raises:
        BenchError: there is no such method.
    """
    known = [*(entry.name for entry in methods()), *(plugin.name for plugin in plugins()), *WORDS]
    for row in filter(None, map(str.strip, rows)):
        name = row.removeprefix("replay:").partition("@")[0]
        if ":" not in name and not name.endswith(".py") and name not in known:
            raise BenchError(f"Unknown method {name!r}.{did_you_mean(name, known)} `equipoise methods` lists them.")


def check_problem(problem: str) -> None:
    """Refuses a problem that is neither known nor in a file or module.

    Raises:
        BenchError: there is no such problem.
    """
    name = problem.partition("?")[0]
    if ":" not in name and not name.endswith(".py") and name not in problems():
        raise BenchError(
            f"Unknown problem {name!r}.{did_you_mean(name, problems())} `equipoise problems` lists them; "
            "one of your own is written my_problem.py:problem."
        )


def complete_rows(incomplete: str) -> list[str]:
    """Completes the last of several methods, for the shell."""
    before, comma, last = incomplete.rpartition(",")
    known = [*(entry.name for entry in methods()), *(plugin.name for plugin in plugins()), *WORDS]
    return [f"{before}{comma}{name}" for name in known if name.startswith(last)]


def complete_problem(incomplete: str) -> list[str]:
    """Completes a problem, for the shell."""
    return [name for name in problems() if name.startswith(incomplete)]
