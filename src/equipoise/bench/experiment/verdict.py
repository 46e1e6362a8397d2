"""What follows from a comparison and what does not, in sentences that claim no more than the tests carry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.statistics import (
    ENOUGH_SEEDS,
    LEVEL,
    MIN_SEEDS,
    SINGLE,
    Column,
    Summary,
    holm,
    paired_p_value,
)
from equipoise.monitor.costs import Cost

MANY = 6
"""Of more tasks or methods than this, sentences give the number and not the names."""

NORMAL = " and that differences between seeds are roughly normal, which so few of them cannot show"
"""What a t-test rests on besides, with few seeds."""

CHEAPER = 0.8
"""A method is called cheaper than another if it takes less than this share of its time."""

MAX_SEEDS = 30
"""More seeds than this are not recommended to anybody."""


@dataclass(frozen=True)
class PairedTest:
    """One paired test, of two methods or of a method and single-task training.

    Attributes:
        better, worse: as their means are.
        task: on whose main measure; None for Δm.
        gap: how far the means are apart, in points of Δm or in the measure's own unit, not negative.
        spread: standard deviation of the differences over seeds.
        seeds: how many pairs.
        p_value: of the paired t-test; NaN if there was nothing to test.
        corrected: that p-value, corrected for everything that the verdict tests.
    """

    better: str
    worse: str
    task: str | None
    gap: float
    spread: float
    seeds: int
    p_value: float
    corrected: float

    @property
    def certain(self) -> bool:
        """Whether it may be claimed."""
        return self.corrected < LEVEL

    @property
    def noise(self) -> bool:
        """Whether not even an uncorrected test sees a difference."""
        return self.p_value >= LEVEL


@dataclass(frozen=True)
class Verdict:
    """The sentences and what they rest on.

    Attributes:
        sentences: the first is the verdict itself, the others say what else is known.
        claims: all that the sentences claim to be different.
        tests: all that was tested.
    """

    sentences: tuple[str, ...]
    claims: tuple[PairedTest, ...]
    tests: tuple[PairedTest, ...]


def judge(summary: Summary, methods: Sequence[str], costs: Mapping[str, Cost]) -> Verdict:
    """Says which method serves the tasks best, against equal weights, the other methods and single-task training.

    Three questions are asked: whether methods differ from equal weights in Δm, whether they do on single tasks, and
    whether they differ among themselves or from single-task training in Δm. The p-values of a question's paired tests
    are corrected by Holm's method and then multiplied by the number of questions, so that the probability of any
    false claim is at most `LEVEL`. That the best method is picked by looking is covered: all pairs are tested.
    Only methods that finished every seed are judged, since a method that diverges on hard seeds would look good.

    Args:
        summary: the numbers.
        methods: in the table's order.
        costs: method → cost, where known.
    """
    delta = summary.columns[-1]
    judged = {
        method: summary.cells[method][delta].mean
        for method in methods
        if summary.complete(summary.cells[method].get(delta)) and np.isfinite(summary.cells[method][delta].values).all()
    }
    tests = _test_all(summary, list(judged))
    writer = _Writer(judged, tests, costs, [column for column in summary.columns if column.main and column.task])
    sentences = writer.write(summary.seeds)
    left_out = [method for method in methods if method not in judged]
    if left_out:
        reasons = [f"{_name(method)} ({_state(summary, method)})" for method in left_out]
        sentences.append(f"Not judged: {_join(reasons)}.")
    claims = tuple(test for test in tests if test.certain)
    if any(not math.isnan(test.p_value) for test in tests):
        sentences.append(
            f"The p-values of this verdict are corrected for all {len(tests)} comparisons that it looked at (Holm): "
            f"the chance that it makes any false claim is at most {LEVEL:.0%}, provided that the number of seeds was "
            f"fixed before any result was seen{NORMAL if summary.seeds < ENOUGH_SEEDS else ''}."
        )
    return Verdict(tuple(sentences), claims, tests)


def _test_all(summary: Summary, methods: Sequence[str]) -> tuple[PairedTest, ...]:
    """All tests, with p-values corrected within each question and for the number of questions."""
    *measures, delta = (column for column in summary.columns if column.main)
    others = [method for method in methods if method != REFERENCE]
    against = [(method, REFERENCE) for method in others] if REFERENCE in methods else []
    questions: list[list[tuple[str, str, Column]]] = [
        [(*pair, delta) for pair in against],
        [(*pair, column) for pair in against for column in measures],
        [(*pair, delta) for pair in (*itertools.combinations(others, 2), *((method, SINGLE) for method in methods))],
    ]
    asked = [question for question in questions if question]
    found = []
    for question in asked:
        plain = [_test(summary, *pair) for pair in question]
        corrected = holm([test.p_value for test in plain])
        found += [_corrected(test, min(1.0, len(asked) * p)) for test, p in zip(plain, corrected, strict=True)]
    return tuple(found)


def _test(summary: Summary, first: str, second: str, column: Column) -> PairedTest:
    """One test, not yet corrected."""
    one = summary.cells[first][column].values
    zero = (0.0,) * len(one)  # Δm is against single-task training already
    two = zero if second == SINGLE else summary.cells[second][column].values
    differences = np.subtract(one, two)
    gap = float(differences.mean())
    ahead = gap >= 0 if column.measure.higher_is_better else gap <= 0
    return PairedTest(
        better=first if ahead else second,
        worse=second if ahead else first,
        task=column.task,
        gap=abs(gap),
        spread=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
        seeds=len(differences),
        p_value=paired_p_value(one, two),
        corrected=math.nan,
    )


def _corrected(test: PairedTest, p_value: float) -> PairedTest:
    return replace(test, corrected=math.nan if math.isnan(test.p_value) else p_value)


class _Writer:
    """Writes the sentences.

    Args:
        judged: method → mean Δm.
        tests: all of them.
        costs: method → cost, where known.
        measures: the main column of every task.
    """

    def __init__(
        self,
        judged: Mapping[str, float],
        tests: Sequence[PairedTest],
        costs: Mapping[str, Cost],
        measures: Sequence[Column],
    ) -> None:
        self._order = sorted(judged, key=lambda method: -judged[method])
        self._delta, self._costs = judged, costs
        self._tasks = [str(column.task) for column in measures]
        self._tests = {(frozenset((c.better, c.worse)), c.task): c for c in tests}

    def write(self, seeds: int) -> list[str]:
        """Returns the sentences, the verdict itself first."""
        if not self._order:
            return ["No method finished every seed: there is nothing to judge."]
        leader = self._order[0]
        if seeds < MIN_SEEDS:
            return self._too_few(leader, seeds)
        rest = [method for method in self._order[1:] if REFERENCE not in (leader, method)]
        if len(self._order) == 1:
            head = f"{_name(leader)} alone was judged: nothing says whether another method serves better"
        elif leader == REFERENCE:
            head = "Equal weights have the highest Δm, and no method is shown to beat them in it"
            rest = self._order[1:]
        elif REFERENCE in self._order:
            head = self._against_equal(leader)
        else:
            head = f"{_name(leader)} has the highest Δm ({_percent(self._delta[leader])}){self._time(leader)}"
        lead = self._lead(leader, rest)
        sentences = [_sentence(f"{head}; {lead}" if lead else head)]
        sentences += [*self._others_against_equal(leader), *self._cheaper(leader), self._against_single()]
        return [*sentences, *self._more_seeds(leader, seeds)]

    def _too_few(self, leader: str, seeds: int) -> list[str]:
        """With fewer seeds than a test needs: what was seen, and that it shows nothing."""
        seen = [f"{_name(method)} {_percent(self._delta[method])}" for method in self._order[:MANY]]
        ran = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        return [
            f"{ran} too few for a paired t-test, which needs at least {MIN_SEEDS}: no difference between methods is "
            "shown here.",
            f"Mean Δm, highest first: {', '.join(seen)}{', …' if len(self._order) > MANY else ''}.",
        ]

    def _against_equal(self, leader: str) -> str:
        """The leader, which is not equal weights, against them."""
        whole = self._of(leader, REFERENCE)
        tests = [self._of(leader, REFERENCE, task) for task in self._tasks]
        won = [test for test in tests if test.certain and test.better == leader]
        lost = [test for test in tests if test.certain and test.worse == leader]
        name, time = _name(leader), self._time(leader)
        if not whole.certain and not won:
            unsure = (
                f"{name} has the highest Δm, {_points(whole)} above equal weights, but that lead is {_doubt(whole)}"
            )
            worse = f"; {_on(lost, len(tests))} it does worse ({_p(lost)})" if lost else ""
            shown = any(test.certain and test.worse == REFERENCE for test in self._tests.values())
            return f"{unsure}{worse}" if shown else f"No lead over equal weights is shown: {unsure}{worse}"
        if whole.certain and len(won) == len(tests) > 1:
            return f"{name} beats equal weights {_on(won, len(tests))} and in Δm ({_p([whole, *won])}){time}"
        parts = []
        if whole.certain:
            parts.append(f"in Δm (by {_points(whole)}, {_p([whole])})")
        if won:
            parts.append(f"{_on(won, len(tests))} ({_p(won)})")
        text = f"{name} beats equal weights {' and '.join(parts)}{time}"
        if not whole.certain:
            text += f"; its lead of {_points(whole)} in Δm is {_doubt(whole)}"
        if lost:
            text += f"; {_on(lost, len(tests))} it does worse ({_p(lost)})"
        unsure_tasks = [test for test in tests if test not in won and test not in lost]
        if unsure_tasks and len(tests) > 1:
            text += f"; {_on(unsure_tasks, len(tests))} no difference is shown"
        return text

    def _others_against_equal(self, leader: str) -> list[str]:
        """What the other methods do against equal weights."""
        if REFERENCE not in self._order:
            return []
        others = [method for method in self._order if method not in (leader, REFERENCE)]
        sentences = []
        if leader != REFERENCE:
            tests = [self._of(method, REFERENCE) for method in others]
            won = [test for test in tests if test.certain and test.worse == REFERENCE]
            lost = [test for test in tests if test.certain and test.better == REFERENCE]
            if won:
                verb = _verb([test.better for test in won], "beats", "beat")
                also = "also " if self._of(leader, REFERENCE).certain else ""
                sentences.append(f"{_names([t.better for t in won])} {also}{verb} equal weights in Δm ({_p(won)})")
            if lost:
                verb = _verb([test.worse for test in lost], "does", "do")
                sentences.append(
                    f"{_names([t.worse for t in lost])} {verb} worse than equal weights in Δm ({_p(lost)})"
                )
        return [_sentence(sentence) for sentence in (*sentences, *self._single_tasks(others))]

    def _single_tasks(self, methods: Sequence[str]) -> list[str]:
        """Tasks on which methods beat equal weights that do not in Δm."""
        found: list[str] = []
        more: list[list[PairedTest]] = []
        for method in methods:
            tests = [self._of(method, REFERENCE, task) for task in self._tasks]
            won = [test for test in tests if test.certain and test.better == method]
            whole = self._of(method, REFERENCE)
            if won and not (whole.certain and whole.better == method):
                if len(found) < MANY:
                    found.append(f"{_name(method)} beats equal weights {_on(won, len(tests))} ({_p(won)})")
                else:
                    more.append(won)
        if more:
            others = f"{len(more)} more method{'s beat' if len(more) > 1 else ' beats'}"
            found.append(f"{others} equal weights on single tasks ({_p([test for won in more for test in won])})")
        return found

    def _lead(self, leader: str, rest: Sequence[str]) -> str:
        """The leader's lead in Δm over other methods."""
        tests = [self._of(leader, method) for method in rest]
        beaten = [test for test in tests if test.certain]
        noise = [method for method, test in zip(rest, tests, strict=True) if test.noise]
        unsure = [method for method, test in zip(rest, tests, strict=True) if not test.certain and not test.noise]
        they, whose = ("they beat", "their") if leader == REFERENCE else ("it beats", "its")
        parts = []
        if beaten:
            names = _names([test.worse for test in beaten])
            names = f"all {len(tests)} other methods" if len(beaten) == len(tests) > 1 else names
            parts.append(f"{they} {names} in Δm ({_p(beaten)})")
        if noise:
            parts.append(f"{whose} lead over {_names(noise)} is within noise")
        if unsure:
            parts.append(f"{whose} lead over {_names(unsure)} is not certain")
        return ", ".join(parts)

    def _cheaper(self, leader: str) -> list[str]:
        """A cheaper method that the leader is not told apart from."""
        if leader not in self._costs:
            return []
        limit = CHEAPER * self._costs[leader].relative_time
        equal = [
            method
            for method in self._order[1:]
            if method in self._costs and self._of(leader, method).noise and self._costs[method].relative_time < limit
        ]
        if not equal:
            return []
        other = min(equal, key=lambda method: self._costs[method].relative_time)
        test = self._of(leader, other)
        share = self._costs[other].relative_time / self._costs[leader].relative_time
        sentence = (
            f"{_name(other)} {_verb([other], 'takes', 'take')} {share:.2f} × the time of {_name(leader)}, for a Δm "
            f"that is {_points(test)} lower, within noise"
        )
        return [_sentence(sentence)]

    def _against_single(self) -> str:
        """Every method against single-task training."""
        tests = [self._of(method, SINGLE) for method in self._order]
        above = [test for test in tests if test.certain and test.worse == SINGLE]
        below = [test for test in tests if test.certain and test.better == SINGLE]
        parts = []
        if above:
            verb = _verb([test.better for test in above], "beats", "beat")
            parts.append(f"{_names([test.better for test in above])} {verb} single-task training in Δm ({_p(above)})")
        else:
            parts.append("no method is shown to beat single-task training")
        if below:
            verb = _verb([test.worse for test in below], "does", "do")
            names = "all of them" if len(below) == len(tests) > 1 else _names([test.worse for test in below])
            parts.append(f"{names} {verb} worse ({_p(below)})")
        return _sentence("; ".join(parts))

    def _more_seeds(self, leader: str, seeds: int) -> list[str]:
        """How many seeds would decide the first thing that this many do not."""
        rivals = [method for method in (REFERENCE, *self._order) if method in self._order and method != leader]
        for rival in rivals:
            test = self._of(leader, rival)
            if test.certain or math.isnan(test.corrected) or not test.spread:
                continue
            factor = max(1.0, test.corrected / test.p_value)
            for more in range(seeds + 1, MAX_SEEDS + 1):
                if factor * 2 * special.stdtr(more - 1, -test.gap / test.spread * math.sqrt(more)) < LEVEL:
                    return [
                        f"About {more} seeds would decide between {_name(leader)} and {_name(rival)}, if the gap and "
                        "its spread over seeds stay what they are: plan a new comparison with that many, in a folder "
                        "of its own. Adding seeds to this one until a difference shows makes false claims likelier."
                    ]
            return []
        return []

    def _of(self, first: str, second: str, task: str | None = None) -> PairedTest:
        return self._tests[frozenset((first, second)), task]

    def _time(self, method: str) -> str:
        return f" at {self._costs[method].relative_time:.2f} × the time" if method in self._costs else ""


def _state(summary: Summary, method: str) -> str:
    """Why a method is not judged."""
    finished = max((len(cell.values) for cell in summary.cells[method].values()), default=0)
    if finished < summary.seeds:
        failed = len(summary.failures.get(method, ()))
        return f"finished {finished} of {summary.seeds} seeds{f', failed in {failed}' if failed else ''}"
    return "no Δm: a task has no value on test"


def _name(method: str) -> str:
    return {REFERENCE: "equal weights", SINGLE: "single-task training"}.get(method, method)


def _verb(methods: Sequence[str], one: str, several: str) -> str:
    """The verb's form: equal weights are several."""
    return one if len(methods) == 1 and methods[0] != REFERENCE else several


def _sentence(text: str) -> str:
    """With a full stop, and a capital where no method's name stands first."""
    begins = text.startswith(("equal weights", "no method"))
    return f"{text[0].upper() if begins else text[0]}{text[1:]}."


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _names(methods: Sequence[str]) -> str:
    return _join([_name(method) for method in methods]) if len(methods) <= MANY else f"{len(methods)} methods"


def _on(tests: Sequence[PairedTest], tasks: int) -> str:
    """On which tasks."""
    if len(tests) == tasks > 1:
        return f"on all {tasks} tasks"
    names = [str(test.task) for test in tests]
    return f"on {_join(names)}" if len(names) <= MANY else f"on {len(names)} of {tasks} tasks"


def _percent(value: float) -> str:
    return f"{value:+.1f} %" if abs(value) < 1e5 else f"{value:+.2g} %"


def _points(test: PairedTest) -> str:
    return f"{test.gap:.1f} points" if test.gap < 1e5 else f"{test.gap:.2g} points"


def _p(tests: Sequence[PairedTest]) -> str:
    """The bound that all of them keep."""
    return "p < 0.01" if max(test.corrected for test in tests) < 0.01 else f"p < {LEVEL:g}"


def _doubt(test: PairedTest) -> str:
    """Why a difference may not be claimed."""
    if math.isnan(test.p_value):
        return "the same in every seed, so that there is no spread to test it against"
    if test.noise:
        return f"within noise (p = {test.p_value:.2f})"
    return f"not certain (p = {test.p_value:.2g} alone, {test.corrected:.2g} for all comparisons made here)"
