"""Aggregators: K task gradients to one."""

from equipoise.aggregators._base import Aggregator, GramianAggregator
from equipoise.aggregators._rows import RowStateAggregator
from equipoise.aggregators.aligned_mtl import AlignedMTL
from equipoise.aggregators.cagrad import CAGrad
from equipoise.aggregators.config import ConFIG
from equipoise.aggregators.db_mtl import DBMTL
from equipoise.aggregators.dualproj import DualProj
from equipoise.aggregators.excess_mtl import ExcessMTL
from equipoise.aggregators.fairgrad import FairGrad
from equipoise.aggregators.graddrop import GradDrop
from equipoise.aggregators.gradnorm import GradNorm
from equipoise.aggregators.gradvac import GradVac
from equipoise.aggregators.imtl_g import IMTLG
from equipoise.aggregators.krum import Krum
from equipoise.aggregators.lr_annealing import LRAnnealing
from equipoise.aggregators.mgda import MGDA
from equipoise.aggregators.moco import MoCo
from equipoise.aggregators.nash_mtl import NashMTL
from equipoise.aggregators.pcd import PCD
from equipoise.aggregators.pcgrad import PCGrad
from equipoise.aggregators.trimmed_mean import TrimmedMean
from equipoise.aggregators.upgrad import UPGrad

__all__ = [
    "DBMTL",
    "IMTLG",
    "MGDA",
    "PCD",
    "Aggregator",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianAggregator",
    "Krum",
    "LRAnnealing",
    "MoCo",
    "NashMTL",
    "PCGrad",
    "RowStateAggregator",
    "TrimmedMean",
    "UPGrad",
]
