"""A comparison's rows by name: `METHOD[@OPTIMIZER]`, `fixed[@OPTIMIZER]`, `replay:ROW`, baselines `single:TASK`."""

from __future__ import annotations

from collections.abc import Iterable

from equipoise.aggregators import Aggregator
from equipoise.aggregators._base import GramianAggregator
from equipoise.integrations import torchjd
from equipoise.registry import METHODS, MethodSpec
from equipoise.registry.base_optimizers import DEFAULT, SEPARATOR

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
        return name, DEFAULT
    method, _, optimizer = name.partition(SEPARATOR)
    return method, optimizer or DEFAULT


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


def spec_of(row: str) -> MethodSpec | None:
    """Returns what the registry knows of a row's method; None for baselines, `fixed` and TorchJD's."""
    return METHODS.get(parts_of(row)[0])


def gives_weights(row: str) -> bool:
    """Whether a row's method moves tasks by weights; MAO, GradDrop and TorchJD's aggregators do it otherwise."""
    method, _ = parts_of(row)
    if method.startswith(torchjd.PREFIX):
        return torchjd.is_scalarizer(torchjd.find_class(method))
    spec = METHODS[method]
    if isinstance(spec.takes, type) and issubclass(spec.takes, Aggregator):
        return issubclass(spec.takes, GramianAggregator)
    return spec.optimizer is None


def with_replayed(rows: Iterable[str]) -> tuple[str, ...]:
    """Returns rows without blanks and doubles, and before each replay what it replays."""
    names = [name.strip() for name in rows if name.strip()]
    return tuple(dict.fromkeys(row for name in names for row in (replayed_by(name) or name, name)))
