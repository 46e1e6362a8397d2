"""What a chart is made of, for light and for dark paper, in one piece or panel by panel.

Lines differ in colour, dashes and marker, so that nobody needs to tell colours apart, and every panel has a
description in words. Names are drawn as they are: `$` and `_` mean nothing in them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from equipoise.monitor.style import COLOURS, line_style

COLUMNS = 4
"""Panels side by side."""

LEGEND_WIDTH = 1.6
"""Inches for a name in a legend."""

LONG = 20
"""More characters of a name are not written into a picture."""

FILE = re.compile(r"[^\s:]+\.py:")
"""Where a method of one's own stands."""


@dataclass(frozen=True)
class Theme:
    """Colours for one kind of paper, each with a contrast of 3 to 1 or more against it.

    Attributes:
        colours: of lines, after Okabe and Ito, whose hues people with any colour vision can tell apart.
        ink: of text, axes and single-task training.
        muted: of what stands behind.
        grid: of grid lines.
        paper: of the background.
    """

    colours: tuple[str, ...]
    ink: str
    muted: str
    grid: str
    paper: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Sets what matplotlib takes from its settings, while figures are made and saved."""
        settings: dict[Any, Any] = {
            "axes.edgecolor": self.muted,
            "axes.facecolor": self.paper,
            "axes.labelcolor": self.ink,
            "figure.facecolor": self.paper,
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "legend.borderaxespad": 0.0,
            "legend.frameon": False,
            "savefig.facecolor": self.paper,
            "svg.fonttype": "none",
            "svg.hashsalt": "equipoise",
            "text.color": self.ink,
            "text.parse_math": False,
            "xtick.color": self.muted,
            "xtick.labelcolor": self.ink,
            "ytick.color": self.muted,
            "ytick.labelcolor": self.ink,
        }
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name may have characters that the font has not
            yield

    def style(self, index: int) -> dict[str, Any]:
        """Returns colour, dashes and marker of a line; those of single-task training for a negative index."""
        if index < 0:
            return {"color": self.ink, "linestyle": "-", "marker": ""}
        return line_style(index, self.colours)


LIGHT = Theme(COLOURS, "#1c1e21", "#62666d", "#e1e3e6", "white")
DARK = Theme(
    ("#56B4E9", "#F58442", "#2CC295", "#E397C4", "#E8B93A", "#A9ABFF"), "#e8e9eb", "#9a9ea6", "#34373d", "#15171b"
)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what it shows.
        draw: draws it.
        text: what there is to see, in words.
    """

    title: str
    draw: Callable[[Axes, Theme], None]
    text: str


@dataclass(frozen=True)
class Chart:
    """Panels that share a legend.

    Attributes:
        name: of its file.
        title: what it shows.
        panels: at least one.
        legend: names and how they are drawn.
        size: of a panel, in inches.
        columns: panels side by side, at most.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Callable[[Theme], dict[str, Any]]], ...]
    size: tuple[float, float]
    columns: int = COLUMNS

    def whole(self, theme: Theme, head: str) -> Figure:
        """Returns all panels and the legend in one figure, a head above."""
        columns = min(self.columns, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        width, height = self.size
        figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.7), layout="constrained")
        spots = list(figure.subplots(rows, columns, squeeze=False).flat)
        for spare in spots[len(self.panels) :]:
            spare.remove()
        figure.suptitle(short(head, 4 * LONG), fontsize=11)
        if self.legend:
            self._add_legend(figure, theme, "outside lower center")
        for axes, panel in zip(spots, self.panels, strict=False):
            axes.set_title(short(panel.title, 2 * LONG), fontsize=10)
            panel.draw(axes, theme)  # last: labels are placed by what room there is
        return figure

    def alone(self, panel: Panel, theme: Theme) -> Figure:
        """Returns one panel as a figure without title and legend, which the page around it has."""
        figure = Figure(figsize=self.size, layout="constrained")
        panel.draw(figure.subplots(), theme)
        return figure

    def key(self, theme: Theme, width: float) -> Figure:
        """Returns the legend as a figure of that width, in inches."""
        rows = math.ceil(len(self.legend) / max(1, int(width / LEGEND_WIDTH)))
        figure = Figure(figsize=(width, 0.22 * rows + 0.15))
        self._add_legend(figure, theme, "upper left")
        return figure

    def _add_legend(self, figure: Figure, theme: Theme, place: Literal["upper left", "outside lower center"]) -> None:
        columns = max(1, int(figure.get_figwidth() / LEGEND_WIDTH))
        handles = [Line2D([], [], **style(theme)) for _, style in self.legend]
        numbers = [str(index) for index in range(len(handles))]
        legend = figure.legend(handles, numbers, loc=place, ncols=columns, fontsize=9)
        for text, (name, _) in zip(legend.get_texts(), self.legend, strict=True):
            text.set_text(short(name))  # not before: a legend leaves out names that begin with _


def save(figure: Figure, kind: str) -> bytes:
    """Returns a figure as a file's content; `kind`: "png" or "svg"."""
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return buffer.getvalue()


def styled(index: int) -> Callable[[Theme], dict[str, Any]]:
    """Returns how a legend draws the line of that index."""
    return lambda theme: theme.style(index) | {"markersize": 4}


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes a finished panel's axis logarithmic, with a few plain numbers, since names bar mathematical notation."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < 3 * low:
        numbers = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    else:
        numbers = [1.0, 2.0, 5.0] if high < 100 * low else [1.0]
    axis.set_major_locator(LogLocator(subs=numbers))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def short(name: str, length: int = LONG) -> str:
    """Returns a name on one line, cut if it is long, so that it leaves room for what it is the name of.

    Of a method of one's own that is the file's name first, then the end.
    """
    line = " ".join(name.split())
    if len(line) > length:
        line = FILE.sub("", line)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def said(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns names and numbers as a sentence."""
    return f"{'; '.join(f'{name} {value}' for name, value in pairs)}."
