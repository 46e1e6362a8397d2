"""What an epoch is selected by, and configurations with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.bench.experiment.statistics import relative_gain
from equipoise.bench.experiment.trial import Values
from equipoise.bench.problems import Task


def score(tasks: Sequence[Task], values: Values, reference: Mapping[str, float] | None) -> float:
    """Returns what an epoch is selected by, higher is better.

    Args:
        tasks: the problem's.
        values: what was measured on validation.
        reference: task → main measure. The score is the mean over its tasks of the relative gain over it; without, as
            for a single-task run, the main measure itself, negated where lower is better.
    """
    scores = []
    for task in tasks:
        main = task.measures[0]
        if reference is None and task.name in values:
            value = values[task.name][main.name]
            scores.append(value if main.higher_is_better else -value)
        elif reference is not None and task.name in reference:
            scores.append(relative_gain(values[task.name][main.name], reference[task.name], main.higher_is_better))
    return sum(scores) / len(scores)


def main_measures(tasks: Sequence[Task], values: Values) -> dict[str, float]:
    """Returns every task's main measure, of the tasks that have values."""
    return {task.name: values[task.name][task.measures[0].name] for task in tasks if task.name in values}


def best_measures(tasks: Sequence[Task], epochs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the best that every task's main measure was at the end of any epoch, of tasks that have a number."""
    measured = [main_measures(tasks, epoch["validation"]) for epoch in epochs]
    found = {}
    for task in tasks:
        values = [values[task.name] for values in measured if math.isfinite(values.get(task.name, math.nan))]
        if values:
            found[task.name] = max(values) if task.measures[0].higher_is_better else min(values)
    return found
