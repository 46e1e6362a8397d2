"""The front of fixed weights: what can be had without balancing, by weights that were searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.bench.experiment.rows import FIXED, parts_of
from equipoise.bench.experiment.statistics import relative_gain
from equipoise.bench.experiment.trial import Records, finished
from equipoise.bench.problems import Task

if TYPE_CHECKING:
    from equipoise.bench.experiment.plan import Plan, Tried


@dataclass(frozen=True)
class FrontPoint:
    """One weighting that stayed fixed during a run, with the seed that configurations are chosen with.

    Attributes:
        weights: task → weight; they add up to the number of tasks.
        values: task → main measure on test, at the epoch that is best on validation.
        gains: task → that measure's relative gain over the run of the same seed that Δm is against, on test; tasks
            without such a run are left out.
        score: mean relative gain on validation, by which the best weighting is chosen.
    """

    weights: Mapping[str, float]
    values: Mapping[str, float]
    gains: Mapping[str, float]
    score: float


def front_of(found: Plan, records: Records, tasks: Sequence[Task]) -> tuple[FrontPoint, ...]:
    """Returns the fixed weightings that a comparison has tried and that were trained to the end.

    Args:
        found: the comparison's plan.
        records: of its runs.
        tasks: the problem's.
    """
    best: dict[tuple[tuple[str, float], ...], Tried] = {}
    for row, tried in found.tried.items():
        if parts_of(row)[0] == FIXED:
            for one in tried:
                weights = tuple(one.configuration.hyperparameters["weights"].items())
                before = best.get(weights)
                if one.score is not None and (before is None or before.score is None or one.score > before.score):
                    best[weights] = one
    points = []
    for one in best.values():
        record = records[one.trial.key]
        if finished(record):
            measures = {task.name: task.measures[0] for task in tasks}
            values = {name: record["test"][name][measure.name] for name, measure in measures.items()}
            against = {
                name: records[trial.key]["test"][name][measures[name].name] for name, trial in found.reference.items()
            }
            gains = {
                name: relative_gain(values[name], reference, measures[name].higher_is_better)
                for name, reference in against.items()
            }
            weights = one.configuration.hyperparameters["weights"]
            points.append(FrontPoint(weights, values, gains, float(one.score or 0.0)))
    return tuple(points)
