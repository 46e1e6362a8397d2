"""What an epoch is selected by, and configurations with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
