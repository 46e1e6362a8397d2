"""The chart of methods against the front of fixed weights, for pairs of tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from equipoise.bench.experiment.chart import Chart, Panel, Theme, said, short
from equipoise.bench.experiment.statistics import Column, gains_of_seeds

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

ALL_PAIRS = 4
"""With no more tasks than this every pair has its panel."""

MAX_PAIRS = 6
"""Panels, at most."""

Gains = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Method → task → gain over what Δm is over, in per cent, one per seed."""


def front_chart(result: Result) -> Chart | None:
    """Each method's gains on two tasks beside those of the fixed weightings that were tried; None without these."""
    if not result.front:
        return None
    gains = gains_of(result)
    names = [task.name for task in result.problem.tasks]
    points = [{task: 100 * gain for task, gain in point.gains.items() if math.isfinite(gain)} for point in result.front]
    pairs = [pair for pair in pairs_shown(names, gains) if any(set(pair) <= set(point) for point in points)]
    if not pairs:
        return None
    legend = [
        ("fixed weights", _fixed),
        ("their front", _staircase),
        (result.summary.reference, _single),
        *((method, _method(index)) for index, method in enumerate(gains)),
    ]
    panels = tuple(_panel(pair, gains, [point for point in points if set(pair) <= set(point)]) for pair in pairs)
    return Chart("front", "methods and fixed weights", panels, tuple(legend), (3.6, 3.3), columns=3)


def gains_of(result: Result) -> Gains:
    """Returns the gains over the runs of the same seeds that Δm is over, of methods that finished every seed."""
    summary = result.summary
    columns = [column for column in summary.columns if column.main and column.task]
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for method in result.settings.methods:
        cells = summary.cells[method]
        if all(summary.complete(cells.get(column)) for column in columns):
            found[method] = {str(column.task): _gain(result, method, column) for column in columns}
    return found


def _gain(result: Result, method: str, column: Column) -> NDArray[np.float64]:
    cells = result.summary.cells
    single = cells.get(result.summary.reference, {}).get(column)
    if single is None or not result.summary.complete(single):
        return np.full(result.summary.seeds, math.nan)
    values, references = pd.Series(cells[method][column].values), pd.Series(single.values)
    return 100 * np.asarray(gains_of_seeds(values, references, column.measure.higher_is_better), dtype=float)


def pairs_shown(tasks: Sequence[str], gains: Gains) -> list[tuple[str, str]]:
    """Returns every pair of tasks or, of more than `ALL_PAIRS` tasks, those on which methods' means differ most."""
    pairs = list(itertools.combinations(tasks, 2))
    if len(tasks) <= ALL_PAIRS or not gains:
        return pairs[:MAX_PAIRS]
    apart = {task: float(np.std([found[task].mean() for found in gains.values()])) for task in tasks}
    return sorted(pairs, key=lambda pair: -np.nan_to_num(apart[pair[0]] + apart[pair[1]]))[:MAX_PAIRS]


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the boundary of what no point exceeds in both, from the left to the right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    best.reverse()
    corners = [best[0]]
    for before, after in itertools.pairwise(best):
        corners += [(before[0], after[1]), after]
    return corners


def _panel(pair: tuple[str, str], gains: Gains, points: Sequence[Mapping[str, float]]) -> Panel:
    first, second = pair
    places = [(point[first], point[second]) for point in points]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0, color=theme.grid, linewidth=1, zorder=0)
        axes.axvline(0, color=theme.grid, linewidth=1, zorder=0)
        axes.plot(*zip(*places, strict=True), **_fixed(theme))
        axes.plot(*zip(*staircase(places), strict=True), **_staircase(theme))
        axes.plot(0, 0, **_single(theme))
        for index, found in enumerate(gains.values()):
            one, two = found[first], found[second]
            spread = {"xerr": one.std(ddof=1), "yerr": two.std(ddof=1)} if len(one) > 1 else {}
            axes.errorbar(one.mean(), two.mean(), elinewidth=1, zorder=3, **spread, **_method(index)(theme))
        axes.set_xlabel(f"{short(first)}: gain %")
        axes.set_ylabel(f"{short(second)}: gain %")
        axes.grid()

    means = [
        (method, f"{found[first].mean():+.1f} and {found[second].mean():+.1f} %") for method, found in gains.items()
    ]
    beyond = [
        method
        for method, found in gains.items()
        if not any(x >= found[first].mean() and y >= found[second].mean() for x, y in places)
    ]
    text = f"Gains on {first} and {second}, mean over seeds: {said(means)}"
    return Panel(
        f"{short(first)} and {short(second)}", draw, f"{text} Beyond the front: {', '.join(beyond) or 'none'}."
    )


def _method(index: int) -> Callable[[Theme], dict[str, Any]]:
    return lambda theme: theme.style(index) | {"linestyle": "", "markersize": 6}


def _fixed(theme: Theme) -> dict[str, Any]:
    return {"marker": ".", "linestyle": "", "color": theme.muted, "markersize": 7, "zorder": 1}


def _staircase(theme: Theme) -> dict[str, Any]:
    return {"color": theme.muted, "linewidth": 1.2, "linestyle": "-", "marker": "", "zorder": 1}


def _single(theme: Theme) -> dict[str, Any]:
    return {"marker": "+", "linestyle": "", "color": theme.ink, "markersize": 10, "markeredgewidth": 1.5, "zorder": 2}
