"""The picture of a diagnosis: losses, shares of the update, cosines and speeds, in four small panels."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, PercentFormatter

from equipoise.monitor.diagnosis.regimes import OPPOSED, SCALE, SIZE, SPEED, Regime
from equipoise.monitor.style import line_style, plain

if TYPE_CHECKING:
    from equipoise.monitor.diagnosis.result import Diagnosis

WRITTEN = 8
"""With more tasks than this, no numbers are written into the cosines."""

FEW = 12
"""Tasks that the panels have room for; with more they grow."""

SMOOTHED = 10
"""Steps that a point of a curve is the mean of: a loss of one batch says little."""


def draw_diagnosis(diagnosis: Diagnosis) -> Figure:
    """Draws a diagnosis; see `Diagnosis.picture`."""
    measured = diagnosis.measured
    more = max(0, len(measured.tasks) - FEW)
    figure = Figure(figsize=(9.6 + 0.1 * more, 7.2 + 0.25 * more), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(plain(diagnosis.answer), 100)), fontsize=11, x=0.01, ha="left")
    scales, shares, cosines, speeds = figure.subplots(2, 2).flat
    found = {regime.name: regime for regime in diagnosis.regimes}
    tasks = list(map(plain, measured.tasks))
    _dots(scales, tasks, list(found[SCALE].evidence.values()))
    _title(scales, "Losses at the start", found[SCALE])
    _bars(shares, tasks, list(found[SIZE].evidence.values()))
    _title(shares, f"Share of the update after {measured.optimizer}", found[SIZE])
    between = measured.within.nanmean(0)
    between.diagonal().copy_(measured.across.nanmean(0).diagonal())
    _matrix(figure, cosines, tasks, between)
    _title(cosines, "Cosines between gradients", found[OPPOSED])
    cosines.set_xlabel("diagonal: of a task with itself on another batch", fontsize=8)
    _curves(speeds, tasks, measured.losses)
    _title(speeds, "Losses, relative to the start", found[SPEED])
    return figure


def _title(axes: Axes, what: str, regime: Regime) -> None:
    answer = "unlike" if regime.name != OPPOSED else "opposed"
    said = f"{'' if regime.found else 'not '}{answer}" if regime.sure else "not sure"
    axes.set_title(f"{what}: {said}", fontsize=10, fontweight="bold" if regime.sure and regime.found else "normal")


def _names(axes: Axes, tasks: list[str]) -> None:
    axes.set_yticks(range(len(tasks)), tasks, fontsize=_small(tasks))
    axes.set_ylim(len(tasks) - 0.4, -0.6)


def _small(tasks: list[str]) -> int:
    return 8 if len(tasks) <= FEW else 6


def _dots(axes: Axes, tasks: list[str], values: list[float]) -> None:
    for index, value in enumerate(values):
        style = line_style(index)
        axes.plot([value], [index], color=style["color"], marker=style["marker"], linestyle="none")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    middle = (low * high) ** 0.5
    axes.set_xlim(min(low, middle / 4), max(high, middle * 4))  # likes should look alike
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    _names(axes, tasks)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("mean absolute loss over the first steps", fontsize=8)


def _bars(axes: Axes, tasks: list[str], shares: list[float]) -> None:
    colours = [line_style(index)["color"] for index in range(len(tasks))]
    axes.barh(range(len(tasks)), shares, color=colours, height=0.6)
    axes.axvline(1 / len(tasks), color="black", linestyle=":", linewidth=1)
    _names(axes, tasks)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("contribution to the shared parameters (dotted: all alike)", fontsize=8)


def _matrix(figure: Figure, axes: Axes, tasks: list[str], cosines: torch.Tensor) -> None:
    rows = cosines.tolist()
    shown = axes.imshow(rows, cmap="PuOr_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=90 if len(tasks) > 4 else 0, fontsize=_small(tasks))
    axes.set_yticks(range(len(tasks)), tasks, fontsize=_small(tasks))
    if len(tasks) <= WRITTEN:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, ax=axes, shrink=0.8)


def _curves(axes: Axes, tasks: list[str], losses: torch.Tensor) -> None:
    for index, task in enumerate(tasks):
        steps = (~losses[:, index].isnan()).nonzero()[:, 0]
        size = max(1, min(SMOOTHED, len(steps) // 2))
        values = losses[steps, index].unfold(0, size, 1).mean(1)
        style = line_style(index)
        axes.plot(
            (steps[size - 1 :] + 1).tolist(),
            (values / values[0].abs()).tolist(),
            color=style["color"],
            linestyle=style["linestyle"],
            label=task,
        )
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)
    if len(tasks) <= 2 * WRITTEN:
        axes.legend(fontsize=8)
