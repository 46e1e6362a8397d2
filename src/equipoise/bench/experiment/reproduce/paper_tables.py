"""The papers' results, as printed, with their places: nothing here was computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SINGLE = "single-task"
EVERY = "*"
"""Stands for every task of the problem."""

NUMBER = re.compile(r"(?P<mean>[+−-]?\d+(?:\.\d+)?)(?: ± (?P<deviation>\d+(?:\.\d+)?))?|–")


@dataclass(frozen=True)
class PaperColumn:
    """A column of a paper's table, and what of a run is its number.

    Attributes:
        label: as the paper calls it.
        terms: task and measure of one or several numbers; the task `EVERY` stands for all.
        combine: what becomes of several numbers; "gain" is the change against single-task training in per cent.
        higher_is_better: the direction.
        scale: what the number is multiplied by.
        digits: decimals, as printed.
    """

    label: str
    terms: tuple[tuple[str, str], ...]
    combine: Literal["mean", "sum", "gain"] = "mean"
    higher_is_better: bool = True
    scale: float = 1.0
    digits: int = 3

    @property
    def head(self) -> str:
        """The label with an arrow in the better direction."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


Printed = tuple[float, float | None]
"""Mean, and standard deviation where there is one."""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        source: paper and place.
        columns: what was measured.
        rows: method → a number per column; None where the paper has none.
        upright: measures go down and methods across, as the paper has it.
        remark: what has to be known to compare.
    """

    source: str
    columns: tuple[PaperColumn, ...]
    rows: Mapping[str, tuple[Printed | None, ...]]
    upright: bool = False
    remark: str = ""


def _numbers(text: str) -> tuple[Printed | None, ...]:
    """Reads numbers, each a mean with or without a deviation; – stands for none."""
    return tuple(
        (float(match["mean"]), None if match["deviation"] is None else float(match["deviation"]))
        if match["mean"]
        else None
        for match in NUMBER.finditer(text)
    )


def _rows(text: str) -> dict[str, tuple[Printed | None, ...]]:
    """Reads a table written as text: a method and its numbers a line."""
    lines = (line.strip().partition(" ") for line in text.strip().splitlines())
    return {method: _numbers(numbers) for method, _, numbers in lines}


def _turned(methods: str, text: str) -> tuple[list[str], dict[str, tuple[Printed | None, ...]]]:
    """Reads a table with a measure a line and the methods across; returns the measures, and the rows by method."""
    names, lines = [], []
    for line in text.strip().splitlines():
        first = NUMBER.search(line)
        assert first is not None
        names.append(line[: first.start()].strip())
        lines.append(_numbers(line[first.start() :]))
    return names, dict(zip(methods.split(), zip(*lines, strict=True), strict=True))


EMA_PAPER = (
    "Lakkapragada et al., “Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving Average Loss "
    "Weighting Strategies”, AAAI 2023"
)
MAO_PAPER = (
    "Hervella et al., “Multi-Adaptive Optimization for multi-task learning with deep neural networks”, "
    "Neural Networks 2024"
)
AMTL_PAPER = "Yun & Cho, “Achievement-based Training Progress Balancing for Multi-Task Learning”, ICCV 2023"

CELEBA = PaperTable(
    source=f"{EMA_PAPER}, Table 1",
    columns=(PaperColumn("mean F1", ((EVERY, "F1"),)),),
    rows=_rows(
        """
        ew 0.772
        gradnorm 0.771
        uw 0.768
        dwa 0.772
        ema 0.782
        dwema 0.788
        rema 0.788
        """
    ),
)

_AFFECT = (
    PaperColumn("Emotion", (("expression", "F1"),)),
    PaperColumn("VA", (("valence_arousal", "CCC"),)),
)
AFFWILD2 = PaperTable(
    source=f"{EMA_PAPER}, Table 2",
    columns=(
        PaperColumn("AU", (("action_units", "F1"),)),
        *_AFFECT,
        PaperColumn("All", (("action_units", "F1"), ("expression", "F1"), ("valence_arousal", "CCC")), "sum"),
    ),
    rows=_rows(
        """
        single-task 0.574 0.057 0.068 0.699
        ew 0.579 0.082 0.083 0.744
        gradnorm 0.579 0.080 0.072 0.730
        uw 0.578 0.081 0.087 0.746
        dwa 0.580 0.079 0.102 0.760
        rema 0.586 0.080 0.100 0.764
        dwema 0.588 0.081 0.106 0.775
        ema 0.590 0.080 0.133 0.800
        """
    ),
    remark="The paper's “All” is the tasks' sum; for EMA and REMA it is printed 0.003 and 0.002 lower than that.",
)
AFFECTNET = PaperTable(
    source=f"{EMA_PAPER}, Table 2",
    columns=(*_AFFECT, PaperColumn("All", (("expression", "F1"), ("valence_arousal", "CCC")), "sum")),
    rows=_rows(
        """
        single-task 0.426 0.419 0.843
        ew 0.425 0.428 0.853
        gradnorm 0.401 0.408 0.809
        uw 0.393 0.410 0.803
        dwa 0.407 0.406 0.813
        rema 0.421 0.449 0.869
        dwema 0.425 0.443 0.868
        ema 0.427 0.471 0.898
        """
    ),
    remark="The paper's “All” is the tasks' sum; for single tasks it is printed 0.002 lower than that.",
)

EMOTIC = PaperTable(
    source=f"{MAO_PAPER}, Table 2",
    columns=(
        PaperColumn("mAP %", (("categories", "mAP"),), scale=100, digits=2),
        PaperColumn("mF1 %", (("categories", "mF1"),), scale=100, digits=2),
        PaperColumn("MAE", (("dimensions", "MAE"),), higher_is_better=False, digits=4),
        PaperColumn("MSE", (("dimensions", "MSE"),), higher_is_better=False, digits=4),
    ),
    rows=_rows(
        """
        ew 25.35 ± 0.15 29.88 ± 0.56 1.0272 ± 0.0073 1.7139 ± 0.0182
        uw 25.31 ± 0.13 29.74 ± 0.40 1.0254 ± 0.0055 1.7041 ± 0.0176
        dwa 25.23 ± 0.11 29.51 ± 0.61 1.0280 ± 0.0064 1.7154 ± 0.0117
        gradnorm 25.32 ± 0.16 29.62 ± 0.21 1.0273 ± 0.0100 1.7070 ± 0.0261
        mao 25.92 ± 0.09 30.31 ± 0.34 0.9557 ± 0.0050 1.4942 ± 0.0163
        """
    ),
)

_CATEGORIES, _EMOTIC_26 = _turned(
    "ew uw dwa gradnorm mao",
    """
    Affection 28.89 ± 0.87 28.80 ± 0.69 29.20 ± 0.68 29.27 ± 0.75 31.20 ± 0.42
    Anger 9.26 ± 0.93 9.39 ± 0.84 8.96 ± 0.83 11.47 ± 0.93 10.62 ± 0.28
    Annoyance 12.99 ± 0.84 13.11 ± 0.56 12.81 ± 0.84 13.32 ± 0.92 13.79 ± 0.23
    Anticipation 54.08 ± 0.82 54.48 ± 0.33 54.24 ± 0.75 55.64 ± 0.26 56.57 ± 0.12
    Aversion 5.28 ± 0.56 5.25 ± 0.19 5.37 ± 0.58 5.51 ± 0.22 7.10 ± 0.44
    Confidence 65.69 ± 0.55 65.95 ± 0.51 65.92 ± 0.51 70.13 ± 0.80 75.27 ± 0.13
    Disapproval 10.85 ± 0.80 11.34 ± 0.56 10.82 ± 0.79 12.12 ± 1.08 12.47 ± 0.30
    Disconnection 23.21 ± 1.08 23.46 ± 0.62 23.30 ± 1.05 23.68 ± 0.56 24.47 ± 0.39
    Disquietment 17.48 ± 0.51 17.16 ± 0.59 17.52 ± 0.56 17.23 ± 0.22 16.79 ± 0.26
    Doubt or Confusion 17.67 ± 0.36 17.78 ± 0.48 17.66 ± 0.35 17.53 ± 0.34 17.25 ± 0.11
    Embarrassment 2.17 ± 0.20 2.18 ± 0.20 2.07 ± 0.20 2.19 ± 0.16 2.65 ± 0.20
    Engagement 83.47 ± 0.47 83.41 ± 0.34 83.33 ± 0.38 84.41 ± 0.32 86.20 ± 0.10
    Esteem 15.05 ± 0.53 14.49 ± 0.63 15.07 ± 0.50 14.76 ± 0.31 16.37 ± 0.16
    Excitement 63.80 ± 0.50 63.47 ± 0.32 63.78 ± 0.51 65.26 ± 0.16 68.76 ± 0.12
    Fatigue 10.64 ± 0.42 10.73 ± 0.79 10.45 ± 0.44 11.45 ± 0.57 10.65 ± 0.20
    Fear 4.83 ± 0.19 5.02 ± 0.61 4.84 ± 0.19 5.42 ± 0.55 5.78 ± 0.32
    Happiness 67.28 ± 0.62 67.25 ± 0.62 67.46 ± 0.38 67.48 ± 0.33 66.69 ± 0.18
    Pain 6.98 ± 0.80 7.17 ± 0.44 6.77 ± 0.87 8.29 ± 0.87 7.81 ± 0.78
    Peace 21.98 ± 0.84 22.39 ± 0.65 21.97 ± 0.84 22.71 ± 0.57 23.44 ± 0.44
    Pleasure 40.59 ± 0.90 41.04 ± 0.73 41.19 ± 0.73 41.69 ± 0.27 42.06 ± 0.16
    Sadness 17.69 ± 1.56 17.61 ± 1.69 17.77 ± 1.65 19.95 ± 0.90 20.63 ± 0.90
    Sensitivity 5.65 ± 0.39 5.96 ± 0.65 5.61 ± 0.36 6.11 ± 0.44 6.22 ± 0.21
    Suffering 17.79 ± 2.02 17.32 ± 1.60 17.59 ± 1.87 19.18 ± 0.95 21.68 ± 0.65
    Surprise 7.16 ± 0.08 7.38 ± 0.61 7.22 ± 0.19 7.78 ± 0.47 8.97 ± 0.38
    Sympathy 12.37 ± 0.51 11.96 ± 0.34 12.38 ± 0.51 12.59 ± 0.58 13.19 ± 0.31
    Yearning 8.82 ± 0.40 8.36 ± 0.42 8.75 ± 0.40 8.48 ± 0.26 8.22 ± 0.19
    Mean 24.29 ± 0.17 24.33 ± 0.22 24.31 ± 0.18 25.14 ± 0.06 25.96 ± 0.07
    """,
)
EMOTIC_26 = PaperTable(
    source=f"{MAO_PAPER}, Table 3",
    columns=tuple(
        PaperColumn(name, ((EVERY if name == "Mean" else name, "AP"),), scale=100, digits=2) for name in _CATEGORIES
    ),
    rows=_EMOTIC_26,
    upright=True,
    remark="Average precision in per cent.",
)

_INDOOR = (
    PaperColumn("mIoU %", (("segmentation", "mIoU"),), scale=100, digits=2),
    PaperColumn("pAcc %", (("segmentation", "pAcc"),), scale=100, digits=2),
    PaperColumn("Abs. δ m", (("depth", "abs"),), higher_is_better=False, digits=4),
    PaperColumn("Rel. δ", (("depth", "rel"),), higher_is_better=False, digits=4),
    PaperColumn("Mean °", (("normals", "mean"),), higher_is_better=False, digits=2),
    PaperColumn("Median °", (("normals", "median"),), higher_is_better=False, digits=2),
)
NYUDV2_MTAN = PaperTable(
    source=f"{MAO_PAPER}, Table 4, MTAN",
    columns=_INDOOR,
    rows=_rows(
        """
        ew 39.77 ± 0.24 69.38 ± 0.08 0.4017 ± 0.0032 0.1585 ± 0.0016 22.31 ± 0.08 15.27 ± 0.07
        uw 39.85 ± 0.30 69.51 ± 0.12 0.4017 ± 0.0025 0.1579 ± 0.0011 22.16 ± 0.06 15.10 ± 0.05
        dwa 39.83 ± 0.23 69.34 ± 0.10 0.4029 ± 0.0025 0.1586 ± 0.0012 22.36 ± 0.04 15.33 ± 0.07
        gradnorm 39.62 ± 0.40 69.20 ± 0.16 0.4020 ± 0.0036 0.1588 ± 0.0008 22.05 ± 0.08 14.98 ± 0.05
        mao 40.10 ± 0.31 69.62 ± 0.15 0.3960 ± 0.0032 0.1537 ± 0.0014 21.28 ± 0.07 14.05 ± 0.06
        """
    ),
)
NYUDV2_MTINET = PaperTable(
    source=f"{MAO_PAPER}, Table 4, MTI-Net",
    columns=_INDOOR,
    rows=_rows(
        """
        ew 39.07 ± 0.45 68.94 ± 0.19 0.3829 ± 0.0021 0.1501 ± 0.0014 22.62 ± 0.05 16.25 ± 0.09
        uw 38.67 ± 0.32 68.63 ± 0.25 0.3809 ± 0.0017 0.1489 ± 0.0020 22.39 ± 0.04 15.96 ± 0.06
        dwa 38.86 ± 0.36 68.78 ± 0.20 0.3812 ± 0.0014 0.1496 ± 0.0013 22.60 ± 0.03 16.15 ± 0.06
        gradnorm 38.59 ± 0.29 68.43 ± 0.16 0.3783 ± 0.0032 0.1475 ± 0.0023 21.78 ± 0.05 15.26 ± 0.08
        mao 37.94 ± 0.43 68.19 ± 0.10 0.3820 ± 0.0038 0.1484 ± 0.0018 21.21 ± 0.05 14.84 ± 0.08
        """
    ),
)
NYUDV2_MTAN_SCRATCH = PaperTable(
    source=f"{MAO_PAPER}, Table 5, MTAN",
    columns=_INDOOR,
    rows=_rows(
        """
        ew 26.21 ± 0.23 58.89 ± 0.16 0.4832 ± 0.0023 0.1874 ± 0.0005 25.82 ± 0.12 18.11 ± 0.15
        uw 25.89 ± 0.53 58.68 ± 0.30 0.4779 ± 0.0014 0.1850 ± 0.0005 25.44 ± 0.09 17.68 ± 0.09
        dwa 26.22 ± 0.43 58.80 ± 0.15 0.4809 ± 0.0043 0.1865 ± 0.0013 25.78 ± 0.13 18.10 ± 0.13
        gradnorm 26.20 ± 0.24 58.76 ± 0.13 0.4789 ± 0.0018 0.1853 ± 0.0009 24.92 ± 0.09 17.11 ± 0.09
        mao 28.73 ± 0.29 61.29 ± 0.18 0.4496 ± 0.0021 0.1735 ± 0.0008 23.24 ± 0.08 15.32 ± 0.09
        """
    ),
)
NYUDV2_MTINET_SCRATCH = PaperTable(
    source=f"{MAO_PAPER}, Table 5, MTI-Net",
    columns=_INDOOR,
    rows=_rows(
        """
        ew 28.16 ± 0.45 60.35 ± 0.27 0.4608 ± 0.0022 0.1783 ± 0.0007 25.85 ± 0.06 19.16 ± 0.06
        uw 27.71 ± 0.32 60.07 ± 0.32 0.4571 ± 0.0034 0.1777 ± 0.0013 25.48 ± 0.13 18.64 ± 0.16
        dwa 28.34 ± 0.59 60.53 ± 0.37 0.4609 ± 0.0035 0.1793 ± 0.0016 25.87 ± 0.03 19.13 ± 0.07
        gradnorm 27.92 ± 0.24 59.98 ± 0.37 0.4494 ± 0.0064 0.1736 ± 0.0013 24.52 ± 0.12 17.40 ± 0.15
        mao 30.85 ± 0.28 62.50 ± 0.40 0.4324 ± 0.0063 0.1670 ± 0.0027 22.97 ± 0.08 15.84 ± 0.11
        """
    ),
)

NYUV2_AMTL = PaperTable(
    source=f"{AMTL_PAPER}, Table 1 (multi-task accuracy) and the authors' configuration (single-task accuracies)",
    columns=(
        PaperColumn("mIoU", (("segmentation", "mIoU"),), digits=4),
        PaperColumn("δ<1.25", (("depth", "δ<1.25"),), digits=4),
        PaperColumn("<11.25°", (("normals", "<11.25°"),), digits=4),
        PaperColumn("accuracy", (("segmentation", "mIoU"), ("depth", "δ<1.25"), ("normals", "<11.25°")), digits=4),
    ),
    rows=_rows(
        """
        single-task 0.4453 0.8087 0.4572 –
        dtp – – – 0.3660
        amtl-a – – – 0.3745
        amtl – – – 0.3847
        """
    ),
    remark="How the paper's multi-task accuracy is computed is not said. Here it is the tasks' mean, which for the "
    "single-task accuracies above would be 0.5704: the levels cannot be compared, the order of methods can. The other "
    "methods are in the paper's Figure 2 only.",
)

VOC_NYU = PaperTable(
    source=f"{AMTL_PAPER}, abstract (gains over single-task training) and the authors' configuration (single-task "
    "accuracies); the other methods are in the paper's Figure 4 only",
    columns=(
        PaperColumn("mAP", (("detection", "mAP"),), digits=4),
        PaperColumn("mIoU", (("segmentation", "mIoU"),), digits=4),
        PaperColumn("δ<1.25", (("depth", "δ<1.25"),), digits=4),
        PaperColumn("mAP gain %", (("detection", "mAP"),), "gain", digits=2),
        PaperColumn("mIoU gain %", (("segmentation", "mIoU"),), "gain", digits=2),
        PaperColumn("δ gain %", (("depth", "δ<1.25"),), "gain", digits=2),
    ),
    rows=_rows(
        """
        single-task 0.5729 0.7791 0.8930 – – –
        amtl – – – 1.28 1.65 1.18
        """
    ),
    remark="By which rule the paper's mAP is computed is not said; here it is VOC's of 2012, at an overlap of ½.",
)
