"""A comparison's rows by name: `METHOD[@OPTIMIZER]`, `fixed[@OPTIMIZER]`, `replay:ROW`, baselines `single:TASK`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from equipoise.aggregators._base import GramianAggregator
from equipoise.bench.problems import split_options
from equipoise.integrations import torchjd
from equipoise.registry import DEFAULT_OPTIMIZER, METHODS, MethodSpec, find_own
from equipoise.registry import spec_of as spec_of_own
from equipoise.registry.base_optimizers import SEPARATOR

FIXED = "fixed"
"""The method whose weights are searched, and then stay."""

STATIC = "static"
"""The method that trains with given weights."""

REPLAY = "replay:"
"""What stands before a row whose mean weights are given from the start."""

BASELINE = "single:"
"""What stands before the task of a single-task baseline."""


def task_of(row: str) -> str | None:
    """Returns the one task that a single-task baseline trains; None for any other row."""
    return row.removeprefix(BASELINE) if row.startswith(BASELINE) else None


def replayed_by(row: str) -> str | None:
    """Returns the row whose weights a row replays; None if it replays none."""
    return row.removeprefix(REPLAY) if row.startswith(REPLAY) else None


def parts_of(row: str) -> tuple[str, str]:
    """Returns a row's method and optimizer; a replay has those of the row that it replays."""
    name = replayed_by(row) or row
    if name.startswith(BASELINE):  # a task's name may be anything
        return name, DEFAULT_OPTIMIZER
    method, separator, optimizer = name.rpartition(SEPARATOR)
    return (method, optimizer) if separator else (name, DEFAULT_OPTIMIZER)


def made_by(row: str) -> str:
    """Returns what `equipoise.make_method` calls what a row trains with.

    Example:
        >>> made_by("ema@sgd"), made_by("fixed@sgd"), made_by("replay:mao")
        ('ema@sgd', 'static@sgd', 'static@adamw')
    """
    method, optimizer = parts_of(row)
    if method == FIXED or replayed_by(row) is not None:
        return f"{STATIC}{SEPARATOR}{optimizer}"
    return row


def source_of(name: str) -> str:
    """Returns a hash of the file that a problem or method, written `FILE.py:NAME`, is in; "" if it is not in a file."""
    file = Path(split_options(name)[0].rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix == ".py" and file.exists() else ""


def spec_of(row: str) -> MethodSpec | None:
    """Returns what is known of a row's method; None for baselines and `fixed`, and where there is none of that name.

    Raises:
        ImportError: it is of a library or file that cannot be imported.
        TypeError, ValueError: what is there is no method.
    """
    method, optimizer = parts_of(row)
    spec = _spec_of(method, source_of(method))
    if spec is None or spec.with_base is None or optimizer == DEFAULT_OPTIMIZER:
        return spec
    return replace(spec, takes=spec.with_base, search_space={})


@cache
def _spec_of(method: str, source: str) -> MethodSpec | None:
    """Of a method, whose file is `source`'s: one that was edited holds another."""
    if method in METHODS:
        return METHODS[method]
    if method == FIXED or method.startswith(BASELINE):
        return None
    if method.startswith(torchjd.PREFIX):
        return torchjd.spec_of(method, 1)
    found = find_own(method)
    return None if found is None else spec_of_own(found, method)


def gives_weights(row: str) -> bool:
    """Whether a row's method moves tasks by weights; MAO, GradDrop and TorchJD's aggregators do it otherwise."""
    spec = spec_of(row)
    if spec is None or spec.family != "aggregator":
        return spec is None or spec.family == "objective"
    made = spec.takes if inspect.isclass(spec.takes) else type(spec.takes())
    return issubclass(made, GramianAggregator)


def with_replayed(rows: Iterable[str]) -> tuple[str, ...]:
    """Returns rows without blanks and doubles, and before each replay what it replays."""
    names = [name.strip() for name in rows if name.strip()]
    return tuple(dict.fromkeys(row for name in names for row in (replayed_by(name) or name, name)))
