"""Objectives and weightings: K losses to one scalar."""

from equipoise.objectives._base import GeometricMean, Objective, WeightedSum, Weighting
from equipoise.objectives.achievement import Achievement
from equipoise.objectives.coba import CoBa
from equipoise.objectives.cosmos import COSMOS
from equipoise.objectives.cov import CoV
from equipoise.objectives.dtp import DTP
from equipoise.objectives.dwa import DWA
from equipoise.objectives.dwema import DWEMA
from equipoise.objectives.ema import EMA
from equipoise.objectives.equal import Equal
from equipoise.objectives.famo import FAMO
from equipoise.objectives.go4align import GO4Align
from equipoise.objectives.imtl_l import IMTLL
from equipoise.objectives.ldc_mtl import LDCMTL
from equipoise.objectives.log_sum import LogSum
from equipoise.objectives.pbi import PBI
from equipoise.objectives.relobralo import ReLoBRaLo
from equipoise.objectives.rema import REMA
from equipoise.objectives.rlw import RLW
from equipoise.objectives.softadapt import SoftAdapt
from equipoise.objectives.static import Static
from equipoise.objectives.stch import STCH
from equipoise.objectives.uw import UW
from equipoise.objectives.uw_so import UWSO

__all__ = [
    "COSMOS",
    "DTP",
    "DWA",
    "DWEMA",
    "EMA",
    "FAMO",
    "IMTLL",
    "LDCMTL",
    "PBI",
    "REMA",
    "RLW",
    "STCH",
    "UW",
    "UWSO",
    "Achievement",
    "CoBa",
    "CoV",
    "Equal",
    "GO4Align",
    "GeometricMean",
    "LogSum",
    "Objective",
    "ReLoBRaLo",
    "SoftAdapt",
    "Static",
    "WeightedSum",
    "Weighting",
]
