"""Charts of what the balance monitor has recorded: who moves the shared parameters, and who stands in whose way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from equipoise.experiment.pictures import Chart, Panel, Theme, said, short, styled
from equipoise.monitor import Recording, read_monitor

if TYPE_CHECKING:
    from equipoise.experiment.comparison import Result

MANY = 10
"""More tasks or layers than this are not named at an axis."""


def recordings(result: Result) -> tuple[dict[str, Recording], list[str]]:
    """Returns method → what was recorded of its run with the first seed, and what could not be read."""
    found, damaged = {}, []
    for method in result.settings.methods:
        path = Path(result.folder or ".") / "monitor" / f"{method.replace(':', '-')}-0.jsonl"
        if path.exists():
            try:
                recording = read_monitor(path)
            except (OSError, ValueError) as error:
                damaged.append(str(error))
            else:
                if recording.records:
                    found[method] = recording
    return found, damaged


def layers_chart(recorded: Mapping[str, Recording]) -> Chart | None:
    """Each task's contribution to the update of every shared layer, mean over training, a panel per method."""
    panels = []
    for method, recording in recorded.items():
        layers, means = recording.shared_layers, recording.by_layer("contribution")
        if layers:
            panels.append(Panel(method, _lines(list(range(len(layers))), means, "", layers), _shares(recording)))
    return _chart("layers", "contributions by layer", panels, recorded)


def steps_chart(recorded: Mapping[str, Recording]) -> Chart | None:
    """Each task's contribution to the update at every sampled step, mean over shared layers, a panel per method."""
    panels = []
    for method, recording in recorded.items():
        if recording.shared_layers:
            draw = _lines(recording.steps, recording.by_step("contribution"), "step", None)
            panels.append(Panel(method, draw, _shares(recording)))
    return _chart("steps", "contributions by step", panels, recorded)


def conflicts_chart(recorded: Mapping[str, Recording]) -> Chart | None:
    """Mean cosine between every two tasks' gradients over training, a panel per method."""
    panels = []
    for method, recording in recorded.items():
        cosines = np.array(recording.mean_cosines(), dtype=float)
        if len(recording.tasks) > 1 and np.isfinite(cosines).any():
            panels.append(_conflicts(method, recording.tasks, cosines))
    return Chart("conflicts", "conflict", tuple(panels), (), (2.9, 2.7)) if panels else None


def balance(recorded: Mapping[str, Recording]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """Returns, of each method, every task's share of the contributions and the largest over the smallest one's."""
    return [
        (method, [(task, f"{share:.0%}") for task, share in recording.shares().items()], f"{recording.imbalance():.1f}")
        for method, recording in recorded.items()
        if recording.shared_layers and math.isfinite(recording.imbalance())
    ]


def _chart(name: str, title: str, panels: list[Panel], recorded: Mapping[str, Recording]) -> Chart | None:
    tasks = list(dict.fromkeys(task for recording in recorded.values() for task in recording.tasks))
    legend = tuple((task, styled(index)) for index, task in enumerate(tasks))
    return Chart(name, title, tuple(panels), legend, (3.3, 2.9)) if panels else None


def _lines(
    places: Sequence[int], curves: Mapping[str, Sequence[float | None]], label: str, names: Sequence[str] | None
) -> Callable[[Axes, Theme], None]:
    """A line for each task; what is missing leaves a gap."""

    def draw(axes: Axes, theme: Theme) -> None:
        for index, values in enumerate(curves.values()):
            heights = np.array(values, dtype=float)
            style = theme.style(index)
            axes.plot(places, heights, markersize=4, markevery=max(1, len(places) // 12), **style)
        heights = np.array(list(curves.values()), dtype=float)
        if (heights[np.isfinite(heights)] > 0).all():
            axes.set_yscale("log")
        if names is not None and len(names) <= MANY:
            axes.set_xticks(places, list(map(short, names)), rotation=90)
        axes.set_xlabel(label)
        axes.set_ylabel("mean change of an element")
        axes.grid()

    return draw


def _shares(recording: Recording) -> str:
    shares = said((task, f"{share:.0%}") for task, share in recording.shares().items())
    return f"Shares of the contributions, mean over layers and training: {shares}"


def _conflicts(method: str, tasks: Sequence[str], cosines: NDArray[np.float64]) -> Panel:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.imshow(cosines, cmap="PuOr_r", vmin=-1, vmax=1)
        if len(tasks) <= MANY:
            names = list(map(short, tasks))
            axes.set_xticks(range(len(tasks)), names, rotation=90)
            axes.set_yticks(range(len(tasks)), names)
            for (row, column), value in np.ndenumerate(cosines):
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 else "black"  # on the map's own colours, light in both themes
                    axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)

    pairs = [(i, j) for i in range(len(tasks)) for j in range(i) if np.isfinite(cosines[i, j])]
    lowest = sorted(pairs, key=lambda pair: cosines[pair])[:MANY]
    named = said((f"{tasks[j]} and {tasks[i]}", f"{cosines[i, j]:+.2f}") for i, j in lowest)
    return Panel(method, draw, f"Mean cosine between gradients, most opposed first: {named}")
