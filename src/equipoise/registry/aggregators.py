"""The methods that reduce the tasks' gradients to one: a backward pass a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from equipoise._checks import check_number
from equipoise.aggregators import (
    DBMTL,
    IMTLG,
    MGDA,
    PCD,
    Aggregator,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    Krum,
    LRAnnealing,
    MoCo,
    NashMTL,
    PCGrad,
    TrimmedMean,
    UPGrad,
)
from equipoise.objectives import IMTLL, LogSum
from equipoise.registry._spec import PASS_PER_TASK, MethodSpec


def _aggregator(takes: Callable[..., Aggregator], description: str, source: str, **details: Any) -> MethodSpec:
    return MethodSpec(description, source, PASS_PER_TASK, takes, aggregator=takes, **details)


def _gradnorm(alpha: float = 1.5, weights_lr: float = 0.025) -> GradNorm:
    """GradNorm by names that leave `lr` to the model."""
    return GradNorm(alpha, check_number("weights_lr", weights_lr, above=0))


AGGREGATORS: dict[str, MethodSpec] = {
    "gradnorm": _aggregator(
        _gradnorm,
        "gradient norms on the model's last shared layer, where it names one, drawn together, by training rate",
        "Chen et al. 2018",
        probes_last_layer=True,
        search_space={"alpha": GradNorm.search_space["alpha"], "weights_lr": GradNorm.search_space["lr"]},
    ),
    "imtl-g": _aggregator(IMTLG, "equal projections on every task's gradient", "Liu et al. 2021"),
    "imtl": MethodSpec(
        "IMTL-L's loss scales, then IMTL-G",
        "Liu et al. 2021",
        PASS_PER_TASK,
        IMTLG,
        objective=IMTLL,
        aggregator=IMTLG,
        learns_weights=True,
    ),
    "mgda": _aggregator(MGDA, "shortest vector in the convex hull of the gradients", "Sener & Koltun 2018"),
    "pcgrad": _aggregator(PCGrad, "conflicting parts projected away", "Yu et al. 2020"),
    "graddrop": _aggregator(GradDrop, "one random sign kept per element", "Chen et al. 2020"),
    "cagrad": _aggregator(CAGrad, "the worst task's improvement near the mean gradient", "Liu et al. 2021"),
    "nash-mtl": _aggregator(NashMTL, "Nash bargaining between the gradients", "Navon et al. 2022"),
    "fairgrad": _aggregator(FairGrad, "α-fair improvements of the tasks", "Ban & Ji 2024"),
    "aligned-mtl": _aggregator(AlignedMTL, "gradients made orthogonal and equally long", "Senushkin et al. 2023"),
    "config": _aggregator(ConFIG, "the direction with the same cosine to every gradient", "Liu et al. 2025"),
    "upgrad": _aggregator(UPGrad, "every gradient freed of its conflicts, then the mean", "Quinton & Rey 2024"),
    "dualproj": _aggregator(DualProj, "the mean gradient freed of its conflicts", "Lopez-Paz & Ranzato 2017"),
    "gradvac": _aggregator(GradVac, "cosines raised to their moving averages", "Wang et al. 2021"),
    "pcd": _aggregator(PCD, "one task first, and some progress for all others", "arXiv:2606.29521, 2026"),
    "krum": _aggregator(Krum, "the gradient with the nearest neighbours", "Blanchard et al. 2017"),
    "trimmed-mean": _aggregator(TrimmedMean, "the mean of every element without its extremes", "Yin et al. 2018"),
    "moco": _aggregator(MoCo, "the min-norm combination of tracked gradients", "Fernando et al. 2023"),
    "db-mtl": MethodSpec(
        "the losses' logarithms, and smoothed gradients as long as the longest",
        "Lin et al. 2023",
        PASS_PER_TASK,
        DBMTL,
        objective=LogSum,
        aggregator=DBMTL,
    ),
    "excess-mtl": _aggregator(ExcessMTL, "more weight for tasks far from what they can reach", "He et al. 2024"),
    "lr-annealing": _aggregator(
        LRAnnealing,
        "for physics-informed networks: data terms brought to the residual's gradient in every tenth step",
        "Wang et al. 2021",
        every=10,
    ),
}
