"""The methods that turn the losses into one: a backward pass a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from equipoise._checks import check_number
from equipoise.objectives import (
    COSMOS,
    DTP,
    DWA,
    DWEMA,
    EMA,
    FAMO,
    IMTLL,
    LDCMTL,
    PBI,
    REMA,
    RLW,
    STCH,
    UW,
    UWSO,
    Achievement,
    CoBa,
    CoV,
    Equal,
    GeometricMean,
    GO4Align,
    Objective,
    ReLoBRaLo,
    SoftAdapt,
    Static,
    Weighting,
)
from equipoise.registry._spec import ONE_PASS, MethodSpec
from equipoise.search_space import Range


def _objective(
    takes: Callable[..., Objective | Weighting], description: str, source: str, **details: Any
) -> MethodSpec:
    return MethodSpec(description, source, ONE_PASS, takes, objective=takes, **details)


def _mean_of(takes: Callable[..., Weighting], description: str, source: str, **details: Any) -> MethodSpec:
    def objective(**hyperparameters: Any) -> Objective:
        return GeometricMean(takes(**hyperparameters))

    return MethodSpec(description, source, ONE_PASS, takes, objective=objective, **details)


def _famo(
    weights_lr: float = 0.025, weights_decay: float = 1e-3, lower_bounds: Mapping[str, float] | None = None
) -> FAMO:
    """FAMO by names that leave `lr` and `weight_decay` to the model."""
    check_number("weights_lr", weights_lr, above=0)
    check_number("weights_decay", weights_decay, at_least=0)
    return FAMO(weights_lr, weights_decay, lower_bounds)


OBJECTIVES: dict[str, MethodSpec] = {
    "ew": _objective(Equal, "equal weights: the plain sum of the losses", "baseline"),
    "static": _objective(Static, "fixed weights that you give; 1 for every task if you give none", "baseline"),
    "rlw": _objective(RLW, "random weights, drawn anew each step", "Lin et al. 2022"),
    "uw": _objective(
        UW,
        "uncertainty weighting: a variance per task is learned with the model",
        "Kendall et al. 2018",
        learns_weights=True,
    ),
    "dwa": _objective(DWA, "more weight for losses that fall slowly", "Liu et al. 2019"),
    "ema": _objective(EMA, "each loss divided by its moving average", "Lakkapragada et al. 2023"),
    "rema": _objective(REMA, "EMA, times the loss's training rate", "Lakkapragada et al. 2023"),
    "dwema": _objective(DWEMA, "EMA, times DWA's weights", "Lakkapragada et al. 2023"),
    "gls": _mean_of(Equal, "geometric mean of the losses", "Chennupati et al. 2019"),
    "dwa-g": _mean_of(DWA, "geometric mean with DWA's weights", "Yun & Cho 2023"),
    "rlw-g": _mean_of(RLW, "geometric mean with random weights", "Yun & Cho 2023"),
    "dtp": _objective(DTP, "more weight for tasks with low accuracy", "Guo et al. 2018"),
    "dtp-g": _mean_of(DTP, "geometric mean with DTP's weights", "Yun & Cho 2023"),
    "amtl": _mean_of(
        Achievement,
        "geometric mean, more weight far below single-task accuracy",
        "Yun & Cho 2023",
        needs_potentials=True,
    ),
    "amtl-a": _objective(
        Achievement, "weighted sum, more weight far below single-task accuracy", "Yun & Cho 2023", needs_potentials=True
    ),
    "imtl-l": _objective(
        IMTLL, "loss scales learned so that all losses stand near one", "Liu et al. 2021", learns_weights=True
    ),
    "famo": _objective(
        _famo,
        "equal rate of improvement, from loss values alone",
        "Liu et al. 2023",
        search_space={"weights_lr": Range(0.0025, 0.25, log=True), "weights_decay": Range(1e-4, 1e-2, log=True)},
    ),
    "stch": _objective(STCH, "a smooth maximum of the losses over their nadirs: the worst decides", "Lin et al. 2024"),
    "uw-so": _objective(UWSO, "softmax of the inverse losses", "Kirchdorfer et al. 2024"),
    "go4align": _objective(GO4Align, "one scale, by risk, equal within groups of tasks", "Shen et al. 2024"),
    "ldc-mtl": _objective(
        LDCMTL,
        "learned weights that keep the weighted losses close to one another",
        "Xiao et al. 2025",
        learns_weights=True,
    ),
    "cov": _objective(CoV, "more weight for losses that still vary", "Groenendijk et al. 2021"),
    "softadapt": _objective(SoftAdapt, "more weight for losses that fall slowly, or rise", "Heydari et al. 2019"),
    "relobralo": _objective(
        ReLoBRaLo, "more weight for losses that have fallen less, lately or since the first", "Bischof & Kraus 2021"
    ),
    "coba": _objective(CoBa, "more weight for tasks that converge slowly on validation", "Gong et al. 2024"),
    "pbi": _objective(PBI, "small losses in the proportions that you prefer", "Zhang & Li 2007"),
    "cosmos": _objective(COSMOS, "weighted sum that rewards the proportions that you prefer", "Ruchte & Grabocka 2021"),
}
