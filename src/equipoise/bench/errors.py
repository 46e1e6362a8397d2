"""What a person can put right: one kind of error, which the command line says in a line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something asked for cannot be had; the message says what was found, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a question that names what is spelled nearly so, a blank before it; nothing if nothing is.

    Example:
        >>> from equipoise.bench.errors import did_you_mean
        >>> did_you_mean("digts", ["digits", "yeast"]), did_you_mean("faces", ["digits", "yeast"])
        (' Did you mean digits?', '')
    """
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
