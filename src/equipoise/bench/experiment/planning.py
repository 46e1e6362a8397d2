"""How many seeds and epochs a comparison comes to, and so what it needs next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from equipoise.bench.experiment.plan import Plan, draw_up
from equipoise.bench.experiment.sequential import level
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.statistics import summarise
from equipoise.bench.experiment.training_length import MIN_EPOCHS, still_rising, training_length
from equipoise.bench.experiment.trial import Records, Trial
from equipoise.bench.experiment.verdict import judge
from equipoise.bench.problems import Task

MAX_DOUBLINGS = 4
"""So often the number of epochs is doubled at most: to 16 times what the problem recommends."""


class Planner:
    """Says what a comparison needs next, again and again while records come in.

    What it says depends on nothing but the records: a comparison that was interrupted goes on as if it had not been.

    With `extend_epochs` the runs with seed 0 are made first. As long as they are still rising at their end, all begins
    anew with twice as many epochs, `MAX_DOUBLINGS` times at most. With `looks` all runs are made for the seeds of the
    first look, and for those of the next one as long as the verdict does not decide.

    Args:
        settings: what is asked.
        tasks: the problem's.
        times: row → time of a step, where rows train as long as the dearest one takes; else none.
    """

    def __init__(self, settings: Settings, tasks: Sequence[Task], times: Mapping[str, float]) -> None:
        self._settings, self._tasks, self._times = settings, tasks, times
        self._answers: dict[tuple[str, ...], bool] = {}  # the plan is made often, and judging takes its time

    def plan(self, records: Records) -> Plan:
        """Returns the plan as far as the records show it."""
        settings, before = self._settings, dict[str, Trial]()
        doublings = MAX_DOUBLINGS if settings.extend_epochs else 0
        for _ in range(doublings):
            probe = self._draw_up(replace(settings, seeds=1), records)
            before |= {trial.key: trial for trial in probe.runs}
            if probe.missing:
                return self._beside(before, replace(probe, settings=replace(probe.settings, seeds=settings.seeds)))
            if not self._rises(probe, records):
                break
            settings = replace(settings, epochs=2 * settings.epochs)
        for look in settings.looks or (settings.seeds,):
            found = self._draw_up(replace(settings, seeds=look), records)
            if found.missing or self._decides(found, records):
                break
        return self._beside(before, found)

    def _draw_up(self, settings: Settings, records: Records) -> Plan:
        return draw_up(settings, self._tasks, records, self._times)

    def _beside(self, before: Mapping[str, Trial], found: Plan) -> Plan:
        """The plan with the runs by which its epochs were found."""
        runs = {**before, **{trial.key: trial for trial in found.runs}}
        return replace(found, runs=tuple(runs.values()), expected=found.expected + len(runs) - len(found.runs))

    def _rises(self, found: Plan, records: Records) -> bool:
        if found.settings.epochs < MIN_EPOCHS:  # too few to see whether anything rises
            return True
        key = ("rises", *(trial.key for trial in found.runs))
        if key not in self._answers:
            settings = found.settings
            self._answers[key] = still_rising(found.records(records), settings.epochs, settings.schedule)
        return self._answers[key]

    def _decides(self, found: Plan, records: Records) -> bool:
        """Whether the verdict of a look that is not the last says what to do."""
        settings = found.settings
        if not settings.looks or settings.seeds == settings.looks[-1]:
            return True
        key = ("decides", *(trial.key for trial in found.runs))
        if key not in self._answers:
            final = found.records(records)
            verdict = judge(
                summarise(final, self._tasks, settings.methods),
                settings.methods,
                {},
                level=level(settings.seeds, settings.looks),
                planned=settings.looks[-1],
                length=training_length(final, settings.epochs, settings.schedule),
            )
            self._answers[key] = verdict.decided
        return self._answers[key]
