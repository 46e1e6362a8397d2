"""Charts of what the balance monitor has recorded: who moves the shared parameters, and who stands in whose way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from equipoise.bench.experiment.chart import Chart, Panel, Theme, log_scale, said, short, styled
from equipoise.bench.experiment.folder import file_name
from equipoise.monitor import Recording, read_monitor

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

MANY = 10
"""More tasks or layers than this are not named at an axis."""


def recordings(result: Result) -> tuple[dict[str, Recording], list[str]]:
    """Returns method → what was recorded of its run with the first seed, and what could not be read."""
    found, damaged = {}, []
    for method in result.settings.methods:
        path = Path(result.folder or ".") / "monitor" / f"{file_name(method)}-0.jsonl"
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
    curves = {method: recording.by_layer("contribution") for method, recording in recorded.items()}

    def places(recording: Recording) -> tuple[list[int], list[str], str]:
        named = len(recording.shared_layers) <= MANY
        numbers = list(range(len(recording.shared_layers)))
        return numbers, recording.shared_layers if named else [], "" if named else "layer"

    return _chart("layers", "contributions by layer", recorded, curves, places)


def steps_chart(recorded: Mapping[str, Recording]) -> Chart | None:
    """Each task's contribution to the update at every sampled step, mean over shared layers, a panel per method."""
    curves = {method: recording.by_step("contribution") for method, recording in recorded.items()}
    return _chart("steps", "contributions by step", recorded, curves, lambda recording: (recording.steps, [], "step"))


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


Curves = Mapping[str, Sequence[float | None]]
"""Task → its numbers; None leaves a gap."""


def _chart(
    name: str,
    title: str,
    recorded: Mapping[str, Recording],
    curves: Mapping[str, Curves],
    places: Callable[[Recording], tuple[list[int], list[str], str]],
) -> Chart | None:
    """A panel per method, all of one height, so that they can be compared; `places`: numbers, names and axis label."""
    usable = [method for method, recording in recorded.items() if recording.shared_layers]
    heights = np.array(
        [value for method in usable for values in curves[method].values() for value in values], dtype=float
    )
    heights = heights[heights > 0]  # not NaN either
    if not len(heights):
        return None
    limits = (float(heights.min()) / 1.5, float(heights.max()) * 1.5)
    panels = [
        Panel(method, _lines(curves[method], limits, *places(recorded[method])), _shares(recorded[method]))
        for method in usable
    ]
    tasks = list(dict.fromkeys(task for method in usable for task in recorded[method].tasks))
    legend = tuple((task, styled(index)) for index, task in enumerate(tasks))
    return Chart(name, title, tuple(panels), legend, (3.3, 2.9))


def _lines(
    curves: Curves, limits: tuple[float, float], places: Sequence[int], names: Sequence[str], label: str
) -> Callable[[Axes, Theme], None]:
    """A line for each task."""

    def draw(axes: Axes, theme: Theme) -> None:
        for index, values in enumerate(curves.values()):
            every = max(1, len(places) // 12)
            axes.plot(places, np.array(values, dtype=float), markersize=4, markevery=every, **theme.style(index))
        axes.set_ylim(limits)
        log_scale(axes, "y")
        if names:
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
