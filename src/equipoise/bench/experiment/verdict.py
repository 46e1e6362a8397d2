"""What follows from a comparison and what does not, in sentences that claim no more than the tests carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.front import FrontPoint
from equipoise.bench.experiment.paired import PairedTest, PairedTests, is_fixed, paired_tests
from equipoise.bench.experiment.recommendation import MAX_SEEDS, cheapest, recommend
from equipoise.bench.experiment.rows import replayed_by
from equipoise.bench.experiment.statistics import ENOUGH_SEEDS, EQUAL, LEVEL, MIN_SEEDS, SINGLE, Summary
from equipoise.bench.experiment.training_length import TRAINED, TrainingLength
from equipoise.bench.experiment.wording import (
    MANY,
    as_sentence,
    bound,
    doubt,
    gap_of,
    join,
    name_of,
    names_of,
    on,
    percent,
    points,
    verb_of,
)
from equipoise.bench.problems import Measure
from equipoise.monitor.costs import Cost

CHEAPER = 0.8
"""A method is called cheaper than another if it takes less than this share of its time or memory."""

DETAILED = 3
"""Of more tasks than this, a sentence does not say how large differences are that are not certain."""

NORMAL = ", and that differences between seeds are roughly normal"
"""What a t-test rests on besides, with few seeds."""


@dataclass(frozen=True)
class Verdict:
    """The answer, the sentences and what they rest on.

    Attributes:
        use: "Use: …", the answer in one line.
        decided: whether that names something other than more seeds.
        sentences: the first is the verdict itself, the others say what else is known.
        claims: all that the sentences claim to be different.
        tests: all that was tested.
        rising: whether the answer rests on curves that were still rising at their end.
    """

    use: str
    decided: bool
    sentences: tuple[str, ...]
    claims: tuple[PairedTest, ...]
    tests: PairedTests
    rising: bool


def judge(
    summary: Summary,
    methods: Sequence[str],
    costs: Mapping[str, Cost],
    *,
    level: float = LEVEL,
    planned: int | None = None,
    front: Sequence[FrontPoint] = (),
    length: TrainingLength = TRAINED,
    remarks: Sequence[str] = (),
) -> Verdict:
    """Says which method serves the tasks best, against equal weights, the other methods and single-task training.

    What is tested and how p-values are corrected is `paired.paired_tests`'s: the probability of any false claim is at
    most `level`. That the best method is picked by looking is covered: all pairs are tested. What to use is
    `recommendation.recommend`'s. Only methods that finished every seed are judged, since a method that diverges on
    hard seeds would look good.

    Args:
        summary: the numbers.
        methods: in the table's order.
        costs: method → cost, where known.
        level: the probability of a false claim that this look may spend; see `sequential.level`.
        planned: seeds at the last look of a sequential plan; None if this is the only one.
        front: the fixed weightings among which `fixed` was found.
        length: whether runs were trained to their end.
        remarks: what else has to be known, a sentence each.
    """
    delta = summary.columns[-1]
    complete = {
        method: summary.cells[method][delta].mean
        for method in methods
        if summary.complete(summary.cells[method].get(delta)) and np.isfinite(summary.cells[method][delta].values).all()
    }
    judged = {method: mean for method, mean in complete.items() if replayed_by(method) is None}
    tests = paired_tests(summary, list(complete), level)
    measures = {str(column.task): column.measure for column in summary.columns if column.main and column.task}
    use = recommend(judged, tests, costs, list(measures), summary.seeds, planned, length)
    sentences = _Writer(judged, tests, costs, measures, len(front)).write(summary.seeds, planned is not None)
    left_out = [method for method in methods if method not in complete]
    if left_out:
        reasons = [f"{name_of(method)} ({_state(summary, method)})" for method in left_out]
        sentences.append(f"Not judged: {join(reasons)}.")
    sentences += remarks
    if judged and not length.known:
        sentences.append(
            "Whether longer training would change this is not known: flat curves prove nothing in few epochs, or under "
            "a falling learning rate."
        )
    claims = tuple(test for test in tests if test.certain)
    if any(not math.isnan(test.raw) for test in tests):
        all_of = "the one comparison" if len(tests) == 1 else f"all {len(tests)} comparisons"
        fixed = "the number of seeds was" if planned is None else "the plan of looks was"
        sentences.append(
            f"p-values are corrected for {all_of} made here (Holm): the chance of any false claim "
            f"is at most {LEVEL:.0%}, provided that {fixed} fixed before any result was seen"
            f"{NORMAL if summary.seeds < ENOUGH_SEEDS else ''}."
        )
    return Verdict(f"Use: {use.text}", use.decided, tuple(sentences), claims, tests, bool(judged and length.rising))


class _Writer:
    """Writes the sentences.

    Args:
        judged: method → mean Δm.
        tests: all of them.
        costs: method → cost, where known.
        measures: task → its main measure.
        weightings: among how many fixed ones the best was found.
    """

    def __init__(
        self,
        judged: Mapping[str, float],
        tests: PairedTests,
        costs: Mapping[str, Cost],
        measures: Mapping[str, Measure],
        weightings: int,
    ) -> None:
        self._order = sorted(judged, key=lambda method: -judged[method])
        self._delta, self._costs, self._measures, self._weightings = judged, costs, measures, weightings
        self._tests, self._of = tests, tests.of

    def write(self, seeds: int, sequential: bool) -> list[str]:
        """Returns the sentences, the verdict itself first."""
        if not self._order:
            return ["No method finished every seed: there is nothing to judge."]
        leader = self._order[0]
        if seeds < MIN_SEEDS:
            return self._too_few(leader, seeds)
        rest = [method for method in self._order[1:] if REFERENCE not in (leader, method)]
        if len(self._order) == 1:
            was = verb_of([leader], "was", "were")
            head = f"{name_of(leader)} alone {was} judged: nothing says whether another method serves better"
        elif leader == REFERENCE:
            head = "Equal weights have the highest Δm, and no method is shown to beat them in it"
            rest = self._order[1:]
        elif REFERENCE in self._order:
            head = self._against_equal(leader)
        else:
            head = f"{name_of(leader)} has the highest Δm ({percent(self._delta[leader])}){self._time(leader)}"
        lead = self._lead(leader, rest)
        sentences = [as_sentence(f"{head}; {lead}" if lead else head)]
        sentences += [*self._others_against_equal(leader), *self._against_fixed(), *self._replays()]
        sentences += [*self._cheaper(leader), *self._against_single()]
        return sentences if sequential else [*sentences, *self._more_seeds(leader)]

    def _too_few(self, leader: str, seeds: int) -> list[str]:
        """With fewer seeds than a test needs: what was seen, and that it shows nothing."""
        seen = [f"{name_of(method)} {percent(self._delta[method])}" for method in self._order[:MANY]]
        ran = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        return [
            f"{ran} too few for a paired t-test, which needs at least {MIN_SEEDS}: no difference between methods is "
            "shown here.",
            f"Mean Δm, highest first: {', '.join(seen)}{', …' if len(self._order) > MANY else ''}.",
        ]

    def _against_equal(self, leader: str) -> str:
        """The leader, which is not equal weights, against them."""
        whole = self._of(leader, REFERENCE)
        tests = [self._of(leader, REFERENCE, task) for task in self._measures]
        won = [test for test in tests if test.certain and test.better == leader]
        lost = [test for test in tests if test.certain and test.worse == leader]
        name, time = name_of(leader), self._time(leader)
        if not whole.certain and not won:
            unsure = (
                f"{name} has the highest Δm, {points(whole.gap)} above equal weights, but that lead is {doubt(whole)}"
            )
            worse = _certain_losses(leader, lost, len(tests))
            shown = any(test.certain and test.worse == REFERENCE for test in self._tests)
            return f"{unsure}{worse}" if shown else f"No lead over equal weights is shown: {unsure}{worse}"
        if whole.certain and len(won) == len(tests) > 1:
            return f"{name} beats equal weights {on(won, len(tests))} and in Δm ({bound([whole, *won])}){time}"
        parts = []
        if whole.certain:
            parts.append(f"in Δm (by {points(whole.gap)}, {bound([whole])})")
        if won:
            parts.append(f"{on(won, len(tests))} ({bound(won)})")
        text = f"{name} beats equal weights {' and '.join(parts)}{time}"
        if not whole.certain:
            text += f"; its lead of {points(whole.gap)} in Δm is {doubt(whole)}"
        text += self._price(leader, tests)
        return text + (self._uncertain(leader, tests, True) if len(tests) > 1 else "")

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
                verb = verb_of([test.better for test in won], "beats", "beat")
                also = "also " if self._of(leader, REFERENCE).certain else ""
                sentences.append(f"{names_of([t.better for t in won])} {also}{verb} equal weights in Δm ({bound(won)})")
            if lost:
                verb = verb_of([test.worse for test in lost], "does", "do")
                sentences.append(
                    f"{names_of([t.worse for t in lost])} {verb} worse than equal weights in Δm ({bound(lost)})"
                )
        return [as_sentence(text) for text in (*sentences, *self._single_tasks(others))]

    def _single_tasks(self, methods: Sequence[str]) -> list[str]:
        """Tasks on which methods beat equal weights that do not in Δm, with what they lose on others."""
        found: list[str] = []
        more: list[list[PairedTest]] = []
        for method in methods:
            tests = [self._of(method, REFERENCE, task) for task in self._measures]
            won = [test for test in tests if test.certain and test.better == method]
            if won and not self._tests.beats(method, REFERENCE):
                if len(found) < MANY:
                    gain = f"{name_of(method)} {verb_of([method], 'beats', 'beat')} equal weights {on(won, len(tests))}"
                    found.append(f"{gain} ({bound(won)}){self._price(method, tests)}")
                else:
                    more.append([test for test in tests if test.certain])
        if more:
            others = f"{len(more)} more method{'s beat' if len(more) > 1 else ' beats'}"
            text = f"{others} equal weights on single tasks ({bound([test for tests in more for test in tests])})"
            losers = sum(any(test.better == REFERENCE for test in tests) for tests in more)
            found.append(f"{text}; {losers} of them lose{'s' if losers == 1 else ''} on others" if losers else text)
        return found

    def _price(self, method: str, tests: Sequence[PairedTest]) -> str:
        """What a method loses against equal weights on single tasks, to stand behind what it gains on others."""
        lost = [test for test in tests if test.certain and test.worse == method]
        return f"{_certain_losses(method, lost, len(tests))}{self._uncertain(method, tests, False)}"

    def _uncertain(self, method: str, tests: Sequence[PairedTest], ahead: bool) -> str:
        """Tasks on which a method is ahead of equal weights, or behind them, and that is not certain: by how much."""
        found = [test for test in tests if not test.certain and (test.better == method) == ahead]
        is_there = verb_of([method], "it leads", "they lead") if ahead else verb_of([method], "it is", "they are")
        behind = "" if ahead else " behind"
        if len(found) > DETAILED:
            return f"; {on(found, len(tests))} {is_there}{behind}, not certain"
        by = "by " if ahead else ""
        return "".join(
            f"; on {test.task} {is_there} {by}{gap_of(test, self._measures[str(test.task)])}{behind}, "
            f"{doubt(test, briefly=True)}"
            for test in found
        )

    def _lead(self, leader: str, rest: Sequence[str]) -> str:
        """The leader's lead in Δm over other methods."""
        tests = [self._of(leader, method) for method in rest]
        beaten = [test for test in tests if test.certain]
        noise = [method for method, test in zip(rest, tests, strict=True) if test.noise]
        unsure = [method for method, test in zip(rest, tests, strict=True) if not test.certain and not test.noise]
        they, whose = ("they beat", "their") if leader == REFERENCE else ("it beats", "its")
        parts = []
        if beaten:
            names = names_of([test.worse for test in beaten])
            names = f"all {len(tests)} other methods" if len(beaten) == len(tests) > 1 else names
            parts.append(f"{they} {names} in Δm ({bound(beaten)})")
        if noise:
            parts.append(f"{whose} lead over {names_of(noise)} is within noise")
        if unsure:
            parts.append(f"{whose} lead over {names_of(unsure)} is not certain")
        return ", ".join(parts)

    def _against_fixed(self) -> list[str]:
        """Methods against the best fixed weights that were found at the same budget."""
        rivals = [method for method in self._order if method != REFERENCE and not is_fixed(method)]
        fixed = next((method for method in self._order if is_fixed(method)), None)
        if fixed is None or not rivals:
            return []
        tests = [self._of(method, fixed) for method in rivals]
        searched = f" found among {self._weightings}" if self._weightings else " found"
        above = [test for test in tests if test.certain and test.worse == fixed]
        below = [test for test in tests if test.certain and test.better == fixed]
        if above:
            verb = verb_of([test.better for test in above], "beats", "beat")
            text = (
                f"{names_of([test.better for test in above])} {verb} the best fixed weights{searched} ({bound(above)})"
            )
        else:
            text = f"no method is shown to beat the best fixed weights{searched}"
            lead = max((test for test in tests if test.worse == fixed), key=lambda test: test.gap, default=None)
            if lead is not None:
                text += f": {lead.better} leads by {points(lead.gap)}, {doubt(lead)}"
        if below:
            text += f"; they beat {names_of([test.worse for test in below])} ({bound(below)})"
        return [as_sentence(text)]

    def _replays(self) -> list[str]:
        """Whether methods help by their weights or by moving them."""
        return [as_sentence(self._replay(test)) for test in self._tests if test.task is None and _replayed(test)]

    def _replay(self, test: PairedTest) -> str:
        method = _replayed(test)
        if test.certain and test.better == method:
            return (
                f"{method} helps by moving its weights: held fixed at their means, Δm is {points(test.gap)} lower "
                f"({bound([test])})"
            )
        if test.certain:
            return f"{method} does worse than its own mean weights held fixed, by {points(test.gap)} ({bound([test])})"
        if math.isnan(test.raw):
            return f"{method} and its mean weights held fixed: the difference has no spread to test it against"
        low, high = test.interval()
        sign = 1 if test.better == method else -1
        low, high = sorted((sign * low, sign * high))
        helps = "helps by its weights" if self._tests.beats(method, REFERENCE) else "gains nothing shown by moving them"
        return (
            f"{method} {helps}: held fixed at their means, no difference is shown (Δm of moving them {low:+.1f} to "
            f"{high:+.1f} points, 95 % interval on its own, which is not equality)"
        )

    def _cheaper(self, leader: str) -> list[str]:
        """A cheaper method that the leader is not told apart from."""
        if leader not in self._costs:
            return []
        dear = self._costs[leader]
        equal = [
            method
            for method in self._order[1:]
            if method in self._costs and self._of(leader, method).noise and _cheaper_than(self._costs[method], dear)
        ]
        other = cheapest(equal, self._costs) if equal else None
        if other is None:
            return []
        cost, test = self._costs[other], self._of(leader, other)
        time, memory = cost.relative_time / dear.relative_time, cost.relative_memory / dear.relative_memory
        shares = [f"{time:.2f} × the time"] if time < CHEAPER or memory >= CHEAPER else []
        shares += [f"{memory:.2f} × the memory"] if memory < CHEAPER or memory > 1 / CHEAPER else []
        text = (
            f"{name_of(other)} {verb_of([other], 'takes', 'take')} {' and '.join(shares)} of {name_of(leader)}, for a "
            f"Δm that is {points(test.gap)} lower, within noise"
        )
        return [as_sentence(text)]

    def _against_single(self) -> list[str]:
        """Every method against single-task training; nothing where there is none."""
        found = [self._tests.find(method, SINGLE) for method in self._order]
        tests = [test for test in found if test is not None]
        if not tests:
            return []
        above = [test for test in tests if test.certain and test.worse == SINGLE]
        below = [test for test in tests if test.certain and test.better == SINGLE]
        parts = []
        if above:
            verb = verb_of([test.better for test in above], "beats", "beat")
            parts.append(
                f"{names_of([test.better for test in above])} {verb} single-task training in Δm ({bound(above)})"
            )
        else:
            parts.append("no method is shown to beat single-task training")
        if below:
            verb = verb_of([test.worse for test in below], "does", "do")
            names = "all of them" if len(below) == len(tests) > 1 else names_of([test.worse for test in below])
            parts.append(f"{names} {verb} worse ({bound(below)})")
        return [as_sentence("; ".join(parts))]

    def _more_seeds(self, leader: str) -> list[str]:
        """How many seeds would decide the first thing that these do not."""
        rivals = [method for method in (REFERENCE, *self._order) if method in self._order and method != leader]
        undecided = [test for rival in rivals if not (test := self._of(leader, rival)).certain and test.spread]
        more = undecided[0].seeds_to_decide(undecided[0].gap, MAX_SEEDS) if undecided else None
        if more is None:
            return []
        return [
            f"About {more} seeds would decide between {name_of(undecided[0].better)} and "
            f"{name_of(undecided[0].worse)}, if gap and spread stay: plan a new comparison with that many, in a folder "
            "of its own. Adding seeds to this one until a difference shows makes false claims likelier."
        ]

    def _time(self, method: str) -> str:
        return f" at {self._costs[method].relative_time:.2f} × the time" if method in self._costs else ""


def _certain_losses(method: str, lost: Sequence[PairedTest], tasks: int) -> str:
    does = verb_of([method], "it does", "they do")
    return f"; {on(lost, tasks)} {does} worse ({bound(lost)})" if lost else ""


def _replayed(test: PairedTest) -> str:
    """The method of a test against the replay of its weights; "" if it is another test."""
    for first, second in ((test.better, test.worse), (test.worse, test.better)):
        if replayed_by(second) == first:
            return first
    return ""


def _cheaper_than(cost: Cost, other: Cost) -> bool:
    """Whether something takes much less time or memory than something else, and not much more of the other."""
    time, memory = cost.relative_time / other.relative_time, cost.relative_memory / other.relative_memory
    return min(time, memory) < CHEAPER and max(time, memory) < 1 / CHEAPER


def _state(summary: Summary, method: str) -> str:
    """Why a method is not judged."""
    finished = max((len(cell.values) for cell in summary.cells[method].values()), default=0)
    if finished < summary.seeds:
        failed = len(summary.failures.get(method, ()))
        return f"finished {finished} of {summary.seeds} seeds{f', failed in {failed}' if failed else ''}"
    equal = summary.cells.get(EQUAL, {}).get(summary.columns[0])
    if summary.reference == EQUAL and not summary.complete(equal):
        return "no Δm of every seed: equal weights, which it is over, did not finish all"
    return "no Δm: a task has no value on test"
