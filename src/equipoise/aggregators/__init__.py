"""Aggregators: K task gradients to one."""

from equipoise.aggregators._base import Aggregator, GramianAggregator
from equipoise.aggregators.cagrad import CAGrad
from equipoise.aggregators.graddrop import GradDrop
from equipoise.aggregators.gradnorm import GradNorm
from equipoise.aggregators.imtl_g import IMTLG
from equipoise.aggregators.lr_annealing import LRAnnealing
from equipoise.aggregators.mgda import MGDA
from equipoise.aggregators.nash_mtl import NashMTL
from equipoise.aggregators.pcgrad import PCGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "Aggregator",
    "CAGrad",
    "GradDrop",
    "GradNorm",
    "GramianAggregator",
    "LRAnnealing",
    "NashMTL",
    "PCGrad",
]
