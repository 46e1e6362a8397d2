"""What a comparison's methods had to move and moved: where that is nothing, their results say nothing of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.rows import FIXED, STATIC, parts_of, replayed_by, spec_of
from equipoise.bench.experiment.wording import join
from equipoise.objectives import RLW

MOVED = 0.02
"""A task's share of the weights that stays within this of equal weights has hardly moved."""

HELD = (REFERENCE, STATIC, FIXED)
"""Rows whose weights are not meant to move."""


def movement_remarks(records: Iterable[Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """Returns sentences about methods whose weights hardly left their start, and networks that share no parameter.

    Weights are each epoch's means, as shares of their sum of magnitudes; they start equal. Weights that are exactly
    equal throughout are no method's own, and random ones have no start to leave: neither is spoken of.

    Args:
        records: a comparison's, one a run.
        methods: in the table's order.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    alone = False
    for record in records:
        alone = alone or record.get("shared_parameters") == 0
        if record["status"] == "finished":
            runs.setdefault(record["method"], []).append(record)
    said = []
    if alone:
        said.append("The tasks share no parameter of the network: there is nothing to balance.")
    still = {method: _furthest(runs[method]) for method in methods if method in runs and not _held(method)}
    names = [method for method, moved in still.items() if moved is not None and 0 < moved < MOVED]
    if names:
        furthest = max(moved for name in names if (moved := still[name]) is not None)
        said.append(
            f"The weights of {join(names)} hardly left their start (no task's share moved by more than "
            f"{max(0.001, furthest):.1%}): what is shown of {'it' if len(names) == 1 else 'them'} is close to equal "
            "weights. Learned weights may need a learning rate of their own."
        )
    return said


def _held(method: str) -> bool:
    """Whether a row's weights are not meant to move, or to move at random."""
    spec = spec_of(method)
    return parts_of(method)[0] in HELD or replayed_by(method) is not None or (spec is not None and spec.takes is RLW)


def _furthest(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """How far a task's share was from equal shares in any epoch of any run; None where an epoch has no weights."""
    furthest = 0.0
    for record in runs:
        for epoch in record["epochs"]:
            total = sum(abs(weight) for weight in epoch["weights"].values())
            if not total:
                return None
            equal = 1 / len(epoch["weights"])
            furthest = max(furthest, *(abs(abs(w) / total - equal) for w in epoch["weights"].values()))
    return furthest
