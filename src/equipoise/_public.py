"""The public names, where `equipoise` finds them when the first is asked for."""

from equipoise.aggregators import (
    IMTLG,
    MGDA,
    Aggregator,
    CAGrad,
    GradDrop,
    GradNorm,
    GramianAggregator,
    NashMTL,
    PCGrad,
)
from equipoise.balancer import Balancer
from equipoise.gradients import task_gradients
from equipoise.labels import count_labels, masked_mean
from equipoise.loaders import MixedLoader
from equipoise.methods import list_methods, make_method
from equipoise.monitor import BalanceMonitor
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
    "REMA",
    "RLW",
    "UW",
    "Achievement",
    "Aggregator",
    "BalanceMonitor",
    "Balancer",
    "CAGrad",
    "Equal",
    "GeometricMean",
    "GradDrop",
    "GradNorm",
    "GramianAggregator",
    "MixedLoader",
    "NashMTL",
    "Objective",
    "PCGrad",
    "PerSample",
    "Static",
    "WeightedSum",
    "Weighting",
    "count_labels",
    "list_methods",
    "make_method",
    "masked_mean",
    "task_gradients",
]
