"""How lines are told apart in pictures: by colour, dashes and marker, so that nobody needs to tell colours apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLOURS = ("#0072B2", "#C75000", "#00875F", "#B4568C", "#9A6B00", "#4A4FB5")
"""After Okabe and Ito, whose hues people with any colour vision can tell apart; 3 to 1 or more against white."""

DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def line_style(index: int, colours: Sequence[str] = COLOURS) -> dict[str, Any]:
    """Returns colour, dashes and marker of the line of that index, as matplotlib takes them."""
    turn = index // len(colours)  # the same colour again: with other dashes and another marker
    return {
        "color": colours[index % len(colours)],
        "linestyle": DASHES[(index + 3 * turn) % len(DASHES)],
        "marker": MARKERS[(index + 2 * turn) % len(MARKERS)],
    }


def plain(name: str) -> str:
    """Returns what matplotlib draws as the name, whatever is in it."""
    return name.replace("$", r"\$")
