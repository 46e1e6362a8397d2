"""A recording's pictures, after Figures 4 and 5 of the MAO paper: by layer, by step, conflicts and weights.

Each function takes a `Recording`, or several by name to compare them one under the other on one scale, and returns a
matplotlib Figure: `figure.savefig("layers.png")`. Lines differ in colour (after Okabe and Ito), dashes and markers, so
that nobody needs to tell colours apart. They need matplotlib, which the extra `bench` brings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from equipoise.monitor.recording import Recording
from equipoise.monitor.style import line_style, plain

Recordings = Recording | Mapping[str, Recording]

QUANTITIES = {"gradient": "norm of the gradient", "contribution": "mean contribution to an element"}
NAMED = 40
"""More layers than this are numbered at the axis, and more tasks than this are not written into a matrix."""


def draw_layers(recordings: Recordings) -> Figure:
    """Gradients (left) and contributions (right) of each task by layer, mean over training: MAO's Figure 4.

    Args:
        recordings: one, or name → recording.

    Raises:
        ValueError: there is no sample, or no layer that two tasks reach.
    """
    named = _named(recordings)
    figure, rows = _grid(len(named), height=3.4)
    for (name, recording), panels in zip(named.items(), rows, strict=True):
        layers = recording.shared_layers
        for axes, (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
            _lines(axes, range(len(layers)), recording.by_layer(quantity), _tasks(named), dots=True)
            _describe(axes, name, label, "layer" if len(layers) > NAMED else "")
            if len(layers) <= NAMED:
                axes.set_xticks(range(len(layers)), list(map(plain, layers)), rotation=90, fontsize=7)
    _legend(figure, _tasks(named))
    return figure


def draw_steps(recordings: Recordings) -> Figure:
    """Gradients (left) and contributions (right) of each task by step, mean over layers: MAO's Figure 5.

    Args:
        recordings: one, or name → recording.

    Raises:
        ValueError: there is no sample, or no layer that two tasks reach.
    """
    named = _named(recordings)
    figure, rows = _grid(len(named), height=2.8)
    for (name, recording), panels in zip(named.items(), rows, strict=True):
        for axes, (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
            _lines(axes, recording.steps, recording.by_step(quantity), _tasks(named))
            _describe(axes, name, label, "step")
    _legend(figure, _tasks(named))
    return figure


def draw_conflicts(recordings: Recordings) -> Figure:
    """The mean cosine between every two tasks' gradients: below 0 (purple) they pull against each other.

    Args:
        recordings: one, or name → recording.

    Raises:
        ValueError: there is no sample, or no layer that two tasks reach.
    """
    named = _named(recordings)
    most = max(len(recording.tasks) for recording in named.values())
    side = min(1.8 + 0.45 * most, 9.0)
    figure = Figure(figsize=((side + 0.4) * len(named) + 0.6, side), layout="constrained")
    panels = list(figure.subplots(1, len(named), squeeze=False).flat)
    for (name, recording), axes in zip(named.items(), panels, strict=True):
        cosines = [[math.nan if value is None else value for value in row] for row in recording.mean_cosines()]
        shown = axes.imshow(cosines, cmap="PuOr_r", vmin=-1, vmax=1)
        tasks = list(map(plain, recording.tasks))
        axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axes.set_title(plain(name), fontsize=10)
        if len(recording.tasks) <= NAMED // 4:
            for i, row in enumerate(cosines):
                for j, value in enumerate(row):
                    if not math.isnan(value):
                        colour = "white" if abs(value) > 0.6 else "black"
                        axes.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, ax=panels, label="mean cosine between gradients", shrink=0.8)
    return figure


def draw_weights(recordings: Recordings) -> Figure:
    """Each task's weight by step.

    Args:
        recordings: one, or name → recording.

    Raises:
        ValueError: there is no sample, or no layer that two tasks reach.
    """
    named = _named(recordings)
    figure = Figure(figsize=(7.2, 2.6 * len(named) + 0.5), layout="constrained")
    panels = list(figure.subplots(len(named), 1, squeeze=False).flat)
    for (name, recording), axes in zip(named.items(), panels, strict=True):
        _lines(axes, recording.steps, recording.weights(), _tasks(named))
        _describe(axes, name, "weight", "step")
    _legend(figure, _tasks(named))
    return figure


def draw_metrics(recordings: Recordings) -> Figure:
    """Each task's metric over training, a panel a task and a line a recording: MAO's Figure 6.

    Args:
        recordings: one, or name → recording.

    Raises:
        ValueError: no metrics were logged.
    """
    named = {"": recordings} if isinstance(recordings, Recording) else dict(recordings)
    tasks = [t for t in _tasks(named) if any(t in log["metrics"] for r in named.values() for log in r.metrics)]
    if not tasks:
        raise ValueError("No metrics were logged: give them to BalanceMonitor.log_metrics during training.")
    figure = Figure(figsize=(4.2 * len(tasks), 3.4), layout="constrained")
    for task, axes in zip(tasks, figure.subplots(1, len(tasks), squeeze=False).flat, strict=True):
        for index, recording in enumerate(named.values()):
            logged = [(log["step"], log["metrics"][task]) for log in recording.metrics if task in log["metrics"]]
            steps, values = [step for step, _ in logged], [math.nan if v is None else v for _, v in logged]
            axes.plot(steps, values, markersize=4, linewidth=1.2, **line_style(index))
        axes.grid(linewidth=0.4)
        _describe(axes, task, "metric", "step")
    if len(named) > 1:
        _legend(figure, list(named))
    return figure


def _named(recordings: Recordings) -> dict[str, Recording]:
    named = {"": recordings} if isinstance(recordings, Recording) else dict(recordings)
    for name, recording in named.items():
        if not recording.shared_layers:
            raise ValueError(
                f"The recording {name!r} has nothing to draw: no sample, or no layer that two tasks reach."
                if name
                else "The recording has nothing to draw: no sample, or no layer that two tasks reach."
            )
    return named


def _grid(rows: int, height: float) -> tuple[Figure, list[Sequence[Axes]]]:
    figure = Figure(figsize=(9.6, height * rows + 0.5), layout="constrained")
    return figure, list(figure.subplots(rows, 2, squeeze=False, sharey="col"))


def _tasks(named: Mapping[str, Recording]) -> list[str]:
    """Returns all tasks, each with a style of its own; recordings of one comparison have the same."""
    return list(dict.fromkeys(task for recording in named.values() for task in recording.tasks))


def _lines(
    axes: Axes,
    places: Sequence[int],
    curves: Mapping[str, Sequence[float | None]],
    tasks: Sequence[str],
    dots: bool = False,
) -> None:
    """Draws a line a task, gaps where there is no number; on a logarithmic scale where all are positive."""
    numbers = [number for values in curves.values() for number in values if number is not None]
    for task, values in curves.items():
        heights = [math.nan if value is None else value for value in values]
        every = 1 if dots else max(1, len(heights) // 12)
        axes.plot(places, heights, markersize=4, markevery=every, linewidth=1.2, **line_style(tasks.index(task)))
    if numbers and min(numbers) > 0:
        axes.set_yscale("log")
    axes.grid(linewidth=0.4)


def _describe(axes: Axes, title: str, height: str, width: str) -> None:
    axes.set_title(plain(title), fontsize=10)
    axes.set_ylabel(height, fontsize=9)
    axes.set_xlabel(width, fontsize=9)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    handles = [Line2D([], [], **line_style(index)) for index in range(len(names))]
    legend = figure.legend(
        handles, list(map(str, range(len(names)))), loc="outside lower center", ncols=8, fontsize=9, frameon=False
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(plain(name))  # not before: a legend leaves out names that begin with _
