"""The verdict on a comparison, from all that is known of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from equipoise.bench.experiment.movement import movement_remarks
from equipoise.bench.experiment.sequential import level
from equipoise.bench.experiment.statistics import LEVEL
from equipoise.bench.experiment.training_length import training_length
from equipoise.bench.experiment.verdict import Verdict, judge
from equipoise.bench.experiment.wording import in_python
from equipoise.bench.problems import is_object

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result


def judge_result(result: Result) -> Verdict:
    """Returns what follows from a comparison."""
    settings = result.settings
    found = judge(
        result.summary,
        settings.methods,
        result.costs,
        level=level(settings.seeds, settings.looks) if settings.looks else LEVEL,
        planned=settings.looks[-1] if settings.looks else None,
        front=result.front,
        length=training_length(result.records, settings.epochs, settings.schedule),
        remarks=movement_remarks(result.records, settings.methods),
    )
    return replace(found, use=in_python(found.use)) if is_object(settings.problem) else found
