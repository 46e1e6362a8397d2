"""A comparison's pictures: results at a glance, each task's metric over training, weights over training.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; lines differ in dashes and markers
too, and every line is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from equipoise.experiment.comparison import Result
from equipoise.experiment.execution import Record
from equipoise.experiment.statistics import DELTA, SINGLE, Column
from equipoise.experiment.tables import count
from equipoise.problems import Task

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMNS = 4
"""Panels side by side."""


def draw_all(result: Result) -> dict[str, bytes]:
    """Returns file name → PNG."""
    figures = {
        "results.png": draw_results(result),
        "training.png": draw_training(result),
        "weights.png": draw_weights(result),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def draw_results(result: Result) -> Figure:
    """Each method's main measures and Δm on test: seeds as dots, mean and standard deviation; single-task as a line."""
    summary = result.summary
    columns = [column for column in summary.columns if column.main]
    methods = [method for method in result.settings.methods if summary.cells[method]]
    figure, panels = _panels(len(columns), width=3.1, height=0.9 + 0.3 * len(methods), columns=COLUMNS)
    for axes, column in zip(panels, columns, strict=True):
        single = summary.cells[SINGLE].get(column)
        reference = 0.0 if column.measure == DELTA else single.mean if single else math.nan
        axes.axvline(reference * column.measure.scale, color="0.45", linestyle="--", linewidth=1)
        for row, method in enumerate(methods):
            cell = summary.cells[method].get(column)
            if cell is not None:
                values = np.asarray(cell.values) * column.measure.scale
                axes.plot(values, [row] * len(values), "o", color=COLOURS[5], markersize=4, alpha=0.8)
                spread = cell.deviation * column.measure.scale
                axes.errorbar(
                    cell.mean * column.measure.scale,
                    row,
                    xerr=None if math.isnan(spread) else spread,
                    fmt="D" if cell.best else "|",
                    color=COLOURS[1] if cell.best else "black",
                    capsize=2,
                )
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.grid(axis="y", linewidth=0.4)
        axes.set_title(_title(column), fontsize=10)
    legend = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[5], label="a seed"),
        Line2D([], [], marker="|", color="black", label="mean ± standard deviation"),
        Line2D([], [], marker="D", color=COLOURS[1], label="best mean"),
        Line2D([], [], linestyle="--", color="0.45", label=SINGLE),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    _head(figure, result, "results on test")
    return figure


def draw_training(result: Result) -> Figure:
    """Each task's main measure on validation after every epoch, per method: mean and standard deviation over seeds."""
    tasks = result.problem.tasks
    figure, panels = _panels(len(tasks), width=4.2, height=3.6, columns=3)
    handles: dict[str, Line2D] = {}
    for axes, task in zip(panels, tasks, strict=True):
        main = task.measures[0]
        for index, method in enumerate((SINGLE, *result.settings.methods), -1):
            name = f"single:{task.name}" if method == SINGLE else method
            curves = [
                [epoch["validation"][task.name][main.name] * main.scale for epoch in record["epochs"]]
                for record in _finished(result.records, name)
            ]
            if curves:
                handles[method] = _band(axes, curves, index, method)
        axes.set_title(_title(Column(task.name, main, True)), fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(linewidth=0.4)
        if not main.higher_is_better:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    figure.legend(handles=list(handles.values()), loc="outside right upper", fontsize=9, frameon=False)
    _head(figure, result, "validation over training")
    return figure


def draw_weights(result: Result) -> Figure | None:
    """Each task's share of the weights, mean of every epoch, a panel per method; None if no method has weights."""
    shares = {
        method: _shares(_finished(result.records, method), result.problem.tasks) for method in result.settings.methods
    }
    shares = {method: found for method, found in shares.items() if found}
    if not shares:
        return None
    figure, panels = _panels(len(shares), width=2.8, height=2.3, columns=COLUMNS)
    handles: dict[str, Line2D] = {}
    for axes, (method, found) in zip(panels, shares.items(), strict=True):
        for index, (task, curves) in enumerate(found.items()):
            handles[task] = _band(axes, curves, index, task)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylim(0, 1)
        axes.grid(linewidth=0.4)
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=8, fontsize=9, frameon=False)
    figure.supylabel("share of the sum of weights", fontsize=10)
    _head(figure, result, "weights over training")
    return figure


def _shares(records: Sequence[Record], tasks: Sequence[Task]) -> dict[str, list[list[float]]]:
    """Task → a curve per seed of its share of the epoch's mean weights; nothing where a method gives no weights."""
    found: dict[str, list[list[float]]] = {task.name: [] for task in tasks}
    for record in records:
        epochs = [epoch["weights"] for epoch in record["epochs"]]
        if not all(epochs):
            return {}
        totals = [sum(abs(weight) for weight in weights.values()) for weights in epochs]
        for task in found:
            pairs = zip(epochs, totals, strict=True)
            found[task].append([weights.get(task, 0.0) / total if total else math.nan for weights, total in pairs])
    return found if records else {}


def _finished(records: Sequence[Record], method: str) -> list[Record]:
    return [record for record in records if record["method"] == method and record["status"] == "finished"]


def _band(axes: Axes, curves: Sequence[Sequence[float]], index: int, label: str) -> Line2D:
    """Draws the mean of curves with a band of one standard deviation, in the style of that index."""
    values = np.asarray(curves, dtype=float)
    epochs = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    (line,) = axes.plot(epochs, mean, label=label, markersize=4, **style(index))
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - spread, mean + spread, color=line.get_color(), alpha=0.12, linewidth=0)
    return line


def style(index: int) -> dict[str, Any]:
    """Returns colour, dashes and marker of a line; black for a negative index (single-task)."""
    if index < 0:
        return {"color": "black", "linestyle": "-", "marker": ""}
    turn = index // len(COLOURS)  # the same colour again: with other dashes and another marker
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + 3 * turn) % len(DASHES)],
        "marker": MARKERS[(index + 2 * turn) % len(MARKERS)],
    }


def _panels(count: int, width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.7), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _title(column: Column) -> str:
    return f"{column.task}: {column.measure.label}" if column.task else column.measure.label


def _head(figure: Figure, result: Result, what: str) -> None:
    quick = " (quick)" if result.settings.quick else ""
    figure.suptitle(f"{result.problem.name}{quick}: {what}, {count(result.summary.seeds, 'seed')}", fontsize=11)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
