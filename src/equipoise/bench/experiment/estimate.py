"""How long a comparison will take yet, from times that were measured in it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from equipoise.bench.experiment.rows import replayed_by, spec_of
from equipoise.bench.experiment.trial import Record, Run
from equipoise.registry import PASS_PER_TASK


@dataclass
class _Begun:
    """A run under way: since when it is watched and its last epoch, each with how many epochs were behind it then.

    Of one that has epochs behind it when it is first seen, the first epoch that is seen began before.
    """

    since: float
    before: int
    last: float
    epochs: int
    watched: bool


class Estimate:
    """Seconds that remain, from mean seconds per epoch, by method: of finished runs, else of epochs under way.

    A method of which nothing is known yet is taken to need, per backward pass, what the others need on average.

    Args:
        methods: the comparison's, single-task baselines included; each has as many runs as another.
        tasks: how many the problem has.
        epochs: of each run.
        clock: seconds from any moment on.
    """

    def __init__(
        self, methods: Sequence[str], tasks: int, epochs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._passes = {name: tasks if _pass_per_task(name) else 1 for name in methods}
        self._epochs, self._clock = epochs, clock
        self._measured: dict[str, list[float]] = {}
        self._done: Counter[str] = Counter()
        self._begun: dict[Run, _Begun] = {}

    def finished(self, record: Record) -> None:
        """Takes the record of a run."""
        self._done[record["method"]] += 1
        self._begun.pop(Run(record["run"], record["method"]), None)
        if record["status"] == "finished":
            self._measured.setdefault(record["method"], []).append(record["seconds"] / len(record["epochs"]))

    def under_way(self, runs: Mapping[Run, int]) -> None:
        """Takes which runs are under way, and how many epochs are behind each."""
        now, known = self._clock(), self._begun
        self._begun = {
            run: known.get(run) or _Begun(now, epochs, now, epochs, epochs == 0) for run, epochs in runs.items()
        }
        for run, begun in self._begun.items():
            if runs[run] != begun.epochs:
                jumped = begun.epochs == begun.before and runs[run] > begun.before + 1  # gone on with from a checkpoint
                if jumped or not begun.watched:
                    begun.since, begun.before, begun.watched = now, runs[run], True
                begun.last, begun.epochs = now, runs[run]

    def first(self) -> float | None:
        """Returns in how many seconds the first of the runs under way is finished; None if that cannot be known."""
        return min(self._rests(self._seconds_per_epoch()), default=None)

    def left(self, runs: int, workers: int) -> float | None:
        """Returns in how many seconds all is trained; None if that cannot be known.

        Args:
            runs: how many the comparison will have in all.
            workers: how many are trained at the same time.
        """
        seconds = self._seconds_per_epoch()
        if not seconds:
            return None
        begun = Counter(run.method for run in self._begun)
        each = runs / len(self._passes)
        waiting = {name: max(0.0, each - self._done[name] - begun[name]) for name in self._passes}
        share = max(0, runs - self._done.total() - begun.total()) / (sum(waiting.values()) or 1)
        rests = self._rests(seconds)
        alone = {name: self._epochs * seconds[name] for name, count in waiting.items() if count * share > 0}
        work = sum(rests) + sum(waiting[name] * share * one for name, one in alone.items())
        return max(work / workers, *rests, *alone.values(), 0.0)

    def _rests(self, seconds: Mapping[str, float]) -> list[float]:
        """What each run under way needs yet."""
        now = self._clock()
        return [
            max(0.0, (self._epochs - begun.epochs) * seconds[run.method] - (now - begun.last))
            for run, begun in self._begun.items()
            if run.method in seconds
        ]

    def _seconds_per_epoch(self) -> dict[str, float]:
        """By method; nothing as long as no epoch of any was seen."""
        found = {name: list(values) for name, values in self._measured.items()}
        for run, begun in self._begun.items():
            if begun.epochs > begun.before and run.method not in self._measured:
                found.setdefault(run.method, []).append((begun.last - begun.since) / (begun.epochs - begun.before))
        means = {name: fmean(values) for name, values in found.items()}
        if not means:
            return {}
        a_pass = fmean(mean / self._passes.get(name, 1) for name, mean in means.items())
        return {name: a_pass * passes for name, passes in self._passes.items()} | means


def _pass_per_task(row: str) -> bool:
    spec = None if replayed_by(row) is not None else spec_of(row)
    return spec is not None and spec.passes == PASS_PER_TASK


def in_words(seconds: float) -> str:
    """Returns a time as one says it: "about 20 s", "about 5 min", "about 3 h"."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {5 * max(1, round(seconds / 5))} s"
