"""The answer in one line: what to use, by a rule that is fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.paired import PairedTests
from equipoise.bench.experiment.statistics import MIN_SEEDS, SINGLE
from equipoise.bench.experiment.training_length import TrainingLength
from equipoise.bench.experiment.wording import MANY, join, name_of, points
from equipoise.monitor.costs import Cost

FIRST_SEEDS = 5
"""What is recommended where there are too few seeds for a test."""

MAX_SEEDS = 30
"""More seeds than this are not recommended to anybody."""

TIMES_ALIKE = 1.1
"""Steps whose times differ by no more than this factor cost the same time; then memory decides."""


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        text: what follows "Use: ".
        decided: whether that is something other than more seeds.
        method: the row that is named, if one is.
    """

    text: str
    decided: bool
    method: str | None = None


def recommend(
    judged: Mapping[str, float],
    tests: PairedTests,
    costs: Mapping[str, Cost],
    tasks: Sequence[str],
    seeds: int,
    planned: int | None,
    length: TrainingLength,
) -> Recommendation:
    """Decides what to use.

    The rule, in this order:

    1. No method finished every seed: nothing.
    2. Runs were still rising when they were stopped: train longer.
    3. Fewer than `MIN_SEEDS` seeds: add seeds.
    4. Methods are certain to beat equal weights in Δm, or to beat one that is: of those, the ones that none is certain
       to beat are equals, and the cheapest of them is named (`cheapest`). Without equal weights in the comparison all
       methods take the place of those that beat them.
    5. Every other method is certain to be worse than equal weights, or the plan's last look has been: keep them.
    6. There are looks to come: add seeds, unless no lead, two standard errors wider than seen, would become certain.
    7. This is the only look: add seeds if some lead over equal weights would become certain with no more than
       `MAX_SEEDS` if it and its spread stayed what they are; else keep equal weights.

    Every certain claim is true with a probability of at least 95 % for all of them together, so that it names a method
    as better than equal weights falsely with one of at most 5 %.

    Options are named as the command line has them; `wording.in_python` says them otherwise.

    Args:
        judged: row → mean Δm, of the rows that may be named.
        tests: all of them.
        costs: row → cost, where known.
        tasks: the problem's, by name.
        seeds: how many.
        planned: seeds at the last look of a sequential plan; None if this is the only one.
        length: whether runs were trained to their end.
    """
    if not judged:
        return Recommendation("nothing of this. No method finished every seed.", True)
    if length.rising:
        rows = join(length.rising) if len(length.rising) <= MANY else f"{len(length.rising)} rows"
        were = "was" if len(length.rising) == 1 else "were"
        return Recommendation(
            f"nothing yet. Train longer, with --epochs auto or --epochs {length.longer} and another --out; {rows} "
            f"{were} still rising at the end.",
            True,
        )
    if seeds < MIN_SEEDS:
        return Recommendation(
            f"nothing yet. Add seeds, in a new comparison with --seeds {FIRST_SEEDS} and another --out.", False
        )
    if len(judged) == 1:
        return Recommendation("nothing follows, as one method alone was judged.", True)
    if REFERENCE not in judged:
        equals = _unbeaten(judged, tests)
        if len(equals) > 1 and planned is not None and seeds < planned:
            return Recommendation(f"nothing yet. Add seeds, as planned up to {planned}.", False)
        return _name(equals, judged, tests, costs, tasks)
    winners = _above(REFERENCE, judged, tests)
    if winners:
        return _name(_unbeaten(winners, tests), judged, tests, costs, tasks)
    keep = "keep equal weights"
    open_ones = [method for method in judged if method != REFERENCE and not tests.beats(REFERENCE, method)]
    if not open_ones:
        return Recommendation(f"{keep}. Every other method is worse in Δm.", True, REFERENCE)
    if planned is not None and seeds < planned:
        if any(_hopeful(tests, method, planned) for method in open_ones):
            return Recommendation(f"{keep} so far, and add seeds, as planned up to {planned}.", False, REFERENCE)
        return Recommendation(
            f"{keep}. No lead over them is large enough to show with {planned} seeds.", True, REFERENCE
        )
    needed = {} if planned is not None else _needed(tests, open_ones)
    if needed:
        method = min(needed, key=lambda name: (needed[name], -judged[name]))
        return Recommendation(
            f"{keep} so far, and add seeds. A new comparison with --seeds {needed[method]} and another --out would "
            f"decide between them and {name_of(method)}.",
            False,
            REFERENCE,
        )
    return Recommendation(f"{keep}. No method is shown to beat them.", True, REFERENCE)


def cheapest(methods: Sequence[str], costs: Mapping[str, Cost]) -> str | None:
    """Returns the method that costs least: by time, and of those that take about the least time by memory.

    Where one is dearest in neither, that is it; where time and memory disagree, time decides unless it is alike
    (`TIMES_ALIKE`). None if a cost is not known.
    """
    if not all(method in costs for method in methods):
        return None
    limit = TIMES_ALIKE * min(costs[method].relative_time for method in methods)
    quick = [method for method in methods if costs[method].relative_time <= limit]
    return min(quick, key=lambda method: (costs[method].relative_memory, costs[method].relative_time))


def _above(reference: str, judged: Mapping[str, float], tests: PairedTests) -> list[str]:
    """The methods that are certain to beat the reference, or to beat one that is above it."""
    above = [reference]
    for below in above:  # grows meanwhile
        above += [method for method in judged if method not in above and tests.beats(method, below)]
    return above[1:]


def _unbeaten(methods: Mapping[str, float] | Sequence[str], tests: PairedTests) -> list[str]:
    return [method for method in methods if not any(tests.beats(other, method) for other in methods)]


def _hopeful(tests: PairedTests, method: str, planned: int) -> bool:
    """Whether a lead that is two standard errors larger than seen would become certain by the last look."""
    test = tests.of(method, REFERENCE)
    widest = test.lead_of(method) + 2 * test.spread / math.sqrt(test.seeds)
    return test.seeds_to_decide(widest, planned) is not None


def _needed(tests: PairedTests, methods: Sequence[str]) -> dict[str, int]:
    """Method → how many seeds would show its lead over equal weights, if it stayed what it is."""
    found = {}
    for method in methods:
        test = tests.of(method, REFERENCE)
        seeds = test.seeds_to_decide(test.lead_of(method), MAX_SEEDS)
        if seeds is not None:
            found[method] = seeds
    return found


def _name(
    equals: Sequence[str],
    judged: Mapping[str, float],
    tests: PairedTests,
    costs: Mapping[str, Cost],
    tasks: Sequence[str],
) -> Recommendation:
    """Names the cheapest of equals, with its gain and its price."""
    best = max(equals, key=lambda method: judged[method])
    least = cheapest(equals, costs)
    chosen = best if least is None else least
    text = name_of(chosen)
    if len(equals) > 1:
        others = join([name_of(method) for method in equals if method != chosen]) if len(equals) <= MANY else ""
        why = "the highest Δm" if least is None else "the cheapest"
        text += f", {why} of {len(equals)} that are not told apart{f' (beside {others})' if others else ''}"
    if REFERENCE in judged and chosen != REFERENCE:
        text += f". Δm {points(tests.of(chosen, REFERENCE).lead_of(chosen))} above equal weights"
        if chosen in costs:
            cost = costs[chosen]
            memory = f" and {cost.relative_memory:.2f} × the memory" if abs(cost.relative_memory - 1) >= 0.05 else ""
            text += f" at {cost.relative_time:.2f} × the time{memory}"
        lost = [task for task in tasks if _loses(tests, chosen, task)]
        if lost:
            text += f"; worse on {join(lost) if len(lost) <= MANY else f'{len(lost)} of {len(tasks)} tasks'}"
    if tests.beats(SINGLE, chosen):
        text += "; training each task alone does better still"
    return Recommendation(f"{text}.", True, chosen)


def _loses(tests: PairedTests, method: str, task: str) -> bool:
    """Whether a method is certain to be worse than equal weights on a task."""
    test = tests.find(method, REFERENCE, task)
    return test is not None and test.certain and test.worse == method
