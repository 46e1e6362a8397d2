"""A comparison's charts: results, gain against time, training, weights, tuning."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from equipoise.bench.experiment.chart import LIGHT, Chart, Panel, Theme, log_scale, said, save, short, styled
from equipoise.bench.experiment.front_chart import front_chart
from equipoise.bench.experiment.labels import label_points
from equipoise.bench.experiment.protocol import count
from equipoise.bench.experiment.statistics import SINGLE, Column, pareto
from equipoise.bench.experiment.tables import WIDE, head_of, number

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result
    from equipoise.bench.experiment.trial import Record


def draw(result: Result, names: Collection[str] = ()) -> dict[str, Figure]:
    """Returns name → figure, every chart in one piece; of those named alone, if any are."""
    quick = " (quick)" if result.settings.quick else ""
    seeds = count(result.summary.seeds, "seed")
    with LIGHT.applied():
        return {
            chart.name: chart.whole(LIGHT, f"{result.problem.name}{quick}: {chart.title}, {seeds}")
            for chart in charts(result)
            if not names or chart.name in names
        }


def draw_all(result: Result, names: Collection[str] = ()) -> dict[str, bytes]:
    """Returns file name → PNG, of what `draw` returns."""
    with LIGHT.applied():
        return {f"{name}.png": save(figure, "png") for name, figure in draw(result, names).items()}


def charts(result: Result) -> list[Chart]:
    """Returns the charts that a comparison has something for."""
    found = [
        results_chart(result),
        tradeoff_chart(result),
        front_chart(result),
        training_chart(result),
        tuning_chart(result),
        weights_chart(result),
    ]
    return [chart for chart in found if chart is not None]


def results_chart(result: Result) -> Chart | None:
    """Main measures and Δm on test: seeds as dots, mean and standard deviation; the line is what Δm is over."""
    summary = result.summary
    columns = [column for column in summary.columns if column.main]
    columns = columns if len(columns) <= WIDE + 1 else columns[-1:]
    methods = [method for method in result.settings.methods if summary.cells[method]]
    if not methods:
        return None

    def panel(column: Column) -> Panel:
        scale = column.measure.scale

        def draw(axes: Axes, theme: Theme) -> None:
            single = summary.cells.get(summary.reference, {}).get(column)
            reference = 0.0 if column.task is None else single.mean if single else math.nan
            axes.axvline(reference * scale, **_reference(theme))
            for row, method in enumerate(methods):
                cell = summary.cells[method].get(column)
                if cell is not None:
                    values = np.asarray(cell.values) * scale
                    axes.plot(values, [row] * len(values), **_dots(theme))
                    spread = None if math.isnan(cell.deviation) else cell.deviation * scale
                    mark = _best(theme) if cell.best else _mean(theme)
                    axes.errorbar(cell.mean * scale, row, xerr=spread, capsize=2, elinewidth=1.2, **mark)
            axes.set_yticks(range(len(methods)), list(map(short, methods)))
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.grid(axis="y")

        cells = [(name, summary.cells.get(name, {}).get(column)) for name in (SINGLE, *methods)]
        return Panel(head_of(column), draw, said((name, number(cell, column)) for name, cell in cells if cell))

    legend = (
        ("a seed", _dots),
        ("mean ± std.", _mean),
        ("best mean", _best),
        (summary.reference, _reference),
    )
    size = (3.3, 0.9 + 0.27 * len(methods))
    return Chart("results", "results on test", tuple(map(panel, columns)), legend, size)


def _reference(theme: Theme) -> dict[str, Any]:
    return {"color": theme.ink, "linestyle": "--", "linewidth": 1}


def _dots(theme: Theme) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "", "color": theme.colours[0], "markersize": 4, "alpha": 0.7}


def _mean(theme: Theme) -> dict[str, Any]:
    return {"marker": "|", "linestyle": "", "color": theme.ink, "markersize": 8}


def _best(theme: Theme) -> dict[str, Any]:
    return {"marker": "D", "linestyle": "", "color": theme.colours[1]}


def tradeoff_chart(result: Result) -> Chart | None:
    """Δm against the time of a step: what another method beats in both is below the line."""
    delta = result.summary.columns[-1]
    cells = {method: result.summary.cells[method].get(delta) for method in result.settings.methods}
    points = {
        method: (result.costs[method].relative_time, cell.mean)
        for method, cell in cells.items()
        if cell is not None and method in result.costs and math.isfinite(cell.mean)
    }
    if not points:
        return None
    complete = {method: point for method, point in points.items() if result.summary.complete(cells[method])}
    front = pareto(complete)
    intervals = [
        [(points[method][0], end) for end in cell.interval]
        for method, cell in cells.items()
        if method in points and cell is not None and not math.isnan(cell.interval[0])
    ]

    def draw(axes: Axes, theme: Theme) -> None:
        times = [time for time, _ in points.values()]
        axes.axhline(0, **_reference(theme))
        axes.plot([points[method][0] for method in front], [points[method][1] for method in front], **_front(theme))
        for interval in intervals:
            axes.plot(*zip(*interval, strict=True), color=theme.muted, linewidth=1, zorder=2)
        for method, (time, gain) in points.items():
            mark = _on_front if method in front else _beaten if method in complete else _partial
            axes.plot(time, gain, **mark(theme), zorder=3)
        if max(times) > 5 * min(times):
            log_scale(axes, "x")
        axes.margins(x=0.25, y=0.12)
        axes.grid()
        axes.set_xlabel("time of a step, × equal weights")
        axes.set_ylabel("Δm %")
        zero = [(end, 0.0) for end in axes.get_xlim()]
        label_points(axes, points, [*intervals, zero, [points[method] for method in front]], theme)

    places = said((method, f"{time:.2f} × and {gain:.1f} %") for method, (time, gain) in points.items())
    text = f"Time of a step and Δm: {places} Beaten by none in both: {', '.join(front) or 'none has every seed'}."
    legend = (
        ("beaten by none", _on_front),
        ("beaten", _beaten),
        *((("not every seed", _partial),) if len(complete) < len(points) else ()),
        ("interval of Δm", lambda theme: {"color": theme.muted, "linewidth": 1}),
        (result.summary.reference, _reference),
    )
    return Chart("tradeoff", "gain against time", (Panel("Δm against time", draw, text),), legend, (4.8, 3.9))


def _front(theme: Theme) -> dict[str, Any]:
    return {"color": theme.colours[1], "linestyle": ":", "linewidth": 1.5, "zorder": 1}


def _on_front(theme: Theme) -> dict[str, Any]:
    return {"marker": "D", "linestyle": "", "color": theme.colours[1], "markersize": 7}


def _beaten(theme: Theme) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "", "color": theme.colours[0], "markersize": 6}


def _partial(theme: Theme) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "", "color": theme.muted, "markerfacecolor": "none", "markersize": 6}


def training_chart(result: Result) -> Chart | None:
    """Each task's main measure on validation after every epoch and their mean gain: mean and deviation over seeds."""
    methods = [method for method in result.settings.methods if _finished(result.records, method)]
    if not methods:
        return None
    tasks = result.problem.tasks if len(result.problem.tasks) <= WIDE else ()
    panels = []
    for task in tasks:
        main = task.measures[0]
        curves = {
            method: [
                [epoch["validation"][task.name][main.name] * main.scale for epoch in record["epochs"]]
                for record in _finished(result.records, f"single:{task.name}" if method == SINGLE else method)
            ]
            for method in (SINGLE, *methods)
        }
        panels.append(_curves(head_of(Column(task.name, main, True)), curves, methods, not main.higher_is_better))
    gains = {
        method: [[100 * epoch["score"] for epoch in record["epochs"]] for record in _finished(result.records, method)]
        for method in methods
    }
    panels.append(_curves("Δm on validation % ↑", gains, methods, False))
    legend = [(SINGLE, lambda theme: theme.style(-1))] if tasks else []
    legend += [(method, styled(index)) for index, method in enumerate(methods)]
    return Chart("training", "validation over training", tuple(panels), tuple(legend), (4.2, 3.3), columns=2)


def _curves(title: str, curves: dict[str, list[list[float]]], methods: Sequence[str], log: bool) -> Panel:
    """A panel of curves over epochs, a band of one standard deviation around each mean."""
    curves = {name: found for name, found in curves.items() if found}

    def draw(axes: Axes, theme: Theme) -> None:
        for name, found in curves.items():
            _band(axes, found, theme.style(-1 if name == SINGLE else methods.index(name)))
        _epochs(axes)
        if log and all(value > 0 for found in curves.values() for curve in found for value in curve):
            log_scale(axes, "y")

    return Panel(
        title,
        draw,
        "After the last epoch: " + said((n, f"{np.mean([c[-1] for c in f]):.3g}") for n, f in curves.items()),
    )


def weights_chart(result: Result) -> Chart | None:
    """Each task's share of the weights, mean of every epoch, a panel per method; None if no method has weights."""
    names = [task.name for task in result.problem.tasks]
    shares = {method: _shares(_finished(result.records, method), names) for method in result.settings.methods}
    shares = {method: found for method, found in shares.items() if found}
    if not shares:
        return None

    def panel(method: str, found: dict[str, list[list[float]]]) -> Panel:
        def draw(axes: Axes, theme: Theme) -> None:
            for index, curves in enumerate(found.values()):
                _band(axes, curves, theme.style(index))
            _epochs(axes)
            axes.set_ylabel("share of the weights")
            axes.set_ylim(0, 1)

        last = said((task, f"{np.mean([curve[-1] for curve in curves]):.0%}") for task, curves in found.items())
        return Panel(method, draw, f"Shares of the weights in the last epoch: {last}")

    panels = tuple(panel(method, found) for method, found in shares.items())
    legend = tuple((name, styled(index)) for index, name in enumerate(names))
    return Chart("weights", "weights over training", panels, legend, (3.3, 2.6))


def tuning_chart(result: Result) -> Chart | None:
    """Validation scores by learning rate, the chosen one ringed; None if nothing was tuned."""
    methods = [method for method in result.settings.methods if method in result.tuning]
    panels = []
    if methods:
        scores = {method: [(lr, 100 * score) for lr, score in result.tuning[method]] for method in methods}
        panels.append(_rates("Δm on validation % ↑", scores, result.rates, methods))
    for task in result.problem.tasks if len(result.problem.tasks) <= WIDE else ():
        single, main = f"single:{task.name}", task.measures[0]
        if single in result.tuning:
            sign = main.scale if main.higher_is_better else -main.scale
            found = [(lr, sign * score) for lr, score in result.tuning[single]]
            title = f"{SINGLE}, {head_of(Column(task.name, main, True))}"
            panels.append(_rates(title, {single: found}, result.rates, [single]))
    if not panels:
        return None
    legend = [(method, styled(index)) for index, method in enumerate(methods)]
    legend += [("chosen", _ring), ("diverged", _cross)]
    return Chart("tuning", "validation by learning rate", tuple(panels), tuple(legend), (4.2, 3.3), columns=2)


def _rates(
    title: str, scores: dict[str, list[tuple[float, float]]], chosen: Mapping[str, float], methods: Sequence[str]
) -> Panel:
    """A panel of scores by learning rate; a run that diverged has a cross at the bottom."""

    def draw(axes: Axes, theme: Theme) -> None:
        for method, points in scores.items():
            known = [(lr, score) for lr, score in points if math.isfinite(score)]
            if known:
                axes.plot(*zip(*known, strict=True), markersize=4, **theme.style(methods.index(method)))
            for lr, score in points:
                if not math.isfinite(score):
                    axes.plot(lr, 0.03, transform=axes.get_xaxis_transform(), clip_on=False, **_cross(theme))
                elif lr == chosen.get(method):
                    axes.plot(lr, score, **_ring(theme))
        log_scale(axes, "x")
        axes.set_xlabel("learning rate")
        axes.grid()

    return Panel(title, draw, "Chosen learning rates: " + said((m, f"{chosen[m]:g}") for m in scores if m in chosen))


def _ring(theme: Theme) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "", "color": theme.ink, "markerfacecolor": "none", "markersize": 11}


def _cross(theme: Theme) -> dict[str, Any]:
    return {"marker": "x", "linestyle": "", "color": theme.ink, "markersize": 7}


def _shares(records: Sequence[Record], tasks: Sequence[str]) -> dict[str, list[list[float]]]:
    """Task → a curve per seed of its share of the epoch's mean weights; nothing where a method gives no weights."""
    found: dict[str, list[list[float]]] = {task: [] for task in tasks}
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


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()


def _band(axes: Axes, curves: Sequence[Sequence[float]], style: dict[str, Any]) -> None:
    """Draws the mean of curves with a band of one standard deviation."""
    values = np.asarray(curves, dtype=float)
    epochs = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    axes.plot(epochs, mean, markersize=4, **style)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.13, linewidth=0)
