"""Methods over several problems: mean ranks, and which of their differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from equipoise.bench.experiment.chart import Theme, short
from equipoise.bench.experiment.statistics import LEVEL

TICKS = 20
"""Ranks that are written along the axis, at most."""


@dataclass(frozen=True)
class Ranking:
    """Methods ranked over problems.

    Attributes:
        ranks: method → mean rank over problems, 1 the best; from the best to the worst.
        problems: how many problems rank them.
        p_value: Friedman's, that the methods do not differ at all; NaN with fewer than three methods or two problems.
        critical_difference: mean ranks that are further apart differ; NaN with fewer than two problems or methods.
        cliques: groups of methods, from the best, of which no two are further apart than that; groups that are part of
            another are left out. Where Friedman's test sees no difference, all methods are one.
    """

    ranks: Mapping[str, float]
    problems: int
    p_value: float
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]


def rank(scores: Mapping[str, Mapping[str, float]], level: float = LEVEL) -> Ranking:
    """Ranks methods over problems, and tests their mean ranks by Friedman's and Nemenyi's tests.

    On each problem methods are ranked by their scores, equal ones sharing a rank; a method without a score, since it
    diverged or failed, shares the last ranks with its like. Two methods differ at `level`, corrected for all pairs, if
    their mean ranks over N problems are further apart than `q √(k (k + 1) / (6 N))`, with q the quantile of the
    studentized range of k methods by √2. A problem counts as one, however many seeds its scores are means of.

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. He warns of few
    problems: with fewer than about ten Friedman's χ² is rough, and Nemenyi's test sees large differences only.

    Args:
        scores: problem → method → score, higher is better; NaN where a method has none. Every problem has the same
            methods.
        level: the probability of any false difference.

    Raises:
        ValueError: there is no problem, or problems have different methods.

    Example:
        >>> found = rank({"digits": {"ew": 0.0, "mao": 9.0}, "rooms": {"ew": 1.0, "mao": 2.0}})
        >>> found.ranks
        {'mao': 1.0, 'ew': 2.0}
    """
    methods = list(next(iter(scores.values()), {}))
    for problem, found in scores.items():
        if set(found) != set(methods):
            raise ValueError(
                f"Every problem must have the same methods: {problem} has {', '.join(found)}, the first one "
                f"{', '.join(methods)}."
            )
    if not methods:
        raise ValueError("There is nothing to rank: give at least one problem with a method's score.")
    table = np.array([[found[method] for method in methods] for found in scores.values()], dtype=float)
    table[np.isnan(table)] = -math.inf
    ranks = stats.rankdata(-table, axis=1)
    problems, count = ranks.shape
    order = sorted(zip(ranks.mean(axis=0).tolist(), methods, strict=True), key=lambda pair: pair[0])
    means = {method: mean for mean, method in order}
    p_value = critical = math.nan
    if problems > 1 and count > 1:
        quantile = stats.studentized_range.ppf(1 - level, count, math.inf) / math.sqrt(2)
        critical = float(quantile * math.sqrt(count * (count + 1) / (6 * problems)))
    if problems > 1 and count > 2:
        p_value = 1.0 if np.ptp(ranks) == 0 else float(stats.friedmanchisquare(*ranks.T).pvalue)
    return Ranking(means, problems, p_value, critical, _cliques(means, critical, p_value, level))


def _cliques(means: Mapping[str, float], critical: float, p_value: float, level: float) -> tuple[tuple[str, ...], ...]:
    """The largest groups of neighbours that are not told apart."""
    names, places = list(means), list(means.values())
    if math.isnan(critical) or p_value >= level:
        return (tuple(names),)
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = max(index for index in range(first, len(names)) if places[index] - places[first] <= critical)
        if not found or last > found[-1][1]:
            found.append((first, last))
    return tuple(tuple(names[first : last + 1]) for first, last in found if last > first)


def draw_ranking(ranking: Ranking, theme: Theme) -> Figure:
    """Returns the critical-difference picture: methods on the axis of mean ranks, bars over those not told apart.

    Draw and save it while `theme.applied()`.
    """
    names, places = list(ranking.ranks), list(ranking.ranks.values())
    count, left = len(names), (len(names) + 1) // 2
    depth = len(ranking.cliques) * 0.25 + 0.2
    height = depth + 0.32 * max(left, count - left) + 0.4
    figure = Figure(figsize=(7.2, 0.45 * height + 1.0), layout="constrained")
    axes = figure.subplots()
    low, high = 1.0, float(max(count, 2))
    margin = 0.28 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(height, -0.9)
    axes.axis("off")
    axes.plot([low, high], [0, 0], color=theme.ink, linewidth=1)
    for tick in range(1, int(high) + 1):
        axes.plot([tick, tick], [0, -0.08], color=theme.ink, linewidth=1)
        if tick == 1 or tick % math.ceil(high / TICKS) == 0:
            axes.text(tick, -0.12, str(tick), ha="center", va="bottom", fontsize=9)
    for level, clique in enumerate(ranking.cliques):
        ends = [ranking.ranks[clique[0]] - 0.02 * high, ranking.ranks[clique[-1]] + 0.02 * high]
        axes.plot(ends, [0.2 + 0.25 * level] * 2, color=theme.colours[1], linewidth=3, solid_capstyle="round")
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        best = index < left
        row = depth + 0.32 * (index if best else count - 1 - index) + 0.15
        edge = low - 0.02 * high if best else high + 0.02 * high
        axes.plot([place, place, edge], [0, row, row], color=theme.muted, linewidth=0.8)
        label = f"{short(name)}  {place:.1f}"
        axes.text(
            edge, row, f"{label} " if best else f" {label}", ha="right" if best else "left", va="center", fontsize=9
        )
    if not math.isnan(ranking.critical_difference):
        width = min(ranking.critical_difference, high - low)
        axes.plot([low, low + width], [-0.62, -0.62], color=theme.colours[1], linewidth=1.5, marker="|", markersize=7)
        axes.text(
            low + width + 0.02 * high,
            -0.62,
            f"critical difference {ranking.critical_difference:.2f}",
            va="center",
            fontsize=9,
        )
    return figure
