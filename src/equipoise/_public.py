"""The public names, where `equipoise` finds them when the first is asked for."""

from equipoise.aggregators import (
    IMTLG,
    MGDA,
    PCD,
    Aggregator,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    GramianAggregator,
    Krum,
    NashMTL,
    PCGrad,
    UPGrad,
)
from equipoise.balancer import Balancer
from equipoise.gradients import task_gradients
from equipoise.labels import count_labels, masked_mean
from equipoise.loaders import MixedLoader
from equipoise.methods import list_methods, make_method
from equipoise.monitor import BalanceMonitor, Diagnosis, diagnose
from equipoise.objectives import (
    DTP,
    DWA,
    DWEMA,
    EMA,
    FAMO,
    IMTLL,
    REMA,
    RLW,
    UW,
    Achievement,
    Equal,
    GeometricMean,
    Objective,
    Static,
    WeightedSum,
    Weighting,
)
from equipoise.optim import MAO
from equipoise.per_sample import PerSample

__all__ = [
    "DTP",
    "DWA",
    "DWEMA",
    "EMA",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MAO",
    "MGDA",
    "PCD",
    "REMA",
    "RLW",
    "UW",
    "Achievement",
    "Aggregator",
    "AlignedMTL",
    "BalanceMonitor",
    "Balancer",
    "CAGrad",
<<<<<<< ours
    "ConFIG",
    "DualProj",
=======
    "Diagnosis",
>>>>>>> theirs
    "Equal",
    "FairGrad",
    "GeometricMean",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianAggregator",
    "Krum",
    "MixedLoader",
    "NashMTL",
    "Objective",
    "PCGrad",
    "PerSample",
    "Static",
    "UPGrad",
    "WeightedSum",
    "Weighting",
    "count_labels",
    "diagnose",
    "list_methods",
    "make_method",
    "masked_mean",
    "task_gradients",
]
