"""The tests that a verdict rests on: which pairs are tested, and what their p-values are corrected for."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.rows import FIXED, parts_of, replayed_by
from equipoise.bench.experiment.statistics import LEVEL, SINGLE, Column, Summary, holm, paired_p_value


@dataclass(frozen=True)
class PairedTest:
    """One paired test, of two methods or of a method and single-task training.

    Attributes:
        better, worse: as their means are.
        task: on whose main measure; None for Δm.
        gap: how far the means are apart, in points of Δm or in the measure's own unit, not negative.
        spread: standard deviation of the differences over seeds.
        seeds: how many pairs.
        raw: the p-value of the paired t-test on its own; NaN if there was nothing to test.
        corrected: that p-value, corrected for everything that the verdict tests and for all planned looks: the one
            p-value that is shown anywhere.
        factor: what the raw p-value is multiplied by at least where the same is looked at once.
    """

    better: str
    worse: str
    task: str | None
    gap: float
    spread: float
    seeds: int
    raw: float
    corrected: float = math.nan
    factor: float = math.nan

    @property
    def certain(self) -> bool:
        """Whether it may be claimed."""
        return self.corrected < LEVEL

    @property
    def noise(self) -> bool:
        """Whether not even an uncorrected test sees a difference."""
        return self.raw >= LEVEL

    def lead_of(self, method: str) -> float:
        """The gap, negative where the method is the worse one."""
        return self.gap if method == self.better else -self.gap

    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of the gap, of this test alone."""
        reach = stats.t.ppf(1 - LEVEL / 2, self.seeds - 1) * self.spread / math.sqrt(self.seeds)
        return self.gap - reach, self.gap + reach

    def seeds_to_decide(self, gap: float, most: int) -> int | None:
        """Returns how many seeds, more than these, would make a gap certain if the spread stays; None beyond `most`."""
        if math.isnan(self.factor) or not self.spread or gap <= 0:
            return None
        for seeds in range(self.seeds + 1, most + 1):
            if self.factor * 2 * special.stdtr(seeds - 1, -gap / self.spread * math.sqrt(seeds)) < LEVEL:
                return seeds
        return None


class PairedTests:
    """All tests of a verdict; `of` finds one."""

    def __init__(self, tests: Sequence[PairedTest]) -> None:
        self._tests = {(frozenset((test.better, test.worse)), test.task): test for test in tests}

    def __len__(self) -> int:
        return len(self._tests)

    def __iter__(self) -> Iterator[PairedTest]:
        return iter(self._tests.values())

    def find(self, first: str, second: str, task: str | None = None) -> PairedTest | None:
        """Returns the test of two rows, on a task or in Δm; None if they were not tested."""
        return self._tests.get((frozenset((first, second)), task))

    def of(self, first: str, second: str, task: str | None = None) -> PairedTest:
        """Returns the test of two rows that were tested."""
        return self._tests[frozenset((first, second)), task]

    def beats(self, first: str, second: str) -> bool:
        """Whether the first is certain to be better in Δm."""
        test = self.find(first, second)
        return test is not None and test.certain and test.better == first


def is_fixed(method: str) -> bool:
    """Whether a row holds the best of the fixed weights that were searched, with whatever optimizer."""
    return parts_of(method)[0] == FIXED and replayed_by(method) is None


def paired_tests(summary: Summary, methods: Sequence[str], level: float) -> PairedTests:
    """Tests everything that a verdict asks, and corrects for all of it.

    The questions are: do methods differ from equal weights in Δm; do they on single tasks; do they differ among
    themselves or from single-task training in Δm; do they differ from the best fixed weighting in Δm; does a method
    differ from the replay of its weights in Δm. Within a question Holm's method corrects; the result is multiplied by
    the number of questions that have a test, and by `LEVEL / level` where this look may spend only `level`: so a
    p-value below `LEVEL` is one that this look may claim.

    Args:
        summary: the numbers.
        methods: rows that have a Δm of every seed; a replay is tested against its origin alone.
        level: the probability of a false claim that this look may spend.
    """
    *measures, delta = (column for column in summary.columns if column.main)
    replays = [(of, method) for method in methods if (of := replayed_by(method)) is not None]
    rows = [method for method in methods if replayed_by(method) is None]
    others = [method for method in rows if method != REFERENCE]
    free = [method for method in others if not is_fixed(method)]
    fixed = [method for method in others if is_fixed(method)]
    against = [(method, REFERENCE) for method in others] if REFERENCE in rows else []
    within = [*itertools.combinations(free, 2), *itertools.combinations(fixed, 2)]
    among = [*within, *((method, SINGLE) for method in rows if summary.reference == SINGLE)]
    questions: list[list[tuple[str, str, Column]]] = [
        [(*pair, delta) for pair in against],
        [(*pair, column) for pair in against for column in measures],
        [(*pair, delta) for pair in among],
        [(*pair, delta) for pair in itertools.product(free, fixed)],
        [(*pair, delta) for pair in replays if pair[0] in rows],
    ]
    asked = [question for question in questions if question]
    found: list[PairedTest] = []
    for question in asked:
        tests = [_test(summary, *pair) for pair in question]
        raw = sorted(test.raw for test in tests if not math.isnan(test.raw))
        for test, p_value in zip(tests, holm([test.raw for test in tests]), strict=True):
            if not math.isnan(p_value):
                larger = len(raw) - bisect_left(raw, test.raw)
                scaled = min(1.0, len(asked) * p_value * LEVEL / level)
                test = replace(test, corrected=scaled, factor=len(asked) * larger)
            found.append(test)
    return PairedTests(found)


def _test(summary: Summary, first: str, second: str, column: Column) -> PairedTest:
    """One test, not yet corrected."""
    one = np.asarray(summary.cells[first][column].values)
    two = np.zeros(len(one)) if second == SINGLE else np.asarray(summary.cells[second][column].values)  # Δm is a gain
    differences = one - two
    gap = float(differences.mean())
    ahead = gap >= 0 if column.measure.higher_is_better else gap <= 0
    return PairedTest(
        better=first if ahead else second,
        worse=second if ahead else first,
        task=column.task,
        gap=abs(gap),
        spread=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
        seeds=len(differences),
        raw=paired_p_value(one, two),
    )
