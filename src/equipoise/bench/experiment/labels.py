"""Names beside the points of a panel, where they cover nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from equipoise.bench.experiment.chart import Theme, short

SIZE = 9
"""Of the names, in points."""

MARKER = 5
"""Half of a marker's width with some room, in points."""

DISTANCES = (7, 13, 21, 32, 46, 64, 88, 118)
"""Of a name from its point, in points, in the order in which they are tried."""

DIRECTIONS = 24
"""In so many a name is tried around its point, the first to the right of it."""

ROUNDS = 3
"""So often every name is placed: the first ones do not know of the later ones."""

COVERS, CROSSES, TOUCHES = 1000.0, 400.0, 60.0
"""What it costs, beside points of distance, that a name covers a marker or a name, that its line crosses one, and that
it lies on a line of the panel."""

STEPS = np.linspace(0, 1, 40)
"""Where lines are looked at, as shares of their length."""

Numbers = NDArray[np.float64]


def label_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    lines: Iterable[Sequence[tuple[float, float]]],
    theme: Theme,
) -> None:
    """Writes names beside their points, within the axes, off each other, the markers and the panel's lines.

    Each name takes the place around its point that costs least, and has a line to it.

    Args:
        axes: all is drawn there that has to be, and nothing changes its limits any more.
        points: name → its place, in the data's coordinates.
        lines: what else is drawn; names avoid it if there is room.
        theme: the colours.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles where the axes are, which the sizes depend on
    unit = figure.dpi / 72
    spots = np.array([axes.transData.transform(point) for point in points.values()])
    markers = np.concatenate([spots - MARKER * unit, spots + MARKER * unit], axis=1)
    segments = [pair for line in lines for pair in itertools.pairwise(line)]
    drawn = np.array([_along(*axes.transData.transform(pair)) for pair in segments]).reshape(-1, 2)
    options = [_options(axes, spot, short(name), unit) for name, spot in zip(points, spots, strict=True)]
    leaders = [_along(spot, _nearest(spot, boxes)) for spot, boxes in zip(spots, options, strict=True)]
    chosen: dict[int, int] = {}
    for _, index in itertools.product(range(ROUNDS), range(len(spots))):
        boxes, lines_to = options[index], leaders[index]
        others = {other: place for other, place in chosen.items() if other != index}
        names = np.array([options[other][place] for other, place in others.items()]).reshape(-1, 4)
        solid = np.concatenate([names, np.delete(markers, index, axis=0)])
        crossing = np.array([leaders[other][place] for other, place in others.items()]).reshape(-1, len(STEPS), 2)
        cost = np.linalg.norm(lines_to[:, -1] - spots[index], axis=1) / unit
        cost += COVERS * _overlaps(boxes, np.concatenate([solid, markers[index : index + 1]])).sum(axis=1)
        cost += CROSSES * _inside(lines_to[:, :, None], solid).any(axis=1).sum(axis=1)
        cost += CROSSES * _inside(crossing[:, :, None], boxes).any(axis=1).sum(axis=0)
        cost += TOUCHES * _inside(drawn[:, None], boxes).any(axis=0)
        chosen[index] = int(np.argmin(cost))
    for index, name in enumerate(points):
        box, end = options[index][chosen[index]], leaders[index][chosen[index]][-1]
        x, y = axes.transAxes.inverted().transform((box[0], (box[1] + box[3]) / 2))
        leader = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
        label = axes.annotate(
            short(name),
            xy=points[name],
            xytext=(x, y),
            textcoords="axes fraction",
            fontsize=SIZE,
            va="center",
            arrowprops={**leader, "relpos": tuple((end - box[:2]) / (box[2:] - box[:2]))},
        )
        label.set_in_layout(False)


def _options(axes: Axes, spot: Numbers, name: str, unit: float) -> Numbers:
    """Boxes for a name around its point, moved to lie within the axes: left, bottom, right, top [options, 4]."""
    text = axes.text(0, 0, name, fontsize=SIZE)
    size = np.array(text.get_window_extent().size) + 3 * unit
    text.remove()
    angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    far = unit * np.array(DISTANCES)[:, None, None]
    low = (spot + around * (far + size / 2) - size / 2).reshape(-1, 2)
    low = np.clip(low, axes.bbox.p0, np.maximum(axes.bbox.p0, axes.bbox.p1 - size))
    return np.concatenate([low, low + size], axis=1)


def _nearest(spot: Numbers, boxes: Numbers) -> Numbers:
    return np.clip(spot, boxes[:, :2], boxes[:, 2:])


def _along(start: Numbers, end: Numbers) -> Numbers:
    """Points on the lines from a start to ends [..., steps, 2]."""
    return start + STEPS[:, None] * (end[..., None, :] - start)


def _inside(dots: Numbers, boxes: Numbers) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.all((dots > boxes[:, :2]) & (dots < boxes[:, 2:]), axis=-1)
    return inside


def _overlaps(boxes: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Which boxes overlap which others [boxes, others]."""
    overlap: NDArray[np.bool_] = np.all(
        (boxes[:, None, :2] < others[:, 2:]) & (others[:, :2] < boxes[:, None, 2:]), axis=-1
    )
    return overlap
