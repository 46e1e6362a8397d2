"""How a verdict names things and writes numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.paired import PairedTest
from equipoise.bench.experiment.rows import FIXED
from equipoise.bench.experiment.statistics import LEVEL, SINGLE
from equipoise.bench.problems import Measure
from equipoise.registry.base_optimizers import SEPARATOR

MANY = 6
"""Of more tasks or methods than this, sentences give the number and not the names."""


NAMES = {REFERENCE: "equal weights", FIXED: "the best fixed weights"}
"""What sentences call methods whose names say little."""


PYTHON = {"--set": "hyperparameters", "--no-baselines": "baselines=False"}
"""Options of the command line that Python writes otherwise."""


def in_python(text: str) -> str:
    """Returns a message that names options of the command line with what Python calls them.

    Example:
        >>> in_python("take --epochs auto or --epochs 16, another --out and --batch-size")
        'take `epochs="auto"` or `epochs=16`, another `out` and `batch_size`'
    """
    return re.sub(r"(--[a-z][a-z-]*)(?: (auto|\d+)\b)?", _argument, text)


def _argument(option: re.Match[str]) -> str:
    name = PYTHON.get(option[1]) or option[1].removeprefix("--").replace("-", "_")
    value = "" if option[2] is None else f"={option[2]}" if option[2].isdecimal() else f'="{option[2]}"'
    return f"`{name}{value}`"


def name_of(row: str) -> str:
    """Returns what a sentence calls a row.

    Example:
        >>> name_of("ew"), name_of("ew@sgd"), name_of("ema@sgd")
        ('equal weights', 'equal weights with sgd', 'ema@sgd')
    """
    if row == SINGLE:
        return "single-task training"
    method, _, optimizer = row.partition(SEPARATOR)
    if method not in NAMES:
        return row
    return f"{NAMES[method]} with {optimizer}" if optimizer else NAMES[method]


def verb_of(rows: Sequence[str], one: str, several: str) -> str:
    """Returns the verb's form: equal weights are several."""
    return one if len(rows) == 1 and rows[0].partition(SEPARATOR)[0] not in NAMES else several


def as_sentence(text: str) -> str:
    """Returns it with a full stop, and with a capital where no method's name stands first."""
    begins = text.startswith(("equal weights", "no method", "the best"))
    return f"{text[0].upper() if begins else text[0]}{text[1:]}."


def join(words: Sequence[str]) -> str:
    """Returns "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def names_of(methods: Sequence[str]) -> str:
    """Returns the rows' names, or how many they are."""
    return join([name_of(method) for method in methods]) if len(methods) <= MANY else f"{len(methods)} methods"


def on(tests: Sequence[PairedTest], tasks: int) -> str:
    """Says on which of the tasks."""
    if len(tests) == tasks > 1:
        return f"on all {tasks} tasks"
    names = [str(test.task) for test in tests]
    return f"on {join(names)}" if len(names) <= MANY else f"on {len(names)} of {tasks} tasks"


def percent(value: float) -> str:
    """Returns a Δm."""
    return f"{value:+.1f} %" if abs(value) < 1e5 else f"{value:+.2g} %"


def points(gap: float) -> str:
    """Returns a difference of two Δm."""
    return f"{gap:.1f} points" if abs(gap) < 1e5 else f"{gap:.2g} points"


def bound(tests: Sequence[PairedTest]) -> str:
    """Returns the bound that all their p-values keep."""
    return "p < 0.01" if max(test.corrected for test in tests) < 0.01 else f"p < {LEVEL:g}"


def gap_of(test: PairedTest, measure: Measure) -> str:
    """Returns how far two means of a measure are apart, with the unit; of per cent as points."""
    unit = "points" if measure.unit == "%" else measure.unit
    return f"{measure.format(test.gap)} {unit}".rstrip()


def doubt(test: PairedTest, briefly: bool = False) -> str:
    """Says why a difference may not be claimed; briefly with no more than one p-value."""
    if math.isnan(test.raw):
        return "the same in every seed, so that there is no spread to test it against"
    if briefly:
        return "within noise" if test.noise else f"not certain (p = {test.corrected:.2g})"
    if test.noise:
        return f"within noise (p = {test.corrected:.2g})"
    return f"not certain (p = {test.corrected:.2g}, raw {test.raw:.2g})"
