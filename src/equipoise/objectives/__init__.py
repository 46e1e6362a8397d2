"""Objectives and weightings: K losses to one scalar."""

from equipoise.objectives._base import GeometricMean, Objective, WeightedSum, Weighting
from equipoise.objectives.achievement import Achievement
from equipoise.objectives.dtp import DTP
from equipoise.objectives.dwa import DWA
from equipoise.objectives.dwema import DWEMA
from equipoise.objectives.ema import EMA
from equipoise.objectives.equal import Equal
from equipoise.objectives.famo import FAMO
from equipoise.objectives.imtl_l import IMTLL
from equipoise.objectives.log_sum import LogSum
from equipoise.objectives.rema import REMA
from equipoise.objectives.rlw import RLW
from equipoise.objectives.static import Static
from equipoise.objectives.uw import UW

__all__ = [
    "DTP",
    "DWA",
    "DWEMA",
    "EMA",
    "FAMO",
    "IMTLL",
    "REMA",
    "RLW",
    "UW",
    "Achievement",
    "Equal",
    "GeometricMean",
    "LogSum",
    "Objective",
    "Static",
    "WeightedSum",
    "Weighting",
]
